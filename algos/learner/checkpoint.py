"""Checkpoints that are either whole or absent: safetensors and JSON only, hashed, renamed into place.

A checkpoint is a folder ``step-000020/`` with a few ``.safetensors`` files, ``state.json`` and
``manifest.json``. It is written into a temporary folder beside its final place, synced file by file, the
manifest (names, sizes, SHA-256) last, and then renamed: a process killed at any moment leaves the old
checkpoints and perhaps a temporary folder, which the next save sweeps away. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convgym.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"step-\d{6,}")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back and verified.

    Attributes:
        path: Its folder.
        step: The update after which it was written.
        tensors: Part -> name -> tensor (on the CPU); a part is one safetensors file, e.g. ``"model"``.
        state: The JSON-plain rest.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part.

        Raises:
            CheckpointError: If the checkpoint has no such part.
        """
        if name not in self.tensors:
            raise CheckpointError(
                f"Expected a part {name!r} in {self.path}; it has {sorted(self.tensors)}. "
                "It was made for another configuration: resume with that one, or start a new run."
            )
        return self.tensors[name]


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Writes a checkpoint atomically and drops the oldest ones.

    Args:
        root: Folder of all checkpoints of a run; made if absent.
        step: The update just finished.
        tensors: Part -> name -> tensor. Tensors of one part must not share memory.
        state: JSON-plain values.
        keep: So many checkpoints stay, at least 1; two let a damaged one fall back.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: If it cannot be written (full disk, read-only folder). Earlier checkpoints are
            untouched.
    """
    final = root / f"step-{step:06d}"
    temporary = root / f"{_TEMPORARY}{final.name}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        temporary.mkdir()
        for part, named in tensors.items():
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
            save_file(plain, temporary / f"{part}.safetensors")
        (temporary / STATE).write_text(json.dumps(dict(state), allow_nan=False), encoding="utf-8")
        files = {}
        for path in sorted(temporary.iterdir()):
            _sync(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
        manifest = {"format": FORMAT, "step": step, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(temporary / MANIFEST)
        _sync(temporary)
        if final.exists():  # left by an earlier life of this run; a rename needs the name free
            _discard(final)
        os.rename(temporary, final)
        _sync(root)
    except (OSError, SafetensorError, ValueError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"Could not write the checkpoint {final}: {error}. Earlier checkpoints are untouched; "
            "free space or fix the folder's permissions, then resume."
        ) from error
    for old in _folders(root)[max(1, keep) :]:
        _discard(old)
    return final


def load(path: Path) -> Checkpoint:
    """Reads one checkpoint and verifies every byte of it.

    Raises:
        CheckpointError: If a file is missing, foreign, damaged or not of a known format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        step, files = int(manifest["step"]), dict(manifest["files"])
        form = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"its {MANIFEST} cannot be read ({error})") from error
    if form != FORMAT:
        raise _damaged(path, f"its format is {form!r}, and this version reads {FORMAT}")
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] | None = None
    for name, entry in files.items():
        file = path / name
        try:
            size, digest = entry["bytes"], entry["sha256"]
            if file.name != name or file.stat().st_size != size or _digest(file) != digest:
                raise _damaged(path, f"{name} is not what was written")
            if name == STATE:
                state = json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".safetensors":
                tensors[file.stem] = load_file(file)
            else:
                raise _damaged(path, f"{name} is neither safetensors nor {STATE}; nothing else is opened")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise _damaged(path, f"{name} cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise _damaged(path, f"it has no {STATE}")
    return Checkpoint(path, step, tensors, state)


def newest(root: Path) -> Checkpoint | None:
    """The newest good checkpoint of a run, or ``None`` if there is no checkpoint at all.

    A damaged one is named in a warning and the one before it is tried.

    Raises:
        CheckpointError: If there are checkpoints and all are damaged.
    """
    folders = _folders(root)
    for path in folders:
        try:
            return load(path)
        except CheckpointError as error:
            warnings.warn(f"{error} Trying the one before it.", stacklevel=2)
    if folders:
        raise CheckpointError(f"All {len(folders)} checkpoints in {root} are damaged. Start a new run.")
    return None


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters (tied ones once) and persistent buffers by name; they share its memory."""
    kept = module.state_dict()
    return {name: x for name, x in (*module.named_parameters(), *module.named_buffers()) if name in kept}


@torch.no_grad()
def fill_tensors(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], where: str) -> None:
    """Copies saved tensors into live ones.

    Args:
        own: Name -> tensor to fill.
        saved: Name -> value.
        where: What the values are, for the message.

    Raises:
        CheckpointError: If names or shapes differ; then nothing was copied.
    """
    why = ""
    if own.keys() != saved.keys():
        why = f"names differ: {sorted(own.keys() ^ saved.keys())[:4]}"
    elif wrong := [name for name in own if own[name].shape != saved[name].shape]:
        why = f"{wrong[0]} is {tuple(saved[wrong[0]].shape)}, and here it is {tuple(own[wrong[0]].shape)}"
    if why:
        raise CheckpointError(
            f"{where} was made for another model: {why}. Resume with the same configuration."
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _folders(root: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    found = [path for path in root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _sweep(root: Path) -> None:
    """Removes what killed saves left behind."""
    for path in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Removes a checkpoint; killed half-way it leaves a temporary folder, never half a checkpoint."""
    doomed = folder.with_name(f"{_TEMPORARY}{folder.name}-old-{os.getpid()}")
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"The checkpoint {path} is damaged or foreign: {why}.")

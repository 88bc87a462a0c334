"""How much memory keys and values may take, and how many conversations that is enough for."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from algos.rollout.lean import FIRST

SHARE = 0.9  # of what is free goes to keys and values at the most; the passes need some, too
STEP = 64  # columns that a cache grows by where doubling does not fit


def cache_bytes(slots: int, columns: int, token_bytes: int) -> int:
    """Bytes of a cache, whose padding has a column of its own."""
    return slots * (columns + 1) * token_bytes


def cache_shape(
    needed: int, *, slots: int, columns: int, capacity: int, token_bytes: int, layers: int, memory: float
) -> tuple[int, int]:
    """How many slots of how many columns a cache gets that must grow.

    All slots with twice the columns, if the memory allows; else all with about as many columns as are needed; else as
    many slots as fit, which may be none. One layer's share of the memory is left free: a cache moves into a larger
    one layer by layer.

    Args:
        needed: Columns that must be there.
        slots: Conversations that were asked for.
        columns: Columns that there are.
        capacity: Most columns.
        token_bytes: Bytes of a column of a slot, over all layers.
        layers: Layers that the bytes are spread over.
        memory: Most bytes, also while the cache moves.
    """
    most = memory * layers / (layers + 1)
    rounded = min(-(-needed // STEP) * STEP, capacity)
    for wide in (min(max(needed, 2 * columns, FIRST), capacity), rounded):
        if cache_bytes(slots, wide, token_bytes) <= most:
            return slots, wide
    return int(most // cache_bytes(1, rounded, token_bytes)), rounded


def free_bytes(device: torch.device) -> int:
    """Bytes that a device, or this machine for all but CUDA devices, could still give to this process."""
    if device.type == "cuda":
        # What torch has taken from the device and does not use is free to us as well.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min([int(psutil.virtual_memory().available), *container_bytes()])


def container_bytes(
    process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """What is left under each memory limit of the control groups (version 2) that this process is in.

    The page cache that the kernel would give back does not count as used.

    Args:
        process: Names the process's group.
        root: Where groups are mounted.
    """
    try:
        [path] = [line[3:] for line in process.read_text().splitlines() if line.startswith("0::")]
    except (OSError, ValueError):
        return []  # no such groups: not Linux, or version 1
    left: list[int] = []
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        try:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # the root has no limit, and other folders are no groups
            continue
        if limit != "max":
            left.append(max(0, int(limit) - used + int(stat.get("inactive_file", 0))))
    return left


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the machine's memory is spent."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)

"""What a device gives at its best: a copy of much memory, and a large product. Measured, not looked up."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.peers.serve import timed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def limits(device: torch.device, dtype: str) -> dict[str, float]:
    """``bandwidth`` in bytes a second, read and written, and ``products`` in operations a second, in this precision."""
    large = device.type != "cpu"
    return {
        "bandwidth": copy_bandwidth(device, 2**30 if large else 2**24),
        "products": product_rate(device, DTYPES[dtype], 8192 if large else 256),
    }


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second that a copy of ``size`` bytes reads and writes; caches are smaller where the size is a GPU's."""
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _least(lambda: target.copy_(source))


def product_rate(device: torch.device, dtype: torch.dtype, n: int) -> float:
    """Operations a second of a product of two square matrices of random numbers, with the default settings."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype, generator=_generator(device)) for _ in range(2))
    return 2.0 * n**3 / _least(lambda: torch.mm(a, b))


def _least(work: Callable[[], object], repeats: int = 5, rounds: int = 4) -> float:
    """Least wall seconds of ``work``: several at a time, so that what a launch costs is hidden."""

    def several() -> None:
        for _ in range(repeats):
            work()

    several()  # warm
    return min(timed(several)[1]["wall"] for _ in range(rounds)) / repeats


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)

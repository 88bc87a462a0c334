"""Where the CPU seconds of an update go, operation by operation, and how near its matrix products come to the machine.

Each operation is timed where autograd hands it to the kernel, in CPU seconds of the calling thread: that holds on a
shared machine, and needs one thread. The limit is the best rate of the same products alone, in the same memory layout,
repeated on warm operands, by the faster of two libraries (``algos.policies.products``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from algos.policies.products import has_onednn, times

LARGE = 1e7  # floating-point operations of a product that counts as large
KINDS = {
    "products": ("mm", "addmm", "_linear_pointwise"),
    "attention": ("bmm", "baddbmm", "_softmax", "_scaled_dot_product"),
    "optimiser": ("_fused_adam", "_foreach"),
    "softmax of the logits": ("_log_softmax",),
}


@dataclass
class Product:
    """A matrix product [m,k] x [k,n] and the memory layout of its operands."""

    m: int
    k: int
    n: int
    strides: tuple[tuple[int, ...], tuple[int, ...]]
    calls: int = 0
    seconds: float = 0.0

    @property
    def operations(self) -> float:
        """Floating-point operations of one call."""
        return 2.0 * self.m * self.k * self.n


class Stopwatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every operation that is dispatched inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: dict[str, float] = {}
        self.products: dict[tuple[Any, ...], Product] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation."""
        start = time.thread_time()
        result = func(*args, **(kwargs or {}))
        took = time.thread_time() - start
        name = func.overloadpacket.__name__
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        if name in ("mm", "addmm", "_linear_pointwise"):
            a, b = (args[0], args[1].t()) if name == "_linear_pointwise" else args[-2:]
            (m, k), n = a.shape, b.shape[1]
            key = (m, k, n, a.stride(), b.stride())
            product = self.products.setdefault(key, Product(m, k, n, (a.stride(), b.stride())))
            product.calls += 1
            product.seconds += took
        return result


def of_update(update: Callable[[], None]) -> dict[str, Any]:
    """Takes one update apart.

    Returns:
        ``cpu`` of the whole, ``shares`` by kind of operation (the rest is Python and dispatch), and of the large
        products: ``gflops`` reached, ``limit_gflops`` (the same products alone), ``square_gflops`` (the best rate of a
        square product of 1,024), and ``of_limit``, the ratio of the first two.
    """
    start = time.thread_time()
    with Stopwatch() as watch:
        update()
    cpu = time.thread_time() - start
    large = [p for p in watch.products.values() if p.operations >= LARGE]
    work = sum(p.operations * p.calls for p in large)
    seconds = sum(p.seconds for p in large)
    alone = sum(p.calls * p.operations / limit(p) for p in large)
    square = Product(1024, 1024, 1024, ((1024, 1), (1024, 1)))
    return {
        "cpu": cpu,
        "shares": _shares(watch.seconds, cpu),
        "operations": dict(sorted(((n, s / cpu) for n, s in watch.seconds.items()), key=lambda x: -x[1])[:12]),
        "gflops": work / seconds / 1e9 if seconds else 0.0,
        "limit_gflops": work / alone / 1e9 if alone else 0.0,
        "square_gflops": limit(square) / 1e9,
        "of_limit": alone / seconds if seconds else 0.0,
        "large_share": seconds / cpu,
    }


def limit(product: Product, enough: float = 0.03) -> float:
    """Best rate of a product alone, by the faster library, in operations per CPU second.

    Each library repeats it for ``enough`` seconds in all.
    """
    one = _best(product, enough, lambda a, b: torch.mm(a, b))
    return max(one, _best(product, enough, lambda a, b: times(a, b.t()))) if has_onednn(torch.empty(1)) else one


def _best(product: Product, enough: float, multiply: Callable[[Tensor, Tensor], Tensor]) -> float:
    a = _empty((product.m, product.k), product.strides[0])
    b = _empty((product.k, product.n), product.strides[1])
    best, spent = float("inf"), 0.0
    with torch.inference_mode():
        while spent < enough:
            start = time.thread_time()
            multiply(a, b)
            took = time.thread_time() - start
            best, spent = min(best, max(took, 1e-9)), spent + took
    return product.operations / best


def _empty(shape: tuple[int, int], strides: tuple[int, ...]) -> Tensor:
    size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides))
    return torch.rand(size).as_strided(shape, strides)


def _shares(seconds: Mapping[str, float], whole: float) -> dict[str, float]:
    shares = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for name, took in seconds.items():
        kind = next((k for k, names in KINDS.items() if name.startswith(names)), "other operations")
        shares[kind] += took / whole
    return shares | {"Python and dispatch": max(0.0, 1 - sum(shares.values()))}

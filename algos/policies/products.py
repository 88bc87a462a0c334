"""Products with a matrix, by the faster of two libraries.

On processors without Intel's name MKL, which ``torch.mm`` calls, leaves the wide vector units alone: oneDNN, which
torch ships too, computes the same float32 products more than twice as fast there (a square of 1,024: 240 instead of
105 GFLOP/s on one Zen 5 core). A call of it costs ten microseconds more, so that small products stay with MKL. Torch
offers it for inference only, by the operators that ``torch.compile`` uses.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from algos.policies.plain import LINEAR, is_plain

LARGE = 2**19  # multiplications from which oneDNN is the faster one, its overhead included


class Product:
    """``x @ weight + bias``.

    Args:
        weight: [K,N], contiguous.
        bias: [N].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self._transposed, self._size = weight.t(), weight.numel()
        self._onednn = has_onednn(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """[n,K] -> [n,N]."""
        if self._onednn and len(x) * self._size >= LARGE:
            return times(x, self._transposed, self.bias)
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def onto(self, base: Tensor, x: Tensor) -> Tensor:
        """``base`` plus the product without its bias, [n,N]."""
        if self._onednn and len(x) * self._size >= LARGE:
            total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, base, self._transposed, None, "add")
            return total
        return torch.addmm(base, x, self.weight)


def linear(module: Any, x: Tensor) -> Tensor:
    """``module(x)`` with a gradient, for ``x`` [n,K]: a plain ``torch.nn.Linear`` goes to the faster library."""
    if is_large(module, x):
        return cast(Tensor, _Linear.apply(x, module.weight, module.bias))  # type: ignore[no-untyped-call]
    return cast(Tensor, module(x))


def is_large(module: Any, x: Tensor) -> bool:
    """Whether ``module(x)`` is no more than a float32 product, and large enough for oneDNN to be faster."""
    if not is_plain(module, LINEAR) or x.dtype != torch.float32:
        return False
    large = len(x) * module.weight.numel() >= LARGE
    return large and has_onednn(module.weight) and not torch.is_autocast_enabled("cpu")


class _Linear(torch.autograd.Function):
    """``x @ weight.T + bias`` and its gradients, [n,K] x [N,K] -> [n,N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return times(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            times(grad, weight.t()) if to_x else None,
            times(grad.t(), x.t()) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` by oneDNN, [n,K] x [N,K] -> [n,N]. Both may be transposed views, not slices."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def has_onednn(weight: Tensor) -> bool:
    """Whether oneDNN can multiply with this matrix in full float32 precision."""
    return (
        weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def rounded(rows: int) -> int:
    """``rows``, or up to a sixteenth more: oneDNN makes a kernel for every number of rows, and keeps 1,024."""
    step = 1 << max(0, rows.bit_length() - 5)
    return -(-rows // step) * step

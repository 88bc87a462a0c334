"""Pieces of a transformer's layer with backward passes of their own: fewer passes over memory than autograd's.

Axes: n tokens, D hidden size, E width of a head, F width of the MLP.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from algos.policies.products import is_large, linear, times


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` (Zhang and Sennrich 2019, arXiv 1910.07467).

    Args:
        x: ``[n,D]`` float32.
        weight: ``[D]``.
        eps: Added to the mean square.
    """
    return cast(Tensor, _RmsNorm.apply(x, weight, eps))  # type: ignore[no-untyped-call]


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864), first half of a head against the second.

    Args:
        x: ``[n,heads,E]``.
        cosine: ``[n,1,E/2]`` of the angles, times whatever is to scale the result.
        sine: ``[n,1,E/2]``.

    Returns:
        ``[n,heads,E]`` in the type of the angles.
    """
    return cast(Tensor, _Rotate.apply(x.to(cosine.dtype), cosine, sine))  # type: ignore[no-untyped-call]


def gated(gate: Tensor, up: Tensor, down: Any) -> Tensor:
    """``down(silu(gate) * up)`` (Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202).

    The product is computed again in the backward pass: of an MLP's activations, which are most of a layer's, a half
    is kept instead of all.

    Args:
        gate: ``[n,F]``.
        up: ``[n,F]``.
        down: A module that is applied to ``[n,F]``.
    """
    if is_large(down, gate) and down.bias is None:
        return cast(Tensor, _Gated.apply(gate, up, down.weight))  # type: ignore[no-untyped-call]
    return linear(down, F.silu(gate) * up)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return times(F.silu(gate).mul_(up), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gate, up, weight = ctx.saved_tensors
        open_ = F.silu(gate)
        to_weight = times(grad.t(), (open_ * up).t()) if ctx.needs_input_grad[2] else None
        inner = times(grad, weight.t())  # [n,F]
        to_up = open_.mul_(inner)
        return torch.ops.aten.silu_backward(inner.mul_(up), gate), to_up, to_weight


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()  # [n,1]
        normed: Tensor = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normed, scale, weight = ctx.saved_tensors
        along = grad * normed
        mean = along.mv(weight)[:, None].div_(-weight.shape[0])  # of grad * weight along the normed row
        to_weight = along.new_ones(1, len(along)).mm(along)[0] if ctx.needs_input_grad[1] else None
        return torch.addcmul(grad * weight, normed, mean).mul_(scale), to_weight, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cosine, sine = ctx.saved_tensors
        return _rotated(grad, cosine, -sine), None, None


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    out: Tensor = torch.empty_like(x)
    (a, b), (first, second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cosine, out=first).addcmul_(b, sine, value=-1)
    torch.mul(b, cosine, out=second).addcmul_(a, sine)
    return out

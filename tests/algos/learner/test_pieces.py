"""Pieces with backward passes of their own: the same as autograd's, to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from algos.learner.pieces import gated, rms_norm, rotate
from algos.policies import products

SEEDS = st.integers(0, 10**6)
SIZES = st.integers(1, 9)


@settings(max_examples=30)
@given(SEEDS, SIZES, SIZES, st.sampled_from([1e-12, 1e-5, 0.5]))
def test_the_norm_and_its_gradients_are_right(seed: int, n: int, D: int, eps: float) -> None:
    """Against finite differences in float64, also where ``eps`` is most of the mean square."""
    draw = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((n, D), (D,)))
    expected = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, eps), expected)
    if x.pow(2).mean(-1).min() > 1e-2:  # finite differences of a norm of nothing say nothing
        inputs = (x.requires_grad_(), weight.requires_grad_())
        assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, eps), inputs)


@settings(max_examples=30)
@given(SEEDS, SIZES, st.integers(1, 3), st.integers(1, 4))
def test_the_rotation_and_its_gradient_are_right(seed: int, n: int, heads: int, half: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, heads, 2 * half, generator=draw, dtype=torch.float64)
    angle = torch.randn(n, 1, half, generator=draw, dtype=torch.float64)
    cosine, sine = angle.cos(), angle.sin()
    whole = [torch.cat([part, part], -1)[None, :, 0] for part in (cosine, sine)]
    expected, _ = apply_rotary_pos_emb(x[None], x[None], *whole, unsqueeze_dim=2)
    torch.testing.assert_close(rotate(x, cosine, sine), expected[0])
    assert torch.autograd.gradcheck(lambda x: rotate(x, cosine, sine), (x.requires_grad_(),))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_layer_and_its_gradients_are_those_of_torch(
    trained: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "LARGE", 1)
    draw = torch.Generator().manual_seed(0)
    down = torch.nn.Linear(7, 5, bias=bias).requires_grad_(trained)
    gate, up = (torch.randn(11, 7, generator=draw, requires_grad=True) for _ in range(2))
    upstream = torch.randn(11, 5, generator=draw)
    inputs = [gate, up, *(down.parameters() if trained else ())]
    ours, theirs = gated(gate, up, down), down(F.silu(gate) * up)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    pairs = zip(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream))
    for our, their in pairs:
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


def test_a_row_of_zeros_has_no_gradient_that_is_no_number() -> None:
    norm = LlamaRMSNorm(4)
    ours, theirs = (torch.zeros(2, 4, requires_grad=True) for _ in range(2))
    rms_norm(ours, norm.weight, norm.variance_epsilon).sum().backward()
    norm(theirs).sum().backward()
    assert ours.grad is not None and ours.grad.isfinite().all()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_rotation_takes_the_type_of_the_angles() -> None:
    """Under autocast queries are bfloat16 and angles are float32: what the model's own layer makes of it."""
    x, angle = torch.randn(2, 1, 4).bfloat16(), torch.zeros(2, 1, 2)
    assert torch.equal(rotate(x, angle.cos(), angle.sin()), x.float())


def test_a_gradient_of_a_gradient_is_refused() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    [grad] = torch.autograd.grad(rms_norm(x, torch.ones(4), 1e-6).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()

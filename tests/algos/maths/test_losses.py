from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from algos.base import Batch
from algos.maths.losses import (
    Level,
    clipped_surrogate,
    importance_ratio,
    policy_gradient,
    truncated_importance,
    value_loss,
)
from tests.algos.batches import batches, quick

LEVELS: tuple[Level, ...] = ("token", "turn", "sequence")
levels = st.sampled_from(LEVELS)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), x)[0]


def drawn(batch: Batch, seed: int, spread: float = 0.3) -> Tensor:
    """Log-probabilities near the old ones, 0 off action."""
    assert batch.old_logp is not None
    noise = torch.randn(
        batch.action.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return ((batch.old_logp + spread * noise) * batch.action).requires_grad_()


@quick
@given(batches(), levels, st.integers(0, 99))
def test_ratio_is_the_geometric_mean_of_its_level(batch: Batch, level: Level, seed: int) -> None:
    assert batch.old_logp is not None
    logp = drawn(batch, seed)
    found = importance_ratio(logp, batch.old_logp, batch.turn, level)
    rho = (logp - batch.old_logp).exp()
    for b, t in batch.action.nonzero().tolist():
        same = {
            "token": torch.arange(batch.turn.shape[1]) == t,
            "turn": batch.turn[b] == batch.turn[b, t],
            "sequence": batch.action[b],
        }[level]
        expected = rho[b, same].prod() ** (1 / int(same.sum()))
        torch.testing.assert_close(found[b, t], expected, rtol=1e-12, atol=0)
    assert (found[~batch.action] == 1).all()


@quick
@given(batches(), levels)
def test_ratio_is_exactly_one_on_the_first_pass(batch: Batch, level: Level) -> None:
    assert batch.old_logp is not None
    assert (importance_ratio(batch.old_logp, batch.old_logp, batch.turn, level) == 1).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gap", [1e3, -1e3])
def test_a_ratio_stays_finite_however_far_the_policies_are(level: Level, gap: float) -> None:
    logp = torch.full((1, 2), gap, requires_grad=True)
    ratio = importance_ratio(logp, torch.zeros(1, 2), torch.tensor([[0, 0]]), level)
    assert ratio.isfinite().all() and ratio.square().isfinite().all()
    assert gradient(ratio, logp).isfinite().all()
    assert ratio[0, 0].item() == pytest.approx(math.exp(math.copysign(20, gap)))


@quick
@given(batches(), levels, st.floats(-3, 3))
def test_at_ratio_one_the_gradient_is_that_of_reinforce(batch: Batch, level: Level, size: float) -> None:
    """The surrogate's first gradient, whatever its level, where the advantage is one number a level."""
    assert batch.old_logp is not None
    logp = batch.old_logp.clone().requires_grad_()
    advantage = size * batch.group.sign()[:, None].double() * batch.action
    if level == "turn":
        advantage = advantage * (1 + batch.turn)
    if level == "token":
        advantage = advantage + batch.value  # type: ignore[operator]
    ratio = importance_ratio(logp, batch.old_logp, batch.turn, level)
    loss, held = clipped_surrogate(ratio, advantage)
    assert (held == 0).all()
    expected = gradient(policy_gradient(logp, advantage), logp)
    torch.testing.assert_close(gradient(loss, logp), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(expected, -advantage)


ratios = st.floats(0.01, 5)
bounds = st.one_of(st.none(), st.floats(0.05, 0.9))


@quick
@given(ratios, st.floats(-3, 3), bounds, bounds)
def test_the_surrogate_is_the_worse_of_two(
    rho: float, a: float, low: float | None, high: float | None
) -> None:
    ratio = torch.tensor([[rho]], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[a]], dtype=torch.float64)
    loss, held = clipped_surrogate(ratio, advantage, low, high)
    lower, upper = (0 if low is None else 1 - low), (math.inf if high is None else 1 + high)
    clipped = min(max(rho, lower), upper)
    assert loss.item() == pytest.approx(max(-rho * a, -clipped * a), rel=1e-12)
    slope = gradient(loss, ratio).item()
    assert slope == (0 if held.item() else pytest.approx(-a))
    assert not held.requires_grad
    assert bool(held.item()) == ((rho > upper and a > 0) or (rho < lower and a < 0))


def test_without_bounds_the_gradient_is_the_importance_weighted_one() -> None:
    logp = torch.tensor([[0.0, 3.0, -3.0]], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[1.0, 2.0, -2.0]], dtype=torch.float64)
    ratio = importance_ratio(logp, torch.zeros_like(logp), torch.zeros(1, 3).long())
    loss, held = clipped_surrogate(ratio, advantage, None, None)
    torch.testing.assert_close(gradient(loss, logp), -advantage * logp.exp())
    assert (held == 0).all()


sixtyfourths = st.integers(-192, 192).map(lambda n: n / 64)  # exact: rounding may put a value on the other side


@quick
@given(sixtyfourths, sixtyfourths, sixtyfourths, st.one_of(st.none(), st.integers(7, 64).map(lambda n: n / 64)))
def test_value_loss_is_the_worse_of_two(v: float, y: float, old: float, clip: float | None) -> None:
    value = torch.tensor([[v]], dtype=torch.float64, requires_grad=True)
    loss, held = value_loss(value, torch.tensor([[y]]).double(), torch.tensor([[old]]).double(), clip)
    near = v if clip is None else old + min(max(v - old, -clip), clip)
    assert loss.item() == pytest.approx(max((v - y) ** 2, (near - y) ** 2) / 2, rel=1e-5, abs=1e-6)
    if held.item():
        assert gradient(loss, value).item() == 0
        assert abs(near - y) > abs(v - y)
    elif abs(abs(near - y) - abs(v - y)) > 1e-6 or near == v:
        assert gradient(loss, value).item() == pytest.approx(v - y, abs=1e-5)
    assert not held.requires_grad


def test_the_bound_itself_is_free_and_no_advantage_is_never_held_back() -> None:
    ratio = torch.tensor([[1.25, 0.75, 9.0, 0.1]], requires_grad=True)
    advantage = torch.tensor([[1.0, -1.0, 0.0, 0.0]])
    loss, held = clipped_surrogate(ratio, advantage, low=0.25, high=0.25)
    assert (held == 0).all()
    assert torch.equal(gradient(loss, ratio), -advantage)


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_without_action_tokens_has_no_gradient_and_spoils_none(level: Level) -> None:
    turn = torch.tensor([[-1, -1], [0, -1]])
    logp = torch.zeros(2, 2, requires_grad=True)
    ratio = importance_ratio(logp, torch.zeros(2, 2), turn, level)
    assert gradient(ratio[turn >= 0], logp).tolist() == [[0, 0], [1, 0]]
    nobody = torch.full((1, 2), -1)
    assert importance_ratio(torch.zeros(1, 2), torch.zeros(1, 2), nobody, level).tolist() == [[1, 1]]


def test_the_bounds_of_the_paper_are_the_defaults() -> None:
    ratio, one = torch.tensor([[0.1, 9.0]]), torch.tensor([[-1.0, 1.0]])
    assert clipped_surrogate(ratio, one)[0].tolist() == [[pytest.approx(0.8), pytest.approx(-1.2)]]
    far = torch.tensor([[2.0]])
    assert value_loss(far, far, torch.zeros(1, 1))[0].item() == pytest.approx(1.8**2 / 2)


@pytest.mark.parametrize("level", LEVELS)
def test_finite_differences(level: Level) -> None:
    """Each loss against a numerical derivative, on all sides of every bound."""
    turn = torch.tensor([[0, 0, -1, 1, 1], [-1, 0, 0, 0, -1]])
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(5, 2, 5, generator=generator, dtype=torch.float64) * (turn >= 0)
    old, advantage, target, before, change = noise.unbind()

    def surrogate(logp: Tensor) -> Tensor:
        return clipped_surrogate(importance_ratio(logp, old, turn, level), advantage)[0]

    logp = (old + change).requires_grad_()
    assert torch.autograd.gradcheck(surrogate, (logp,))
    assert torch.autograd.gradcheck(lambda x: policy_gradient(x, advantage), (logp,))
    assert torch.autograd.gradcheck(lambda x: value_loss(x, target, before)[0], (logp,))
    assert torch.autograd.gradcheck(lambda x: value_loss(x, target, before, None)[0], (logp,))


@quick
@given(batches(), st.integers(0, 99), st.sampled_from((0.5, 1.0, 2.0)))
def test_truncated_importance_is_the_ratio_up_to_its_cap(batch: Batch, seed: int, cap: float) -> None:
    logp = drawn(batch, seed, spread=1.0)
    found = truncated_importance(logp, batch.behaviour_logp, cap)
    assert not found.requires_grad
    torch.testing.assert_close(found, (logp.detach() - batch.behaviour_logp).exp().clamp(max=cap), rtol=1e-12, atol=0)


def test_truncated_importance_cannot_overflow() -> None:
    far = torch.tensor([1e3, -1e3])
    assert truncated_importance(far, torch.zeros(2), 2.0).tolist() == [2.0, pytest.approx(math.exp(-20))]

"""The penalties against the exact divergence of two categorical distributions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from algos.base import KL, Batch, Minibatch, Placement, Scores
from algos.maths import kl as kls
from convgym.errors import ConfigError
from tests.algos.batches import Row, batch_of, batches, quick, row_lists


def policies(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of a policy, with gradient, and log-probabilities of a reference; six tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    return logits, torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)


def exact(logits: Tensor, reference: Tensor, *, forward: bool = False) -> Tensor:
    """Gradient of the reverse (or forward) divergence."""
    logp = logits.log_softmax(0)
    divergence = (reference.exp() * (reference - logp)) if forward else (logp.exp() * (logp - reference))
    return torch.autograd.grad(divergence.sum(), logits)[0]


def expected(placement: Placement, logits: Tensor, reference: Tensor) -> Tensor:
    """Expected gradient of the penalty in the loss, over the tokens of an on-policy sample."""
    logp = logits.log_softmax(0)
    old = logp.detach()
    penalty = kls.kl_in_loss(placement, logp, reference, old)
    return torch.autograd.grad((old.exp() * penalty).sum(), logits)[0]


def one_turn(reward: float, seed: int) -> Row:
    return Row(((1, 2),), (reward,), seed=seed)


seeds = st.integers(0, 999)


@quick
@given(seeds, st.sampled_from(("loss_k2", "loss_k3_is")))
def test_the_gradient_is_that_of_the_reverse_divergence(seed: int, placement: Placement) -> None:
    logits, reference = policies(seed)
    torch.testing.assert_close(expected(placement, logits, reference), exact(logits, reference))


@quick
@given(seeds)
def test_k3_in_the_loss_follows_the_forward_divergence(seed: int) -> None:
    logits, reference = policies(seed)
    torch.testing.assert_close(expected("loss_k3", logits, reference), exact(logits, reference, forward=True))


@quick
@given(seeds)
def test_k1_in_the_reward_has_the_gradient_of_the_reverse_divergence(seed: int) -> None:
    logits, reference = policies(seed)
    logp = logits.log_softmax(0)
    old = logp.detach()
    reward = -kls.log_ratio(old, reference)
    ascent = torch.autograd.grad((old.exp() * reward * logp).sum(), logits)[0]
    torch.testing.assert_close(-ascent, exact(logits, reference))


@quick
@given(seeds)
def test_k1_in_the_loss_has_no_expected_gradient_which_is_why_it_is_refused(seed: int) -> None:
    logits, reference = policies(seed)
    logp = logits.log_softmax(0)
    found = torch.autograd.grad((logp.detach().exp() * kls.log_ratio(logp, reference)).sum(), logits)[0]
    torch.testing.assert_close(found, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match=r"loss_k1.*reward_k1"):
        KL(0.1, "loss_k1")  # type: ignore[arg-type]


@quick
@given(seeds)
def test_k3_is_an_unbiased_value(seed: int) -> None:
    logits, reference = policies(seed)
    logp = logits.log_softmax(0).detach()
    divergence = (logp.exp() * (logp - reference)).sum()
    torch.testing.assert_close((logp.exp() * kls.k3(kls.log_ratio(logp, reference))).sum(), divergence)


@quick
@given(st.floats(-40, 40))
def test_estimators_are_never_negative_and_zero_at_equality(gap: float) -> None:
    d = kls.log_ratio(torch.tensor(gap, dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    assert abs(d.item()) <= 20 and (d.item() == gap or abs(gap) > 20)
    assert kls.k2(d) >= 0
    assert kls.k3(d) >= -1e-16 * abs(gap)  # rounding of a difference of equals
    zero = torch.zeros(())
    assert kls.k2(zero) == 0 and kls.k3(zero) == 0


PLACEMENTS: tuple[Placement, ...] = ("reward_k1", "loss_k2", "loss_k3", "loss_k3_is")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_finite_differences(placement: Placement) -> None:
    generator = torch.Generator().manual_seed(1)
    old, reference, logp = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    logp.requires_grad_()
    if placement == "reward_k1":
        assert (kls.kl_in_loss(placement, logp, reference, old) == 0).all()
    else:
        assert torch.autograd.gradcheck(lambda x: kls.kl_in_loss(placement, x, reference, old), (logp,))


@quick
@given(batches(), st.sampled_from(PLACEMENTS), st.sampled_from((0.0, 0.5)))
def test_the_penalty_in_the_reward(batch: Batch, placement: Placement, beta: float) -> None:
    assert batch.old_logp is not None and batch.ref_logp is not None
    old = batch.old_logp + 0.25 * batch.action  # not what the sampler saw
    penalty = kls.kl_in_reward(dataclasses.replace(batch, old_logp=old), KL(beta, placement))
    d = old - batch.ref_logp
    acts = placement == "reward_k1"
    torch.testing.assert_close(penalty, -beta * d * batch.action if acts else torch.zeros_like(d))
    sampler = kls.kl_in_reward(dataclasses.replace(batch, old_logp=None), KL(beta, placement))
    d = batch.behaviour_logp - batch.ref_logp
    torch.testing.assert_close(sampler, -beta * d * batch.action if acts else torch.zeros_like(d))


@quick
@given(row_lists())
def test_the_penalty_joins_the_rewards_of_the_turns_after_clipping(rows: list[Row]) -> None:
    batch = batch_of(rows)
    assert batch.old_logp is not None and batch.ref_logp is not None
    reward, valid = kls.penalised_rewards(batch, KL(2.0, "reward_k1"), clip=1.0)
    assert valid.all()
    for b, row in enumerate(rows):
        for k, r in enumerate(row.rewards):
            d = (batch.old_logp - batch.ref_logp)[b, batch.turn[b] == k]
            assert reward[b, k].item() == pytest.approx(max(-1, min(1, r)) - 2 * d.sum().item(), abs=1e-12)
        assert (reward[b, len(row.rewards) :] == 0).all()


def test_the_penalty_spares_episodes_that_are_set_aside() -> None:
    batch = batch_of([one_turn(float("nan"), 0), one_turn(1.0, 1)])
    reward, valid = kls.penalised_rewards(batch, KL(2.0, "reward_k1"))
    assert valid.tolist() == [False, True]
    assert (reward[0] == 0).all() and reward[1, 0] != 1


def test_what_is_off_action_is_not_penalised() -> None:
    batch = batch_of([one_turn(1.0, 0)])
    assert batch.ref_logp is not None
    noisy = dataclasses.replace(batch, ref_logp=batch.ref_logp + 3.0)
    assert (kls.kl_in_reward(noisy, KL(1.0, "reward_k1"))[~batch.action] == 0).all()


def test_the_penalty_asks_for_a_reference() -> None:
    batch = dataclasses.replace(batch_of([one_turn(1.0, 0)]), ref_logp=None)
    with pytest.raises(ConfigError, match="ref_logp"):
        kls.kl_in_reward(batch, KL(0.1, "reward_k1"))
    assert (kls.kl_in_reward(batch, KL(0.0, "reward_k1")) == 0).all()


@quick
@given(batches(), st.sampled_from(PLACEMENTS), st.sampled_from((0.0, 0.5)), st.sampled_from((0.0, 0.1)))
def test_regularisation_is_the_pull_less_the_bonus(
    batch: Batch, placement: Placement, beta: float, entropy: float
) -> None:
    assert batch.old_logp is not None and batch.ref_logp is not None and batch.value is not None
    columns = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    data = Minibatch(**columns, advantage=torch.zeros_like(batch.value))
    scores = Scores(batch.old_logp + 0.1 * batch.action, batch.value.abs())
    term, metrics = kls.regularisation(scores, data, KL(beta, placement), entropy)
    pull = kls.kl_in_loss(placement, scores.logp, batch.ref_logp, batch.old_logp)
    torch.testing.assert_close(term, beta * pull - entropy * scores.entropy)
    assert torch.equal(metrics["entropy"], scores.entropy)
    shift = 0.1 * batch.action.double()  # logp - old_logp
    torch.testing.assert_close(metrics["kl"], shift.exp() - 1 - shift)
    assert ("kl_ref" in metrics) == (beta > 0)
    if beta > 0:
        torch.testing.assert_close(metrics["kl_ref"], kls.k3(scores.logp - batch.ref_logp))


def test_the_penalty_in_the_reward_carries_no_gradient() -> None:
    """Even of log-probabilities that have one: what acts in the reward must not act in the loss as well."""
    batch = batch_of([Row(((1, 2),), (1.0,))])
    assert batch.old_logp is not None
    batch = dataclasses.replace(batch, old_logp=batch.old_logp.clone().requires_grad_())
    found = kls.kl_in_reward(batch, KL(0.5, "reward_k1"))
    assert not found.requires_grad and (found[batch.action] != 0).all()

"""What each algorithm makes of a batch: its own composition of the estimators."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import algos
from algos.base import KL, Batch, Minibatch, Scores
from algos.maths.advantages import on_last_token, returns_to_go, token_discount, whiten
from algos.maths.kl import kl_in_reward
from algos.maths.losses import value_loss
from convgym.errors import ConfigError
from tests.algos.batches import ZOO, Row, batch_of, batches, quick


def returns(batch: Batch) -> torch.Tensor:
    return batch.reward.sum(1)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# REINFORCE -------------------------------------------------------------------------------------------


@quick
@given(batches(min_size=2))
def test_reinforce_subtracts_its_baseline(batch: Batch) -> None:
    plain = algos.make("reinforce", baseline="none").credit(batch)
    close(plain.advantage, returns(batch)[:, None] * batch.action)
    centred = algos.make("reinforce").credit(batch)
    close(centred.advantage, (returns(batch) - returns(batch).mean())[:, None] * batch.action)


@quick
@given(st.lists(batches(), min_size=1, max_size=4), st.sampled_from((0.0, 0.5, 0.9)))
def test_the_running_baseline_knows_earlier_batches_only(many: list[Batch], decay: float) -> None:
    algorithm = algos.make("reinforce", baseline="ema", decay=decay)
    state: dict[str, float] = {}
    running: float | None = None
    for batch in many:
        credit = algorithm.credit(dataclasses.replace(batch, state=state))
        mean = float(returns(batch).mean())
        baseline = mean if running is None else running
        close(credit.advantage, (returns(batch) - baseline)[:, None] * batch.action)
        running = decay * baseline + (1 - decay) * mean
        state = json.loads(json.dumps(dict(credit.state)))  # as through a checkpoint
        assert state == {"return_ema": pytest.approx(running)}


def test_a_batch_without_a_real_reward_leaves_the_running_baseline_alone() -> None:
    batch = batch_of([Row(((1, 1),), (math.nan,))])
    algorithm = algos.make("reinforce", baseline="ema")
    assert algorithm.credit(batch).state == {}
    remembered = dataclasses.replace(batch, state={"return_ema": 0.25, "other": 3.0})
    assert algorithm.credit(remembered).state == {"return_ema": 0.25, "other": 3.0}


@pytest.mark.parametrize("name", ZOO)
def test_state_that_an_algorithm_does_not_know_passes_through(name: str) -> None:
    batch = dataclasses.replace(batch_of([Row(((1, 1),), (1.0,))]), state={"other": 3.0})
    assert ZOO[name].credit(batch).state["other"] == 3.0


# GRPO ------------------------------------------------------------------------------------------------


@quick
@given(batches(), st.sampled_from(("group_mean", "group_median", "leave_one_out", "none")))
def test_gae_without_a_critic_is_exactly_the_outcome(batch: Batch, baseline: str) -> None:
    assert batch.value is not None and batch.bootstrap is not None
    nothing = {"value": torch.zeros_like(batch.value), "bootstrap": torch.zeros_like(batch.bootstrap)}
    outcome = algos.make("grpo", baseline=baseline).credit(batch)
    spread = algos.make("grpo", baseline=baseline, assignment="gae", lam=1.0)
    found = spread.credit(dataclasses.replace(batch, **nothing))  # type: ignore[arg-type]
    assert torch.equal(found.advantage, outcome.advantage)
    assert found.target is not None and torch.equal(found.target, outcome.advantage)


@quick
@given(batches(), st.sampled_from((0.5, 1.0)))
def test_process_is_the_outcome_where_all_reward_comes_at_the_end(batch: Batch, gamma: float) -> None:
    last = (batch.n_turns - 1)[:, None]
    at_end = torch.zeros_like(batch.reward).scatter(1, last, returns(batch)[:, None])
    batch = dataclasses.replace(batch, reward=at_end)
    outcome = algos.make("grpo", scale="none").credit(batch).advantage
    process = algos.make("grpo", scale="none", assignment="process").credit(batch).advantage
    close(process, outcome)
    # and with a discount, the turns before the end see less of it
    discounted = algos.make("grpo", baseline="none", scale="none", assignment="process", gamma_turn=gamma)
    left = (batch.n_turns[:, None] - 1 - batch.turn).clamp(min=0)
    expected = returns(batch)[:, None] * gamma**left * batch.action
    close(discounted.credit(batch).advantage, expected)


@quick
@given(batches(), st.sampled_from((0.5, 1.0)))
def test_outcome_and_process_by_hand(batch: Batch, gamma: float) -> None:
    to_go = returns_to_go(batch.reward, gamma)
    for assignment in ("outcome", "process"):
        credit = algos.make("grpo", scale="none", assignment=assignment, gamma_turn=gamma).credit(batch)
        for b in range(batch.size):
            members = to_go[batch.group == batch.group[b], 0]
            for t in batch.action[b].nonzero().flatten().tolist():
                own = to_go[b, batch.turn[b, t] if assignment == "process" else 0]
                expected = own - members.mean() if members.min() < members.max() else 0 * own
                close(credit.advantage[b, t], expected)


@quick
@given(batches())
def test_masked_truncated_rows_still_count_in_their_group(batch: Batch) -> None:
    plain, masked = algos.make("grpo").credit(batch), algos.make("grpo", mask_truncated=True).credit(batch)
    assert torch.equal(masked.advantage, plain.advantage)
    assert masked.keep is not None and torch.equal(masked.keep, batch.terminated)
    assert plain.keep is not None and plain.keep.all()


@quick
@given(batches(), st.sampled_from((0.5, 1.0, 5.0)))
def test_reward_clip_bounds_turns_before_anything_else(batch: Batch, clip: float) -> None:
    clipped = dataclasses.replace(batch, reward=batch.reward.clamp(-clip, clip))
    found = algos.make("grpo", reward_clip=clip).credit(batch)
    assert torch.equal(found.advantage, algos.make("grpo").credit(clipped).advantage)


@quick
@given(batches(min_size=2))
def test_k1_in_the_reward_is_part_of_the_return(batch: Batch) -> None:
    assert batch.old_logp is not None and batch.ref_logp is not None
    kl = KL(0.5, "reward_k1")
    gone = 0.5 * ((batch.old_logp - batch.ref_logp) * batch.action).sum(1)
    first = torch.zeros_like(batch.reward)
    first[:, 0] = gone
    poorer = dataclasses.replace(batch, reward=batch.reward - first)
    for name in ("grpo", "rloo", "reinforce"):
        close(algos.make(name, kl=kl).credit(batch).advantage, algos.make(name).credit(poorer).advantage)


def test_gae_in_grpo_discounts_and_never_bootstraps() -> None:
    rows = [
        Row(((1, 1), (1, 1)), (1.0, 1.0), seed=1),
        Row(((1, 1), (1, 1)), (0.0, 0.0), terminated=False, seed=2),
    ]
    batch = batch_of(rows)
    assert batch.value is not None
    batch = dataclasses.replace(batch, value=torch.zeros_like(batch.value), bootstrap=torch.tensor([8.0, 8.0]).double())
    algorithm = algos.make("grpo", assignment="gae", scale="none", gamma_turn=0.5, gamma_token=0.5, lam=1.0)
    found = algorithm.credit(batch).advantage[:, [1, 3]]
    # returns 2 and 0, centred 1 and -1; a step to the next turn costs 1/4; V(s_T) = 8 is not asked
    close(found, torch.tensor([[0.25, 1.0], [-0.25, -1.0]]).double())


@quick
@given(batches())
def test_gae_in_grpo_regresses_on_advantage_plus_value(batch: Batch) -> None:
    assert batch.value is not None
    credit = algos.make("grpo", assignment="gae", lam=1.0).credit(batch)
    outcome = algos.make("grpo").credit(batch).advantage
    assert credit.target is not None
    close(credit.advantage, credit.target - batch.value)
    close(credit.target, outcome)  # with lambda 1 the target is the centred return, whole, cut or not


# PPO -------------------------------------------------------------------------------------------------


@quick
@given(batches())
def test_ppo_by_hand(batch: Batch) -> None:
    assert batch.value is not None and batch.bootstrap is not None
    fields = {"gamma_turn": 0.9, "gamma_token": 0.8, "lam": 0.7, "kl": KL(0.5, "reward_k1")}
    plain = algos.make("ppo", whiten=False, **fields).credit(batch)
    reward = on_last_token(batch.reward, batch.turn) + kl_in_reward(batch, KL(0.5, "reward_k1"))
    discount = token_discount(batch.turn, 0.8, 0.9)
    for b in range(batch.size):
        running = torch.zeros((), dtype=torch.float64)
        v_next = batch.bootstrap[b] * ~batch.terminated[b]
        for t in reversed(batch.action[b].nonzero().flatten().tolist()):
            delta = reward[b, t] + discount[b, t] * v_next - batch.value[b, t]
            running = delta + discount[b, t] * 0.7 * running
            v_next = batch.value[b, t]
            close(plain.advantage[b, t], running)
    assert plain.target is not None and plain.critic_at is not None
    close(plain.target, plain.advantage + batch.value)
    assert torch.equal(plain.critic_at, batch.action)
    white = algos.make("ppo", **fields).credit(batch)
    close(white.advantage, whiten(plain.advantage, batch.action))
    assert white.target is not None and torch.equal(white.target, plain.target)


def test_a_judged_end_is_not_bootstrapped_although_a_limit_cut_it() -> None:
    batch = batch_of([Row(((1, 1),), (1.0,), terminated=False, seed=i) for i in range(2)])
    zero, eight = torch.zeros_like(batch.behaviour_logp), torch.full((2,), 8.0, dtype=torch.float64)
    batch = dataclasses.replace(batch, value=zero, bootstrap=eight, judged=torch.tensor([True, False]))
    credit = algos.make("ppo", whiten=False, gamma_turn=0.5).credit(batch)
    assert credit.advantage.sum(1).tolist() == [1.0, 1.0 + 0.5 * 8.0]


def test_ppo_whitens_over_tokens_that_are_kept() -> None:
    rows = [Row(((1, 2),), (r,), seed=i) for i, r in enumerate((1.0, 0.0, math.nan))]
    credit = algos.make("ppo").credit(batch_of(rows))
    inside = credit.advantage[:2][batch_of(rows).action[:2]]
    assert abs(float(inside.mean())) < 1e-12 and float(inside.std()) == pytest.approx(1)
    assert (credit.advantage[2] == 0).all()
    assert credit.critic_at is not None and not credit.critic_at[2].any()


@pytest.mark.parametrize(("name", "fields"), [("ppo", {}), ("grpo", {"assignment": "gae"})])
def test_the_value_loss_is_weighted_and_trains_where_it_should(name: str, fields: dict[str, Any]) -> None:
    batch = batch_of([Row(((1, 2),), (1.0,), seed=1), Row(((1, 2),), (0.0,), seed=2)])
    old_value = batch.value
    assert batch.old_logp is not None and old_value is not None
    algorithm = algos.make(name, value_coef=0.25, value_clip=0.1, **fields)
    data = Minibatch.of(batch, algorithm.credit(batch))
    assert data.target is not None and data.critic_at is not None
    data = dataclasses.replace(data, critic_at=data.critic_at & (data.turn == 0) & (old_value > 0))
    value = old_value + 0.3 * batch.action
    with_critic, metrics = algorithm.loss(Scores(batch.old_logp, batch.old_logp, value), data)
    nowhere = dataclasses.replace(data, critic_at=data.action & False)
    without, _ = algorithm.loss(Scores(batch.old_logp, batch.old_logp, value), nowhere)
    assert data.target is not None and data.critic_at is not None
    expected = value_loss(value, data.target, old_value, 0.1)[0] * data.critic_at
    close(metrics["value_loss"], expected)
    close(with_critic - without, 0.25 * expected)
    assert (expected != 0).any() and (expected[data.action] == 0).any()


@pytest.mark.parametrize(
    ("name", "field"), [("ppo", "value"), ("ppo", "bootstrap"), ("ppo", "old_logp"), ("grpo", "old_logp")]
)
def test_what_the_learner_forgot_is_named(name: str, field: str) -> None:
    empty: dict[str, Any] = {field: None}
    batch = dataclasses.replace(batch_of([Row(((1, 2),), (1.0,))]), **empty)
    algorithm = algos.make(name)
    with pytest.raises(ConfigError, match=f"`{field}` is empty"):
        data = Minibatch.of(batch, algorithm.credit(batch))
        algorithm.loss(Scores(batch.behaviour_logp, batch.behaviour_logp, batch.value), data)


@quick
@given(batches(), st.sampled_from(("token", "turn", "sequence")))
def test_bounds_of_the_ratio_reach_the_loss(batch: Batch, level: str) -> None:
    """Far above and below 1 the loss is the bound times the advantage, on the side where it is worse."""
    assert batch.old_logp is not None
    for name, fields in (("grpo", {"ratio": level}), ("ppo", {})):
        algorithm = algos.make(name, low=0.1, high=0.4, **fields)
        data = Minibatch.of(batch, algos.make("bc").credit(batch))
        zero = torch.zeros_like(batch.old_logp)
        data = dataclasses.replace(data, target=zero, critic_at=batch.action & False)
        for shift, sign, bound in ((2.0, 1, 1.4), (-2.0, -1, 0.9)):
            now = dataclasses.replace(data, advantage=sign * data.advantage)
            logp = (batch.old_logp + shift) * batch.action
            loss, metrics = algorithm.loss(Scores(logp, zero, zero), now)
            close(loss[batch.action], torch.full_like(loss[batch.action], -sign * bound))
            assert (metrics["clip_share"][batch.action] == 1).all()


def test_bc_imitates_and_looks_at_no_reward() -> None:
    batch = batch_of([Row(((1, 2),), (math.nan,)), Row(((2, 1),), (-5.0,))])
    credit = algos.make("bc").credit(batch)
    assert torch.equal(credit.advantage, batch.action.double()) and credit.keep is None

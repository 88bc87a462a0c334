"""What an algorithm as it is registered inherits from the mathematics: units and origin of rewards, sums, no bounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import algos
from algos.base import Algorithm, Batch, Minibatch, Scores
from algos.maths.losses import Level, importance_ratio
from tests.algos.batches import ZOO, batches, gradient_of, judged, observed, rewards_of_one, score, table
from tests.algos.test_zoo import a_batch, plain_of

few = settings(max_examples=5, deadline=None)

CLIPPED = {"grpo_advantage_clip"}
GROUPS = {"grpo", "dr_grpo", "rloo", "dapo", "lite_ppo", "gspo", "cispo", "sapo", "gmpo", "gigpo"} | CLIPPED
WHITENED = {"reinforce_pp", "reinforce_pp_baseline", "rebn"}
SHIFT_FREE = GROUPS | WHITENED | {"reinforce", "awr", "bc"}  # maxrl counts in means, remax has a baseline of its own
UNIT_FREE = (GROUPS - {"dr_grpo", "rloo"}) | WHITENED | {"maxrl", "awr", "bc", "raft"}
LINEAR = {"dr_grpo", "rloo", "reinforce"}


def made(name: str) -> Algorithm:
    """The algorithm, without what would tell units apart, and with one discount for all turns."""
    divides = name in GROUPS - LINEAR | {"maxrl"}
    fields: dict[str, Any] = ({"eps": 0} if divides else {}) | ({"gamma_step": 1.0} if name == "gigpo" else {})
    return algos.make(name, **fields)


def shifted(batch: Batch, by: float) -> Batch:
    """Every conversation earns so much more at its end."""
    more = torch.zeros_like(batch.reward).scatter(1, (batch.n_turns - 1)[:, None], by)
    return dataclasses.replace(batch, reward=batch.reward + more)


def advantage(name: str, batch: Batch) -> Tensor:
    return made(name).credit(batch).advantage


def alike(found: Tensor, expected: Tensor) -> bool:
    """Equal up to the constants that are added to what divides (1e-6 in awr, 1e-8 in whitening)."""
    return bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-6))


@pytest.mark.parametrize("name", sorted(SHIFT_FREE))
@few
@given(batches(min_size=2), rewards_of_one)
def test_a_shift_of_all_rewards_changes_no_advantage(name: str, batch: Batch, by: float) -> None:
    assert alike(advantage(name, shifted(batch, by)), advantage(name, batch))


@pytest.mark.parametrize("name", sorted(UNIT_FREE | LINEAR))
@few
@given(batches(min_size=2), st.sampled_from((0.25, 8.0)))
def test_the_unit_of_reward_changes_no_advantage_or_scales_it(name: str, batch: Batch, unit: float) -> None:
    scaled = dataclasses.replace(batch, reward=unit * batch.reward)
    assert alike(advantage(name, scaled), (unit if name in LINEAR else 1.0) * advantage(name, batch))


def test_the_others_do_change() -> None:
    """So that the lists are complete: whoever is not in one of them depends on origin or unit."""
    batch = a_batch()
    moved = {n for n in algos.names() if not alike(advantage(n, shifted(batch, 0.75)), advantage(n, batch))}
    assert moved == set(algos.names()) - SHIFT_FREE
    scaled = dataclasses.replace(batch, reward=8 * batch.reward)
    moved = {n for n in algos.names() if not alike(advantage(n, scaled), advantage(n, batch))}
    assert moved == set(algos.names()) - UNIT_FREE


@pytest.mark.parametrize("name", sorted(GROUPS - CLIPPED - {"gigpo"} | {"maxrl"}))
@few
@given(batches(min_size=2))
def test_advantages_of_the_episodes_of_a_group_sum_to_zero(name: str, batch: Batch) -> None:
    found = advantage(name, batch)
    episode = found.sum(1) / batch.action.sum(1)
    for group in batch.group.unique():
        assert abs(float(episode[batch.group == group].sum())) < 1e-9


# Without bounds ----------------------------------------------------------------------------------------


def unbounded(algorithm: Algorithm) -> Algorithm | None:
    """The algorithm with its bounds moved out of sight; none if it has no hard bounds of a ratio."""
    if isinstance(algorithm, type(ZOO["sapo"]) | type(ZOO["grpo_advantage_clip"])) or not hasattr(algorithm, "high"):
        return None
    bounds: dict[str, Any] = {"high": 1e9} if isinstance(algorithm, type(ZOO["cispo"])) else {"low": None, "high": None}
    return dataclasses.replace(plain_of(algorithm), **bounds)


FREE = {name: a for name, given_ in ZOO.items() if (a := unbounded(given_)) is not None}


@pytest.mark.parametrize("name", FREE)
@settings(max_examples=3, deadline=None)
@given(batches(min_size=2))
def test_without_bounds_the_gradient_is_the_importance_weighted_one(name: str, batch: Batch) -> None:
    """``-w rho A`` off-policy, rho at the algorithm's level, where a row or a turn has one ratio, one w and one A."""
    algorithm, batch = FREE[name], observed(batch)
    _, data, weights = judged(algorithm, batch)
    assume(bool((weights * data.advantage != 0).any()))
    now = score(batch, table(7))
    assert data.old_logp is not None
    logp = now.logp.detach().requires_grad_()
    loss, metrics = algorithm.loss(Scores(logp, now.entropy.detach(), data.value), data)
    gradient = torch.autograd.grad((weights * loss)[data.action].sum(), logp)[0]
    rho = importance_ratio(logp.detach(), data.old_logp, data.turn, level(algorithm))
    torch.testing.assert_close(gradient, -weights * rho * data.advantage, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(metrics["ratio"][data.action], rho[data.action])
    assert (metrics["clip_share"] == 0).all()


def level(algorithm: Algorithm) -> Level:
    found: Level = "sequence" if isinstance(algorithm, type(ZOO["gmpo"])) else getattr(algorithm, "ratio", "token")
    return found


def test_these_are_all_with_bounds() -> None:
    bounded = {name for name in algos.names() if hasattr(algos.make(name), "high")}
    assert bounded - set(FREE) == {"sapo"} | CLIPPED


@pytest.mark.parametrize("name", sorted(GROUPS | WHITENED | {"maxrl", "reinforce"}))
def test_returns_that_are_alike_give_exactly_no_gradient(name: str) -> None:
    """0.1 three times has a mean that is not 0.1: a rounding must not become an advantage."""
    batch = a_batch()
    last = (batch.n_turns - 1)[:, None]
    alike_all = torch.zeros_like(batch.reward).scatter(1, last, 0.1)
    batch = dataclasses.replace(batch, reward=alike_all)
    algorithm = made(name)
    data = Minibatch.of(batch, algorithm.credit(batch))
    assert (data.advantage == 0).all()
    assert (gradient_of(algorithm, batch)[1] == 0).all()

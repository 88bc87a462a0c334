"""Returns with a baseline (REINFORCE++, ReBN, ReMax) and clones of what went well (RAFT, TOPR, AWR)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import algos
from algos.base import KL, Algorithm, Batch, Minibatch, Scores
from algos.maths.advantages import returns_to_go, spread_turns
from algos.policies.load import Policy
from convgym.errors import ConfigError
from tests.algos.batches import Row, batch_of, batches, gradient_of, judged, observed, quick, rewards_of_one, row_lists
from tests.algos.learner.made import conversations, learner_of, weights

FAMILY = ("reinforce_pp", "reinforce_pp_baseline", "rebn", "remax", "raft", "topr", "awr")


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def returns(batch: Batch) -> Tensor:
    return batch.reward.sum(1)


# REINFORCE++ -----------------------------------------------------------------------------------------


def two_conversations() -> Batch:
    """``o a a o a`` that pays 1 and 2, and ``o a`` that pays 21/16, with set distances from the reference."""
    batch = batch_of([Row(((1, 2), (1, 1)), (1.0, 2.0), seed=1), Row(((1, 1),), (1.3125,), seed=2)])
    assert batch.old_logp is not None
    d = torch.tensor([[0, 0.25, 0.5, 0, -0.5], [0, 0, 0, 0, 0]], dtype=torch.float64)  # log pi_old - log pi_ref
    return dataclasses.replace(batch, ref_logp=batch.old_logp - d)


def test_reinforce_pp_by_hand() -> None:
    fields: dict[str, Any] = {"gamma_token": 0.5, "gamma_turn": 0.5, "kl": KL(1.0, "reward_k1")}
    # rewards of the tokens, with the KL: -1/4, 1 - 1/2, 2 + 1/2. From the last to the first:
    #   5/2;   1/2 + (1/2)(1/2) 5/2 = 9/8 across the end of the turn;   -1/4 + (1/2) 9/8 = 5/16
    plain = algos.make("reinforce_pp", whiten=False, **fields).credit(two_conversations())
    close(plain.advantage, torch.stack([numbers(0, 5 / 16, 9 / 8, 0, 5 / 2), numbers(0, 21 / 16, 0, 0, 0)]))
    # the episodes' returns are 5/16 and 21/16, their mean 13/16
    centred = algos.make("reinforce_pp_baseline", whiten=False, **fields).credit(two_conversations())
    close(centred.advantage, torch.stack([numbers(0, -1 / 2, 5 / 16, 0, 27 / 16), numbers(0, 1 / 2, 0, 0, 0)]))
    # the four tokens have mean 1/2 and deviations -1, -3/16, 19/16, 0
    std = math.sqrt((1 + 9 / 256 + 361 / 256) / 3)
    white = algos.make("reinforce_pp_baseline", **fields).credit(two_conversations())
    expected = torch.stack([numbers(0, -1, -3 / 16, 0, 19 / 16), numbers(0, 0, 0, 0, 0)]) / std
    close(white.advantage, expected, 1e-7)


@quick
@given(batches())
def test_reinforce_pp_without_its_pieces_is_the_return_from_each_turn_on(batch: Batch) -> None:
    plain = algos.make("reinforce_pp", whiten=False).credit(batch)
    close(plain.advantage, spread_turns(returns_to_go(batch.reward), batch.turn))
    last = (batch.n_turns - 1)[:, None]  # and where all reward comes at the end, the return itself
    at_end = torch.zeros_like(batch.reward).scatter(1, last, returns(batch)[:, None])
    outcome = algos.make("reinforce_pp", whiten=False).credit(dataclasses.replace(batch, reward=at_end))
    close(outcome.advantage, returns(batch)[:, None] * batch.action)


@quick
@given(batches(min_size=2))
def test_reinforce_pp_is_white_over_tokens_and_its_baseline_is_the_groups(batch: Batch) -> None:
    for name in ("reinforce_pp", "reinforce_pp_baseline"):
        white = algos.make(name).credit(batch).advantage[batch.action]
        if (white != 0).any():
            close(white.mean(), numbers(0)[0])
            close(white.std(), numbers(1)[0], 1e-6)
    centred = algos.make("reinforce_pp_baseline", whiten=False).credit(batch)
    plain = algos.make("reinforce_pp", whiten=False).credit(batch)
    for row in range(batch.size):
        members = returns(batch)[batch.group == batch.group[row]]
        expected = plain.advantage[row] - members.mean() * batch.action[row]
        dead = members.min() == members.max()  # a singleton, or nothing to choose between
        close(centred.advantage[row], torch.zeros_like(expected) if dead else expected)


def test_only_the_group_baseline_needs_groups() -> None:
    assert algos.make("reinforce_pp").needs == set()
    assert algos.make("reinforce_pp_baseline", kl=KL(0.01, "reward_k1")).needs == {"group", "reference"}
    assert algos.make("remax").needs == {"greedy"}


# ReBN ------------------------------------------------------------------------------------------------


def test_rebn_by_hand() -> None:
    rows = [Row(((1, 3), (1, 1)), (1.0, 2.0)), Row(((1, 1),), (0.0,), seed=1), Row(((2, 2),), (0.0,), seed=2)]
    # from each turn on, with gamma 1/2: 1 + 2/2 = 2 and 2; 0; 0. Mean 1, variance 4/3: each is half a root of 3 away
    advantage = algos.make("rebn", gamma_turn=0.5).credit(batch_of(rows)).advantage
    half = math.sqrt(3) / 2
    close(advantage[0], half * numbers(0, 1, 1, 1, 0, 1), 1e-7)
    close(advantage[1:], -half * torch.stack([numbers(0, 1, 0, 0, 0, 0), numbers(0, 0, 1, 1, 0, 0)]), 1e-7)


@quick
@given(row_lists(min_size=2), st.integers(1, 4), st.sampled_from((0.5, 1.0)))
def test_rebn_counts_each_turn_once_however_many_tokens_it_has(rows: list[Row], more: int, gamma: float) -> None:
    algorithm = algos.make("rebn", gamma_turn=gamma)
    longer = [row._replace(turns=((row.turns[0][0], row.turns[0][1] + more), *row.turns[1:])) for row in rows[:1]]

    def per_turn(batch: Batch) -> Tensor:
        """[number of turns] the advantage of each turn, which all of its tokens share."""
        advantage, out = algorithm.credit(batch).advantage, []
        for row in range(batch.size):
            for turn in range(int(batch.n_turns[row])):
                here = advantage[row][batch.turn[row] == turn]
                assert (here == here[0]).all()
                out.append(here[0])
        return torch.stack(out)

    batch = batch_of(rows)
    found = per_turn(batch)
    close(per_turn(batch_of([*longer, *rows[1:]])), found)
    if (found != 0).any():
        close(found.mean(), numbers(0)[0])
        close(found.std(), numbers(1)[0], 1e-6)


# ReMax -----------------------------------------------------------------------------------------------


@quick
@given(row_lists(min_size=2), rewards_of_one)
def test_remax_subtracts_a_number_that_no_sample_can_move(rows: list[Row], other: float) -> None:
    algorithm, batch = algos.make("remax"), batch_of(rows)
    assert batch.greedy_return is not None
    advantage = algorithm.credit(batch).advantage
    close(advantage, (returns(batch) - batch.greedy_return)[:, None] * batch.action)
    richer = [rows[0]._replace(rewards=(rows[0].rewards[0] + other, *rows[0].rewards[1:])), *rows[1:]]
    moved = algorithm.credit(batch_of(richer)).advantage - advantage
    close(moved[0], other * batch.action[0].double())
    assert (moved[1:] == 0).all()


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
def test_remax_sets_an_episode_without_a_baseline_aside_and_counts_it(nothing: float) -> None:
    batch = observed(batch_of([Row(((1, 2),), (float(i),), seed=i) for i in range(3)]))
    batch = dataclasses.replace(batch, greedy_return=numbers(0.5, nothing, 0.5))
    credit = algos.make("remax").credit(batch)
    assert credit.keep is not None and credit.keep.tolist() == [True, False, True]
    assert (credit.advantage[1] == 0).all() and credit.metrics == {"without_greedy": 1.0}
    expected = gradient_of(algos.make("remax"), batch.rows(torch.tensor([0, 2])))
    close(gradient_of(algos.make("remax"), batch)[1], expected[1])


def test_remax_without_any_greedy_episode_says_what_is_missing() -> None:
    batch = dataclasses.replace(batch_of([Row(((1, 2),), (1.0,))]), greedy_return=None)
    with pytest.raises(ConfigError, match="greedy_return"):
        algos.make("remax").credit(batch)


def test_the_learner_hands_remax_its_baseline(tiny_policy: Policy) -> None:
    episodes = conversations(tiny_policy, 8, group_size=4)
    with pytest.raises(ConfigError, match="greedy_returns"):
        learner_of(tiny_policy, "remax").update(episodes)
    metrics = learner_of(tiny_policy, "remax").update(episodes, {0: 0.5, 1: math.nan})
    assert metrics["without_greedy"] == 4 and metrics["kept_rows"] == 0.5
    assert math.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0


# RAFT ------------------------------------------------------------------------------------------------


@quick
@given(batches(min_size=2), st.sampled_from((-1.0, 0.0, 0.5)))
def test_raft_is_behaviour_cloning_of_the_positives(batch: Batch, threshold: float) -> None:
    batch = observed(batch)
    raft, bc = algos.make("raft", threshold=threshold), algos.make("bc")
    positive = returns(batch) > threshold
    credit, _, token_weights = judged(raft, batch)
    assert credit.keep is not None and torch.equal(credit.keep, positive)
    if positive.any():
        for found, expected in zip(gradient_of(raft, batch), gradient_of(bc, batch.rows(positive))):
            close(found, expected)
    else:
        assert (token_weights == 0).all()


def test_raft_keeps_what_is_above_its_threshold_and_not_what_is_at_it() -> None:
    batch = batch_of([Row(((1, 2),), (pay,), seed=i) for i, pay in enumerate((0.5, 0.625, 0.375, math.nan, math.inf))])
    credit = algos.make("raft", threshold=0.5).credit(batch)
    assert credit.keep is not None and credit.keep.tolist() == [False, True, False, False, False]
    assert (credit.advantage == batch.action * credit.keep[:, None]).all()


def test_where_nothing_went_well_the_learner_takes_no_step(tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, algos.make("raft", threshold=1e6))
    before = weights(learner)
    metrics = learner.update(conversations(tiny_policy))
    assert metrics["kept_rows"] == 0 and metrics["loss"] == 0
    assert all(torch.equal(x, before[name]) for name, x in weights(learner).items())


# TOPR ------------------------------------------------------------------------------------------------


def derivative(algorithm: Algorithm, batch: Batch, logp: Tensor) -> Tensor:
    """[B,T] derivative of the un-weighted loss by each log-probability, and the loss has one for each token."""
    data, logp = Minibatch.of(batch, algorithm.credit(batch)), logp.clone().requires_grad_()
    loss, _ = algorithm.loss(Scores(logp, torch.zeros_like(logp)), data)
    return torch.autograd.grad(loss[data.action].sum(), logp)[0]


def test_topr_tapers_failures_by_the_ratio_of_the_whole_episode() -> None:
    rows = [Row(((1, 1), (1, 2)), (0.0, pay), seed=i) for i, pay in enumerate((0.0, 1.0, 0.0))]
    batch = batch_of(rows)
    assert batch.old_logp is not None
    # log rho per token: halved, kept, halved, so that the episode is a quarter as likely; the last one is likelier
    step = torch.stack([numbers(0, -1, 0, 0, -1), numbers(0, -1, 0, 0, -1), numbers(0, 1, 0, 0, 1)]) * math.log(2)
    found = derivative(algos.make("topr"), batch, batch.old_logp + step)
    on = batch.action.double()
    close(found[0], on[0] * 0.5 / 4)  # -w A = 1/4 x 1/2 on each of its three tokens
    close(found[1], on[1] * -0.5)  # a success at full weight, unlikely as it has become
    close(found[2], on[2] * 0.5)  # a failure that has become likelier: no more than full weight


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_the_taper_stays_finite_however_far_the_policies_are(gap: float) -> None:
    batch = batch_of([Row(((1, 3),), (0.0,))])
    assert batch.old_logp is not None
    found = derivative(algos.make("topr"), batch, batch.old_logp + gap * batch.action)
    close(found, (0.5 if gap > 0 else 0.0) * batch.action.double())


@quick
@given(batches(min_size=2), st.integers(1, 5))
def test_topr_with_nothing_bad_is_the_plain_policy_gradient(batch: Batch, seed: int) -> None:
    batch = observed(batch, seed)  # off-policy: the old policy is another table
    centre = float(returns(batch).min())
    plain = algos.make("reinforce", baseline="none")
    paid_once = torch.zeros_like(batch.reward)
    paid_once[:, 0] = returns(batch) - centre
    expected = gradient_of(plain, dataclasses.replace(batch, reward=paid_once))
    close(gradient_of(algos.make("topr", centre=centre), batch)[1], expected[1])


# AWR -------------------------------------------------------------------------------------------------


def test_awr_by_hand() -> None:
    batch = batch_of([Row(((1, 2),), (pay,), seed=i) for i, pay in enumerate((0.0, 1.0))])

    def weight(**fields: Any) -> list[float]:
        return algos.make("awr", **fields).credit(batch).advantage[:, 1].tolist()

    # the mean is 1/2, the sample's standard deviation the root of 1/2
    assert weight(scale="none", beta=0.5) == pytest.approx([math.exp(-1), math.exp(1)])
    assert weight(scale="none", beta=0.5, max_weight=2.0) == pytest.approx([math.exp(-1), 2])
    assert weight() == pytest.approx([math.exp(-math.sqrt(0.5)), math.exp(math.sqrt(0.5))], rel=1e-5)
    assert weight(beta=1e-12) == pytest.approx([0, 20])  # exp(7e11) is not asked for


@quick
@given(batches(), st.sampled_from(("batch", "none")), st.sampled_from((0.05, 1.0, 100.0)))
def test_awr_weights_are_positive_bounded_and_rank_as_the_returns_do(batch: Batch, scale: str, beta: float) -> None:
    credit = algos.make("awr", scale=scale, beta=beta).credit(batch)
    weight = credit.advantage.amax(1)
    assert (credit.advantage == weight[:, None] * batch.action).all()
    assert (weight >= 0).all() and (weight <= 20 + 1e-9).all()
    assert (weight[returns(batch).argsort()].diff() >= -1e-12).all()
    if returns(batch).min() == returns(batch).max():
        assert (weight == 1).all()


def test_a_hot_awr_is_behaviour_cloning() -> None:
    batch = observed(batch_of([Row(((1, 2),), (float(i),), seed=i) for i in range(4)]))
    close(gradient_of(algos.make("awr", beta=1e12), batch)[1], gradient_of(algos.make("bc"), batch)[1])


# All of them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_degenerate_batches_have_finite_credit(name: str) -> None:
    alone = observed(batch_of([Row(((1, 2), (2, 1)), (1.0, 1.0))]))
    alike = observed(batch_of([Row(((1, 2),), (0.1,), group=i // 3, seed=i) for i in range(6)]))
    mixed = observed(batch_of([Row(((1, i + 1),), (math.nan if i == 1 else 0.1 * i,), group=i // 3) for i in range(5)]))
    for batch in (alone, alike, mixed):
        credit, _, token_weights = judged(algos.make(name), batch)
        assert credit.advantage.isfinite().all() and token_weights.isfinite().all()
        assert gradient_of(algos.make(name), batch)[1].isfinite().all()
        assert credit.keep is not None and credit.keep[1:2].tolist() in ([], [batch is alike])


@pytest.mark.parametrize("name", ["reinforce_pp", "reinforce_pp_baseline", "rebn"])
def test_equal_returns_whiten_to_exactly_nothing(name: str) -> None:
    # 0.1 three times has a mean that is not 0.1: a rounding must not become a standard deviation
    batch = batch_of([Row(((1, 1 + i % 2),), (0.1,), group=i % 2, seed=i) for i in range(7)])
    assert (algos.make(name).credit(batch).advantage == 0).all()


@pytest.mark.parametrize("name", ["raft", "topr", "awr"])
def test_clones_may_take_many_steps(name: str, tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, algos.make(name, epochs=2, minibatches=2))
    metrics = learner.update(conversations(tiny_policy))
    assert math.isfinite(metrics["loss"]) and metrics["kl"] > 0 and metrics["skipped_steps"] == 0

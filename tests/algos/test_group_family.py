"""The relatives of GRPO: numbers by hand, what each becomes at its edges, and what each does to the true gradient."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import algos
from algos.base import KL, Algorithm, Batch, Credit, Minibatch, Scores
from algos.gigpo import GiGPO
from algos.maths.losses import clipped_surrogate
from tests.algos import test_exact_gradient as exact
from tests.algos.batches import Row, batch_of, batches, gradient_of, judged, observed, quick, row_lists

FAMILY = ("grpo", "dr_grpo", "rloo", "dapo", "lite_ppo", "gspo", "maxrl", "cispo", "sapo", "gmpo", "gigpo")
moves = st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=1, max_size=5)


def close(found: Tensor, expected: Any) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def moved(algorithm: Algorithm, log_rho: list[float], advantage: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One row whose tokens have these log ratios: losses, gradients by log-probability (sum of losses), metrics."""
    batch = batch_of([Row(((1, len(log_rho)),), (0.0,))])
    assert batch.old_logp is not None
    data = Minibatch.of(batch, Credit(advantage * batch.action.double()))
    logp = batch.old_logp.clone()
    logp[batch.action] += torch.tensor(log_rho, dtype=torch.float64)
    logp.requires_grad_()
    loss, metrics = algorithm.loss(Scores(logp, torch.zeros_like(logp)), data)
    gradient = torch.autograd.grad(loss.sum(), logp)[0]
    at = batch.action
    return loss[at].detach(), gradient[at], {name: metric[at] for name, metric in metrics.items()}


# Advantages and weights, by hand ---------------------------------------------------------------------


def pass_or_fail() -> Batch:
    """Group 4: returns 1 0 0 0, of 1 2 3 1 tokens. Group 9: returns 1 1, of 2 1 tokens. Not a state has a name."""
    lengths, returns = (1, 2, 3, 1, 2, 1), (1.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    rows = [Row(((1, n),), (r,), 4 if i < 4 else 9, seed=i) for i, (n, r) in enumerate(zip(lengths, returns))]
    batch = batch_of(rows)
    return dataclasses.replace(batch, state_key=torch.zeros_like(batch.state_key))


# Group 4 has mean 1/4 and variance (9/16 + 3/16) / 3 = 1/4, so its deviation is 1/2. The batch has mean 1/2 and
# variance 6/4 / 5 = 3/10. Group 9 is dead.
SCALED = (1.5, -0.5, -0.5, -0.5, 0, 0)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("grpo", {"eps": 0}, SCALED),
        ("gspo", {"eps": 0}, SCALED),
        ("cispo", {"eps": 0}, SCALED),
        ("sapo", {"eps": 0}, SCALED),
        ("gmpo", {"eps": 0}, SCALED),
        ("gigpo", {"eps": 0}, SCALED),
        ("dapo", {"eps": 0}, SCALED),
        ("grpo_advantage_clip", {"eps": 0}, (1.5, -0.2, -0.2, -0.2, 0, 0)),
        ("dr_grpo", {}, (0.75, -0.25, -0.25, -0.25, 0, 0)),
        ("rloo", {}, (1, -1 / 3, -1 / 3, -1 / 3, 0, 0)),  # the others have 0, or one success among three
        ("maxrl", {"eps": 0}, (3, -1, -1, -1, 0, 0)),
        ("lite_ppo", {"eps": 0}, (0.75 / 0.3**0.5, *(-0.25 / 0.3**0.5,) * 3, 0, 0)),
    ],
)
def test_advantages_by_hand(name: str, fields: dict[str, Any], expected: tuple[float, ...]) -> None:
    batch = pass_or_fail()
    credit = algos.make(name, **fields).credit(batch)
    close(credit.advantage, torch.tensor(expected, dtype=torch.float64)[:, None] * batch.action)
    kept = 4 if name == "dapo" else 6
    assert credit.keep is not None and credit.keep.tolist() == [i < kept for i in range(6)]


@pytest.mark.parametrize(
    ("name", "expected"),  # of a token in each row: six rows, ten tokens, the longest row has 3
    [
        ("dapo", (1 / 7, 1 / 7, 1 / 7, 1 / 7, 0, 0)),  # the tokens of the dead group are not counted
        ("lite_ppo", (1 / 10,) * 6),
        ("maxrl", (1 / 10,) * 6),
        ("cispo", (1 / 10,) * 6),
        ("dr_grpo", (1 / 18,) * 6),
        ("rloo", (1 / 6,) * 6),
        *((name, (1 / 6, 1 / 12, 1 / 18, 1 / 6, 1 / 12, 1 / 6)) for name in ("gspo", "sapo", "gmpo", "gigpo")),
    ],
)
def test_weights_by_hand(name: str, expected: tuple[float, ...]) -> None:
    batch = pass_or_fail()
    _, _, weights = judged(algos.make(name), batch)
    close(weights, torch.tensor(expected, dtype=torch.float64)[:, None] * batch.action)


@pytest.mark.parametrize(
    ("name", "step", "sign", "expected"),
    [
        ("dapo", math.log(1.5), 1, -1.28),
        ("dapo", math.log(0.5), -1, 0.8),
        ("lite_ppo", math.log(1.5), 1, -1.2),
        ("maxrl", math.log(1.5), 1, -1.2),
        ("dr_grpo", math.log(0.5), -1, 0.8),
        ("gspo", 0.01, 1, -1.0004),
        ("gspo", -0.01, -1, 0.9997),
    ],
)
def test_published_bounds(name: str, step: float, sign: float, expected: float) -> None:
    loss, gradient, metrics = moved(algos.make(name), [step, step], sign)
    close(loss, [expected] * 2)
    assert (gradient == 0).all() and (metrics["clip_share"] == 1).all()


def test_gspo_lets_tokens_go_far_if_the_sequence_stays() -> None:
    loss, gradient, metrics = moved(algos.make("gspo"), [1.0, -1.0], 1.0)
    close(loss, [-1.0, -1.0])
    close(gradient, [-1.0, -1.0])  # each token's loss pulls on both by 1/2
    assert (metrics["clip_share"] == 0).all()


# Dead groups -----------------------------------------------------------------------------------------


@quick
@given(row_lists())
def test_a_dead_group_is_as_if_it_had_not_been_sampled(rows: list[Row]) -> None:
    batch = observed(batch_of(rows))
    returns: dict[int, set[float]] = {}
    for row in rows:
        returns.setdefault(row.group, set()).add(sum(row.rewards))
    alive = torch.tensor([len(returns[row.group]) > 1 for row in rows])
    credit, _, weights = judged(algos.make("dapo"), batch)
    assert credit.keep is not None and torch.equal(credit.keep, alive)
    if alive.any():
        without = gradient_of(algos.make("dapo", drop_dead=False), batch.rows(alive))
        close(gradient_of(algos.make("dapo"), batch)[1], without[1])
    else:
        assert (weights == 0).all() and (gradient_of(algos.make("dapo"), batch)[1] == 0).all()


@pytest.mark.parametrize("assignment", ["outcome", "process", "gae"])
def test_a_group_is_dead_if_the_returns_that_are_compared_are_equal(assignment: str) -> None:
    """All succeed, some sooner: alive for a discounted return. ``gae`` centres the plain return, and is dead."""
    batch = batch_of([Row(((1, 1),), (1.0,)), Row(((1, 1), (1, 1)), (0.0, 1.0), seed=1)])
    plain = algos.make("dapo", assignment=assignment).credit(batch)
    assert plain.keep is not None and not plain.keep.any()
    credit = algos.make("dapo", assignment=assignment, gamma_turn=0.5).credit(batch)
    assert credit.keep is not None
    assert bool(credit.keep.all()) == (assignment != "gae") == bool(credit.keep.any())


def test_dead_groups_are_judged_by_valid_episodes_and_cut_ones_count() -> None:
    """Group 0: 1 and NaN. Group 1: 1 and a cut 0. Group 2: one alone."""
    returns, groups = (1.0, math.nan, 1.0, 0.0, 3.0), (0, 0, 1, 1, 2)
    rows = [Row(((1, 1),), (r,), g, i != 3, i) for i, (r, g) in enumerate(zip(returns, groups))]
    for masked, expected in ((False, [False, False, True, True, False]), (True, [False, False, True, False, False])):
        keep = algos.make("dapo", mask_truncated=masked).credit(batch_of(rows)).keep
        assert keep is not None and keep.tolist() == expected


def test_without_drop_dead_the_pull_to_the_reference_reaches_dead_groups() -> None:
    batch = observed(batch_of([Row(((1, 2),), (1.0,), seed=i) for i in range(2)]))
    pulled, dropped = (algos.make("dapo", drop_dead=d, kl=KL(0.1, "loss_k2")) for d in (False, True))
    assert (gradient_of(pulled, batch)[1] != 0).any() and (gradient_of(dropped, batch)[1] == 0).all()


# The mean of the group as scale (MaxRL) --------------------------------------------------------------


def maxrl(returns: list[float], **fields: Any) -> Tensor:
    batch = batch_of([Row(((1, 1),), (r,), seed=i) for i, r in enumerate(returns)])
    return algos.make("maxrl", **fields).credit(batch).advantage.sum(1)


@quick
@given(st.lists(st.integers(0, 16).map(lambda x: x / 8), min_size=2, max_size=6), st.sampled_from((0.25, 1.0, 8.0)))
def test_maxrl_counts_in_means_of_the_group(returns: list[float], factor: float) -> None:
    found = maxrl(returns, eps=0)
    mean = sum(returns) / len(returns)
    close(found, [r / mean - 1 if max(returns) > min(returns) else 0.0 for r in returns])
    close(maxrl([factor * r for r in returns], eps=0), found)


@pytest.mark.parametrize("returns", [[0.0, 0.0], [-1.0, 1.0], [-2.0, 1.0], [-1.0, -0.5], [2.0], [math.nan, 1.0]])
@pytest.mark.parametrize("eps", [0, 1e-6])
def test_a_mean_that_is_not_above_0_teaches_nothing(returns: list[float], eps: float) -> None:
    assert torch.equal(maxrl(returns, eps=eps), torch.zeros(len(returns)).double())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_maxrl_follows_the_likelihood_to_the_order_of_the_group_less_one(size: int) -> None:
    """One token of three, two of them right. log p = -sum_k (1 - p)^k / k; the update is its gradient up to k = G - 1.

    Without baseline the order would be G (Tajwar et al. 2026); a group without success is not updated, where
    the mean would have subtracted a term of order G, and that takes one order off. In groups of 2 it is RLOO.
    """
    logits = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    algorithm = algos.make("maxrl", eps=0, reduce="seq_sum")
    total = torch.zeros((), dtype=torch.float64)
    for chosen in itertools.product(range(3), repeat=size):
        batch = batch_of([Row(((1, 1),), (float(reward[c]),)) for c in chosen])
        logp = torch.where(batch.action, logits.log_softmax(0)[list(chosen)][:, None], 0.0)
        batch = dataclasses.replace(batch, old_logp=logp.detach())
        _, data, weights = judged(algorithm, batch)
        loss, _ = algorithm.loss(Scores(logp, torch.zeros_like(logp)), data)
        total = total - logp.sum().detach().exp() * (weights * loss).sum()
    found = torch.autograd.grad(total, logits)[0]
    p = (logits.softmax(0) * reward).sum()
    truth = torch.autograd.grad(-sum((1 - p) ** k / k for k in range(1, size)), logits)[0]  # type: ignore[arg-type]
    close(found, truth)


# CISPO -----------------------------------------------------------------------------------------------


def test_cispo_by_hand() -> None:
    """Ratios 2 and 8, bound 1 + 4: weights 2 and 5, and the loss is -w A logp."""
    batch = batch_of([Row(((1, 2),), (0.0,))])
    loss, gradient, metrics = moved(algos.make("cispo"), [math.log(2), math.log(8)], 3.0)
    logp = batch.behaviour_logp[batch.action] + torch.tensor([2.0, 8.0]).double().log()
    close(loss, -3 * torch.tensor([2.0, 5.0]).double() * logp)
    close(gradient, [-6.0, -15.0])
    close(metrics["ratio"], [2.0, 8.0])
    assert metrics["clip_share"].tolist() == [0, 1]


@quick
@given(moves, st.sampled_from((-2.0, 0.5)), st.sampled_from((0.1, 1.0, 4.0)))
def test_cispo_never_drops_a_token_and_descends_a_loss_without_stop_gradient(
    log_rho: list[float], advantage: float, high: float
) -> None:
    """The loss is rho up to the bound c, and grows as c log rho beyond: c (1 + log(rho / c))."""
    _, gradient, _ = moved(algos.make("cispo", high=high), log_rho, advantage)
    d = torch.tensor(log_rho, dtype=torch.float64, requires_grad=True)
    c = 1 + high
    whole = -advantage * torch.where(d.exp() < c, d.exp(), c * (1 + d - math.log(c)))
    close(gradient, torch.autograd.grad(whole.sum(), d)[0])
    assert (gradient * advantage < 0).all()


def test_a_token_that_the_clip_drops_still_pulls_in_cispo() -> None:
    far = [3.0]
    assert moved(algos.make("dapo"), far, 1.0)[1] == 0
    close(moved(algos.make("cispo"), far, 1.0)[1], [-5.0])


# SAPO ------------------------------------------------------------------------------------------------


def test_sapo_by_hand() -> None:
    """At rho = 1 the sigmoid is 1/2: f = 2 / tau, f' = 1. At tau (rho - 1) = log 3 it is 3/4: f = 3 / tau, f' = 3/4."""
    for sign, tau in ((2.0, 1.0), (-2.0, 1.05)):
        rho = 1 + math.log(3) / tau
        loss, gradient, metrics = moved(algos.make("sapo"), [0.0, math.log(rho)], sign)
        close(loss, [-2 / tau * sign, -3 / tau * sign])
        close(gradient, [-sign, -0.75 * rho * sign])  # d rho / d logp = rho
        close(metrics["clip_share"], [0, 0.25])
    assert moved(algos.make("sapo"), [1.0], 0.0)[1] == 0


@quick
@given(moves, st.sampled_from((-2.0, 0.5)))
def test_without_steepness_the_gate_is_open(log_rho: list[float], advantage: float) -> None:
    _, gradient, _ = moved(algos.make("sapo", tau_positive=1e-7, tau_negative=1e-7), log_rho, advantage)
    close(gradient, moved(algos.make("grpo", low=None, high=None), log_rho, advantage)[1])


def test_the_gate_closes_to_both_sides_and_sooner_on_bad_episodes() -> None:
    steps = [-9.0, -2.0, -0.5, 0.0, 0.5, 2.0, 19.0]
    good, bad = (moved(algos.make("sapo"), steps, sign) for sign in (1.0, -1.0))
    pull = (good[1].abs() / torch.tensor(steps).double().exp()).tolist()  # f'
    assert pull[:4] == sorted(pull[:4]) and pull[3:] == sorted(pull[3:], reverse=True) and pull[3] == 1
    assert (bad[1].abs() < good[1].abs())[torch.tensor(steps) != 0][:-1].all()
    assert good[1].isfinite().all() and abs(float(good[1][-1])) < 1e-12  # lost, and left alone


# GMPO ------------------------------------------------------------------------------------------------


def test_gmpo_by_hand() -> None:
    """Log ratios .9 -.3 -.6. A good row: .4 -.3 -.6, sum -.5. A bad one: .9 -.3 -.4, sum .2."""
    for sign, total, free in ((2.0, -0.5, [0, 1, 1]), (-2.0, 0.2, [1, 1, 0])):
        loss, gradient, metrics = moved(algos.make("gmpo"), [0.9, -0.3, -0.6], sign)
        mean = math.exp(total / 3)
        close(loss, [-sign * mean] * 3)
        close(gradient, [-sign * mean * f for f in free])  # three tokens of loss, each a third of each token's pull
        close(metrics["ratio"], [mean] * 3)
        assert metrics["clip_share"].tolist() == [1 - f for f in free]


@quick
@given(st.floats(-3, 3), st.sampled_from((-2.0, 0.5)), st.sampled_from((0.1, 0.4)), st.sampled_from((0.2, 0.9)))
def test_gmpo_of_one_token_is_the_clipped_ratio(step: float, advantage: float, low: float, high: float) -> None:
    found, gradient, _ = moved(algos.make("gmpo", low=low, high=high), [step], advantage)
    ratio = torch.tensor([step], dtype=torch.float64).exp()
    close(found, clipped_surrogate(ratio, torch.tensor([advantage]).double(), 1 - math.exp(-low), math.expm1(high))[0])
    bounds = {"low": 1 - math.exp(-low), "high": math.expm1(high)}
    close(gradient, moved(algos.make("grpo", **bounds), [step], advantage)[1])


@quick
@given(moves, st.sampled_from((-2.0, 0.5)))
def test_gmpo_without_bounds_is_gspo_without_bounds(log_rho: list[float], advantage: float) -> None:
    found = moved(algos.make("gmpo", low=None, high=None), log_rho, advantage)
    expected = moved(algos.make("gspo", low=None, high=None), log_rho, advantage)
    close(found[0], expected[0])
    close(found[1], expected[1])
    assert (found[2]["clip_share"] == 0).all()


# GiGPO -----------------------------------------------------------------------------------------------


def two_ways() -> Batch:
    """Three episodes of group 2 through states 5, 6 and 7, and one of group 3 that meets them too."""
    keys, rewards = ((5, 6), (5, 6), (5, 7, 6), (5, 6)), ((0, 1), (0, 0), (0, 0, 1), (0, 8))
    rows = [
        Row(((1, 2),) * len(k), tuple(map(float, r)), 2 if i < 3 else 3, seed=i)
        for i, (k, r) in enumerate(zip(keys, rewards))
    ]
    padded = torch.tensor([[*k, 0][:3] for k in keys])
    return dataclasses.replace(batch_of(rows), state_key=padded)


def of_turns(batch: Batch, advantage: Tensor) -> list[list[float]]:
    """The one advantage of each turn."""
    found = []
    for row, turn in zip(advantage, batch.turn):
        values = [row[turn == k].unique().tolist() for k in range(int(turn.max()) + 1)]
        assert all(len(v) == 1 for v in values)
        found.append([v[0] for v in values])
    return found


def test_gigpo_by_hand() -> None:
    """With gamma_step 1/2 the returns to go are (.5, 1), (0, 0), (.25, .5, 1).

    State 5 was met with .5, 0, .25: mean .25, deviation .25. State 6 with 1, 0, 1: mean 2/3, deviation sqrt(1/3). State
    7 once. The episodes have returns 1, 0, 1: as state 6. Nobody else in group 3.
    """
    batch = two_ways()
    plain = algos.make("gigpo", scale="none", gamma_step=0.5).credit(batch)
    expected = [[1 / 3 + 0.25, 2 / 3], [-2 / 3 - 0.25, -4 / 3], [1 / 3, 1 / 3, 2 / 3], [0.0, 0.0]]
    for found, wanted in zip(of_turns(batch, plain.advantage), expected, strict=True):
        assert found == pytest.approx(wanted)
    assert plain.metrics["informative_turns"] == pytest.approx(5 / 9)
    good, bad = 3**0.5 / 3, -2 * 3**0.5 / 3
    scaled = algos.make("gigpo", omega=0.5, gamma_step=0.5, eps=0).credit(batch)
    expected = [[good + 0.5, 1.5 * good], [bad - 0.5, 1.5 * bad], [good, good, 1.5 * good], [0.0, 0.0]]
    for found, wanted in zip(of_turns(batch, scaled.advantage), expected, strict=True):
        assert found == pytest.approx(wanted)


def test_gigpo_leaves_the_return_of_the_episode_undiscounted() -> None:
    batch = batch_of([Row(((1, 1),) * n, (0.0,) * (n - 1) + (1.0,), seed=n) for n in (1, 2, 3)])
    batch = dataclasses.replace(batch, state_key=(batch.turn.new_tensor([[1, 0, 0], [1, 2, 0], [1, 2, 3]])))
    found = of_turns(batch, algos.make("gigpo", scale="none", gamma_step=0.5).credit(batch).advantage)
    # all earn 1, so the episodes differ in nothing; from state 1 on they earn 1, 1/2, 1/4 and from state 2 on 1, 1/2
    for row, wanted in zip(found, [[5 / 12], [-1 / 12, 0.25], [-1 / 3, -0.25, 0.0]], strict=True):
        assert row == pytest.approx(wanted)


def test_gigpo_counts_every_visit_of_an_episode_and_none_that_is_not_real() -> None:
    """A loop meets state 4 twice, with 1 and 2 to go; the others' visits are spoilt, unnamed, or past their end."""
    rows = [
        Row(((1, 1), (1, 1)), (-1.0, 2.0), seed=1),
        Row(((1, 1), (1, 1)), (0.0, math.nan), seed=2),
        Row(((1, 1), (1, 1)), (0.0, 4.0), seed=3),
        Row(((1, 1),), (5.0,), seed=4),
    ]
    keys = torch.tensor([[4, 4], [4, 4], [0, 0], [8, 4]])
    batch = dataclasses.replace(batch_of(rows), state_key=keys)
    algorithm = algos.make("gigpo", scale="none", gamma_step=1.0)
    added = algorithm.credit(batch).advantage - algos.make("grpo", scale="none").credit(batch).advantage
    for row, wanted in zip(of_turns(batch, added), [[-0.5, 0.5], [0, 0], [0, 0], [0]], strict=True):
        assert row == pytest.approx(wanted, abs=1e-12)


@quick
@given(batches(), st.sampled_from(("group", "none")))
def test_gigpo_without_credit_by_state_is_grpo(batch: Batch, scale: str) -> None:
    expected = algos.make("grpo", scale=scale).credit(batch).advantage
    assert torch.equal(algos.make("gigpo", scale=scale, omega=0.0).credit(batch).advantage, expected)
    unnamed = dataclasses.replace(batch, state_key=torch.zeros_like(batch.state_key))
    credit = algos.make("gigpo", scale=scale).credit(unnamed)
    assert torch.equal(credit.advantage, expected) and credit.metrics["informative_turns"] == 0


@quick
@given(batches(min_size=2), st.randoms(use_true_random=False))
def test_credit_by_state_is_centred_and_does_not_look_at_the_order(batch: Batch, random: Any) -> None:
    algorithm = algos.make("gigpo", scale="none")
    credit = algorithm.credit(batch)
    order = torch.tensor(random.sample(range(batch.size), batch.size))
    close(algorithm.credit(batch.rows(order)).advantage, credit.advantage[order])
    step = credit.advantage - algos.make("grpo", scale="none").credit(batch).advantage
    sums: dict[tuple[int, int], float] = {}
    for b in range(batch.size):
        for k in range(int(batch.n_turns[b])):
            name = (int(batch.group[b]), int(batch.state_key[b, k]))
            sums[name] = sums.get(name, 0.0) + float(step[b][batch.turn[b] == k][0])
    assert all(abs(total) < 1e-9 for total in sums.values())


class Named(GiGPO):
    """The states of the enumerable dialogue: the opening, and the second turn after each first token."""

    def credit(self, batch: Batch) -> Credit:
        first = batch.reward[:, 0]  # tells the first tokens apart
        second = torch.where(first == 0.5, 2, 3) * (batch.n_turns > 1)
        return super().credit(dataclasses.replace(batch, state_key=torch.stack([torch.ones_like(second), second], 1)))


@pytest.mark.parametrize("size", [2, 3])
def test_credit_by_state_shrinks_the_gradient_of_each_state_by_a_known_factor(size: int) -> None:
    """A state that is met n times loses one visit to its own mean: E[(n - 1)+] / E[n] of the true gradient is left.

    The opening is met by all G: (G - 1) / G. A second turn is met with chance q: (G q - 1 + (1 - q)^G) / (G q).
    """
    fields: dict[str, Any] = {"scale": "none", "reduce": "seq_sum"}
    with_states, without = Named(gamma_step=1.0, **fields), Named(omega=0.0, **fields)
    by_state = exact.expected_ascent(with_states, size) - exact.expected_ascent(without, size)
    q = exact.policy().detach()[0].softmax(0)
    second = (size * q - 1 + (1 - q) ** size) / (size * q)  # after each first token
    left = torch.cat([torch.full_like(q[:1], (size - 1) / size), second])
    close(by_state, left[:, None] * exact.true_gradient())


# The clipped advantage -------------------------------------------------------------------------------


@quick
@given(batches(min_size=2), st.sampled_from((0.1, 0.2, 1.0)))
def test_the_guides_formula_only_bounds_bad_episodes(batch: Batch, bound: float) -> None:
    batch = observed(batch)
    advantage = algos.make("grpo").credit(batch).advantage
    algorithm = algos.make("grpo_advantage_clip", bound=bound)
    credit = algorithm.credit(batch)
    data = Minibatch.of(batch, credit)
    logp = data.behaviour_logp * 0.7
    found, _ = algorithm.loss(Scores(logp, torch.zeros_like(logp)), data)
    close(found, torch.maximum(advantage * -logp, advantage.clamp(-bound, bound) * -logp))
    close(credit.advantage, torch.where(advantage > 0, advantage, advantage.clamp(min=-bound)))
    assert credit.metrics["bounded_share"] == pytest.approx(float((advantage < -bound)[batch.action].double().mean()))


def test_the_clipped_advantage_is_no_trust_region() -> None:
    """However far the policy has moved, the pull is the same; a clipped ratio would have let go."""
    for step in (0.0, 1.0, 15.0):
        close(moved(algos.make("grpo_advantage_clip"), [step], 2.0)[1], [-2.0])
    assert moved(algos.make("grpo"), [1.0], 2.0)[1] == 0


# All of them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILY, "grpo_advantage_clip"])
def test_nothing_to_compare_with_means_no_gradient(name: str) -> None:
    """A group of one, a group of equals, a group whose other episode is spoilt; states that were met once."""
    returns, groups = (1.0, 2.0, 2.0, 3.0, math.inf), (0, 1, 1, 2, 2)
    batch = observed(batch_of([Row(((1, 2),), (r,), g, seed=i) for i, (r, g) in enumerate(zip(returns, groups))]))
    credit = algos.make(name).credit(batch)
    assert (credit.advantage == 0).all()
    assert (gradient_of(algos.make(name), batch)[1] == 0).all()


@pytest.mark.parametrize("name", [*FAMILY, "grpo_advantage_clip"])
def test_policies_that_have_lost_each_other_still_give_numbers(name: str) -> None:
    for step, sign in itertools.product((-800.0, 800.0), (-1.0, 1.0)):
        loss, gradient, metrics = moved(algos.make(name), [step, 0.1], sign)
        assert loss.isfinite().all() and gradient.isfinite().all()
        assert all(metric.isfinite().all() for metric in metrics.values())

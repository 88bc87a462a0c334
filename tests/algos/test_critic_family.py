"""PPO over turns, over two levels, and VAPO: goldens by hand, definitions, and where one is the other."""

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
from algos.base import KL, Algorithm, Batch, Credit, Minibatch, Scores
from algos.maths.advantages import first_token, last_token, returns_to_go, spread_turns
from algos.maths.kl import kl_in_reward
from algos.ppo_bilevel import PPOBilevel
from algos.vapo import VAPO
from tests.algos.batches import Row, batch_of, batches, gradient_of, judged, observed, quick, row_lists, score, table
from tests.algos.test_exact_gradient import expected_ascent, true_gradient

FAMILY = ("ppo", "ppo_turn", "ppo_bilevel", "vapo")
K1 = KL(0.25, "reward_k1")
ENDLESS = 1e30  # alpha of VAPO at which the actor's lambda is 1 for every length
MONTE_CARLO: dict[str, dict[str, Any]] = {  # settings at which an advantage is the return less the value
    "ppo": {"lam": 1.0, "gamma_turn": 1.0},
    "ppo_turn": {"lam": 1.0, "gamma_turn": 1.0},
    "ppo_bilevel": {"lam": 1.0, "lam_turn": 1.0, "gamma_turn": 1.0},
    "vapo": {"alpha": ENDLESS},
}
shares = st.sampled_from((0.0, 0.5, 0.9, 1.0))
each_of_the_family = pytest.mark.parametrize("name", FAMILY)


def close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def raw(name: str, **fields: Any) -> Algorithm:
    """Not whitened: the estimate itself."""
    return algos.make(name, **{"whiten": False, **fields})


def estimated(algorithm: Algorithm, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Advantage, target and place of the critic."""
    credit = algorithm.credit(batch)
    assert credit.target is not None and credit.critic_at is not None
    return credit.advantage, credit.target, credit.critic_at


def one_token_turns(rows: list[Row]) -> list[Row]:
    return [row._replace(turns=tuple((heard, 1) for heard, _ in row.turns)) for row in rows]


# Goldens ---------------------------------------------------------------------------------------------


def a_dialogue(*, terminated: bool) -> Batch:
    """Heard, said, said, heard, heard, said, said; the turns bring .25 and 1. V of what is heard is nonsense."""
    batch = batch_of([Row(((1, 2), (2, 2)), (0.25, 1.0), terminated=terminated)])
    value = torch.tensor([[9.0, 0.5, 0.4, -9.0, 9.0, 0.6, 0.7]], dtype=torch.float64)
    return dataclasses.replace(batch, value=value, bootstrap=torch.tensor([2.0], dtype=torch.float64))


def golden(numbers: list[float]) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_golden_over_turns() -> None:
    """V_0 = .5 and V_1 = .6, the values before the first token of each turn; gamma .9, lambda .8.

    delta_1 = 1 - .6 = .4                              A_1 = .4                          y_1 = 1
    delta_0 = .25 + .9 * .6 - .5 = .29                 A_0 = .29 + .72 * .4 = .578       y_0 = 1.078
    truncated: delta_1 = 1 + .9 * 2 - .6 = 2.2         A_0 = .29 + .72 * 2.2 = 1.874     y_1 = 2.8
    """
    algorithm = raw("ppo_turn", gamma_turn=0.9, lam=0.8)
    advantage, target, at = estimated(algorithm, a_dialogue(terminated=True))
    close(advantage, golden([0, 0.578, 0.578, 0, 0, 0.4, 0.4]))
    assert at.tolist() == [[False, True, False, False, False, True, False]]
    close(target[at], golden([1.078, 1.0])[0])
    advantage, target, _ = estimated(algorithm, a_dialogue(terminated=False))
    close(advantage, golden([0, 1.874, 1.874, 0, 0, 2.2, 2.2]))
    close(target[at], golden([2.374, 2.8])[0])


def test_golden_on_two_levels() -> None:
    """V of the last tokens: .4 and .7; between turns gamma .9, lambda .8, inside them gamma .9, lambda .5.

    turns:  delta_1 = 1 - .7 = .3                      A_6 = .3
            delta_0 = .25 + .9 * .7 - .4 = .48         A_2 = .48 + .72 * .3 = .696
    tokens: A_5 = .9 * .7 - .6 + .45 * .3 = .165       A_1 = .9 * .4 - .5 + .45 * .696 = .1732
    truncated: delta_1 = 1 + .9 * 2 - .7 = 2.1         A_2 = .48 + .72 * 2.1 = 1.992
            A_5 = .03 + .45 * 2.1 = .975               A_1 = -.14 + .45 * 1.992 = .7564
    """
    algorithm = raw("ppo_bilevel", gamma_turn=0.9, lam_turn=0.8, gamma_token=0.9, lam=0.5)
    batch = a_dialogue(terminated=True)
    advantage, target, at = estimated(algorithm, batch)
    close(advantage, golden([0, 0.1732, 0.696, 0, 0, 0.165, 0.3]))
    assert torch.equal(at, batch.action)
    close(target[at], golden([0.6732, 1.096, 0.765, 1.0])[0])
    advantage, _, _ = estimated(algorithm, a_dialogue(terminated=False))
    close(advantage, golden([0, 0.7564, 1.992, 0, 0, 0.975, 2.1]))


def test_golden_of_vapo() -> None:
    """Four tokens and alpha .5: lambda = 1 - 1 / 2 = .5. The critic learns the returns, 1.25 and then 1.

    A_6 = 1 - .7 = .3                       A_5 = .7 - .6 + .5 * .3 = .25
    A_2 = .25 + .6 - .4 + .5 * .25 = .575   A_1 = .4 - .5 + .5 * .575 = .1875
    """
    advantage, target, at = estimated(raw("vapo", alpha=0.5), a_dialogue(terminated=True))
    close(advantage, golden([0, 0.1875, 0.575, 0, 0, 0.25, 0.3]))
    close(target[at], golden([1.25, 1.25, 1.0, 1.0])[0])
    _, target, at = estimated(raw("vapo", alpha=0.5), a_dialogue(terminated=False))
    close(target[at], golden([3.25, 3.25, 3.0, 3.0])[0])


@pytest.mark.parametrize(("length", "lam"), [(2, 0.0), (20, 0.0), (25, 0.2), (40, 0.5), (100, 0.8), (1000, 0.98)])
def test_the_actors_lambda_grows_with_the_episode(length: int, lam: float) -> None:
    """With V = 0 the advantage falls by lambda a token before the reward: 1 - 1 / (.05 L), and never below 0."""
    batch = batch_of([Row(((3, length),), (1.0,)), Row(((1, 7),), (1.0,), seed=1)])
    assert batch.value is not None
    advantage, target, _ = estimated(raw("vapo"), dataclasses.replace(batch, value=torch.zeros_like(batch.value)))
    close(advantage[0, length + 1 : length + 3], torch.tensor([lam, 1.0], dtype=torch.float64))
    close(target, batch.action.double())


# Definitions -----------------------------------------------------------------------------------------


def turn_values(batch: Batch, at: Tensor, row: int) -> list[float]:
    """V at the marked token of each turn, and what comes after the last one."""
    assert batch.value is not None and batch.bootstrap is not None
    values = batch.value[row][at[row]].tolist()
    return [*values, 0.0 if batch.terminated[row] else float(batch.bootstrap[row])]


def turn_gae_by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """``A_k = sum over j >= k of (gamma lambda)^(j - k) delta_j``: the sum itself, no recursion."""
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, values[1:])]
    last = len(deltas)
    return [sum((gamma * lam) ** (j - k) * deltas[j] for j in range(k, last)) for k in range(last)]


@quick
@given(batches(), shares, shares, st.booleans())
def test_over_turns_is_the_definition(batch: Batch, gamma: float, lam: float, pulled: bool) -> None:
    kl = K1 if pulled else KL()
    algorithm = raw("ppo_turn", gamma_turn=gamma, lam=lam, kl=kl)
    advantage, target, at = estimated(algorithm, batch)
    assert torch.equal(at, first_token(batch.turn, batch.reward.shape[1]))
    penalty = kl_in_reward(batch, kl)
    for row in range(batch.size):
        turns = range(int(batch.n_turns[row]))
        rewards = [float(batch.reward[row, k] + penalty[row][batch.turn[row] == k].sum()) for k in turns]
        values = turn_values(batch, at, row)
        for k, expected in zip(turns, turn_gae_by_definition(rewards, values, gamma, lam)):
            found = advantage[row][batch.turn[row] == k]
            close(found, torch.full_like(found, expected))
            close(target[row][at[row]][k], torch.tensor(expected + values[k], dtype=torch.float64))
    assert (advantage[~batch.action] == 0).all()


@quick
@given(batches(), shares, shares, shares, shares)
def test_on_two_levels_is_the_definition(
    batch: Batch, gamma_turn: float, lam_turn: float, gamma_token: float, lam: float
) -> None:
    fields = {"gamma_turn": gamma_turn, "lam_turn": lam_turn, "gamma_token": gamma_token, "lam": lam}
    advantage, target, at = estimated(raw("ppo_bilevel", **fields), batch)
    assert batch.value is not None and torch.equal(at, batch.action)
    ends = last_token(batch.turn, batch.reward.shape[1])
    for row in range(batch.size):
        size = int(batch.n_turns[row])
        rewards, values = batch.reward[row, :size].tolist(), turn_values(batch, ends, row)
        for k, outcome in enumerate(turn_gae_by_definition(rewards, values, gamma_turn, lam_turn)):
            inside = batch.value[row][batch.turn[row] == k].tolist()
            n = len(inside)
            deltas = [gamma_token * inside[i + 1] - inside[i] for i in range(n - 1)] + [outcome]
            expected = [
                sum((gamma_token * lam) ** (j - i) * deltas[j] for j in range(i, n)) for i in range(n)
            ]
            close(advantage[row][batch.turn[row] == k], torch.tensor(expected, dtype=torch.float64))
    close(target, (advantage + batch.value) * batch.action)


# Where one is the other ------------------------------------------------------------------------------


def assert_same(one: Algorithm, other: Algorithm, batch: Batch) -> None:
    """Credit and gradient, the critic's included."""
    for found, expected in zip(estimated(one, batch), estimated(other, batch)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for found, expected in zip(gradient_of(one, batch), gradient_of(other, batch)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@quick
@given(row_lists(), shares, shares, st.booleans(), st.booleans())
def test_turns_of_one_token_are_tokens(
    rows: list[Row], gamma: float, lam: float, whiten: bool, pulled: bool
) -> None:
    batch = observed(batch_of(one_token_turns(rows)))
    fields = {"gamma_turn": gamma, "lam": lam, "whiten": whiten, "kl": K1 if pulled else KL()}
    by_turn = algos.make("ppo_turn", **fields)
    assert_same(by_turn, algos.make("ppo", gamma_token=1.0, **fields), batch)
    # on two levels nothing is left inside a turn, whatever is set there
    bilevel = algos.make("ppo_bilevel", **{**fields, "lam": 0.3, "lam_turn": lam, "gamma_token": 0.2, "high": 0.2})
    assert_same(bilevel, by_turn, batch)


@quick
@given(row_lists(), shares, st.booleans())
def test_without_lambda_and_token_discount_two_levels_are_one(rows: list[Row], gamma: float, pulled: bool) -> None:
    """The published setting: values between the token and the end cancel on both levels."""
    fields: dict[str, Any] = {"gamma_turn": gamma, "lam": 1.0, "high": 0.28, "kl": K1 if pulled else KL()}
    bilevel = PPOBilevel(gamma_turn=gamma, whiten=False, kl=fields["kl"])
    assert bilevel == raw("ppo_bilevel", **fields)
    assert_same(bilevel, raw("ppo", **fields), observed(batch_of(rows)))


@quick
@given(row_lists(), shares)
def test_vapo_with_one_lambda_and_no_pull_to_success_is_ppo(rows: list[Row], gamma: float) -> None:
    fields = {"gamma_turn": gamma, "high": 0.28, "whiten": False}
    vapo = algos.make("vapo", alpha=ENDLESS, mu=0.0, **fields)
    assert_same(vapo, algos.make("ppo", lam=1.0, **fields), observed(batch_of(rows)))


@quick
@given(batches(), st.sampled_from(FAMILY))
def test_without_values_and_discounts_all_give_the_return(batch: Batch, name: str) -> None:
    assert batch.value is not None and batch.bootstrap is not None
    nothing = {"value": torch.zeros_like(batch.value), "bootstrap": torch.zeros_like(batch.bootstrap)}
    batch = dataclasses.replace(batch, **nothing)  # type: ignore[arg-type]
    advantage, target, at = estimated(raw(name, **MONTE_CARLO[name]), batch)
    close(advantage, spread_turns(returns_to_go(batch.reward), batch.turn))
    close(target[at], advantage[at])
    # and where all of it comes at the end, the outcome
    last = (batch.n_turns - 1)[:, None]
    outcome = batch.reward.sum(1, keepdim=True)
    at_end = dataclasses.replace(batch, reward=torch.zeros_like(batch.reward).scatter(1, last, outcome))
    close(estimated(raw(name, **MONTE_CARLO[name]), at_end)[0], outcome * batch.action)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithAStateValue(Algorithm):
    """Another algorithm, beside a critic whose values depend on the state alone."""

    inner: Algorithm

    def credit(self, batch: Batch) -> Credit:
        return self.inner.credit(self._valued(batch))

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        valued = self._valued(batch)
        assert isinstance(valued, Minibatch)
        return self.inner.loss(scores._replace(value=valued.value), valued)

    def _valued(self, batch: Batch) -> Batch:
        value = torch.tensor([0.0, 0.3, 0.0, -0.7], dtype=torch.float64).expand(batch.size, -1) * batch.action
        return dataclasses.replace(batch, value=value, bootstrap=torch.zeros_like(value[:, 0]))


@each_of_the_family
@pytest.mark.parametrize("size", [1, 2])
def test_with_any_critic_the_expected_update_is_the_policy_gradient(name: str, size: int) -> None:
    """At lambda 1 a value of the state is a baseline; nothing about the critic can bias the update."""
    mild = {"low": None, "high": None} | MONTE_CARLO[name] | ({"mu": 0.0} if name == "vapo" else {})
    algorithm = WithAStateValue(inner=raw(name, **mild), reduce="seq_sum")
    torch.testing.assert_close(expected_ascent(algorithm, size), true_gradient(), rtol=1e-9, atol=1e-12)


# What must not matter, and what must -----------------------------------------------------------------


@quick
@given(batches(), st.sampled_from(FAMILY), st.sampled_from((1e6, -3.0)))
def test_values_at_observed_tokens_never_matter(batch: Batch, name: str, nonsense: float) -> None:
    assert batch.value is not None
    algorithm = algos.make(name, kl=K1)
    other = dataclasses.replace(batch, value=torch.where(batch.action, batch.value, nonsense))
    for found, expected in zip(estimated(algorithm, other), estimated(algorithm, batch)):
        assert torch.equal(found[batch.action], expected[batch.action])
    assert algorithm.credit(other).metrics == algorithm.credit(batch).metrics


@quick
@given(batches())
def test_over_turns_only_the_first_value_of_a_turn_matters(batch: Batch) -> None:
    """Neither for the credit, nor in the critic's gradient."""
    assert batch.value is not None
    algorithm = algos.make("ppo_turn", value_clip=None)
    first = first_token(batch.turn, batch.reward.shape[1])
    other = dataclasses.replace(batch, value=torch.where(first, batch.value, 77.0))
    for found, expected in zip(estimated(algorithm, other), estimated(algorithm, batch)):
        assert torch.equal(found, expected)
    _, data, weights = judged(algorithm, observed(batch))
    assert data.target is not None
    value = (data.target + 1).requires_grad_()  # everywhere 1 too high
    loss, _ = algorithm.loss(score(data, table())._replace(value=value), data)
    gradient = torch.autograd.grad((weights * loss)[data.action].sum(), value)[0]
    assert (gradient[~first] == 0).all() and (gradient[first] > 0).all()


@each_of_the_family
def test_truncation_bootstraps_and_termination_does_not(name: str) -> None:
    rows = [Row(((1, 2), (2, 3)), (0.5, 1.0), terminated=False, seed=seed) for seed in range(3)]
    batch = batch_of(rows)
    batch = dataclasses.replace(
        batch,
        terminated=torch.tensor([False, True, False]),
        judged=torch.tensor([False, False, True]),  # cut, but paid for its end: nothing is to come
    )
    assert batch.bootstrap is not None
    algorithm = raw(name)
    richer = dataclasses.replace(batch, bootstrap=batch.bootstrap + 1)
    for before, after in list(zip(estimated(algorithm, batch), estimated(algorithm, richer)))[:2]:
        assert torch.equal(after[1:], before[1:])
    before, after = estimated(algorithm, batch)[0], estimated(algorithm, richer)[0]
    gamma = algorithm.gamma_turn  # type: ignore[attr-defined]
    assert float((after - before)[0, -1]) == pytest.approx(gamma)  # the last token sees gamma V(s_T)


@each_of_the_family
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_episode_without_a_real_reward_is_set_aside(name: str, bad: float) -> None:
    rows = [Row(((1, 2), (1, 1)), (0.5, r), terminated=False, seed=i) for i, r in enumerate((1.0, bad, 0.0))]
    batch = observed(batch_of(rows))
    algorithm = algos.make(name)
    credit, data, weights = judged(algorithm, batch)
    assert credit.keep is not None and credit.keep.tolist() == [True, False, True]
    assert credit.target is not None and credit.critic_at is not None
    assert not credit.critic_at[1].any() and not weights[1].any()
    loss, metrics = algorithm.loss(score(data, table()), data)
    for number in (credit.advantage, credit.target, loss, *metrics.values()):
        assert number.isfinite().all()
    alone = algorithm.credit(batch.rows(torch.tensor([0, 2])))
    close(credit.advantage[[0, 2]], alone.advantage)


# VAPO's pull to success ------------------------------------------------------------------------------


@quick
@given(batches(), st.sampled_from((0.0, 0.5)), st.sampled_from((-1.0, 0.0, 2.0)))
def test_the_likelihood_of_positive_episodes_is_added(batch: Batch, mu: float, above: float) -> None:
    pulled = VAPO(mu=mu, positive_above=above if mu else 0.0)
    _, data, _ = judged(pulled, observed(batch))
    scores = score(data, table())
    loss, metrics = pulled.loss(scores, data)
    positive = ((batch.reward.sum(1) > pulled.positive_above)[:, None] & batch.action).double()
    close(loss - VAPO(mu=0.0).loss(scores, data)[0], -mu * positive * scores.logp)
    close(metrics["nll"], -positive * scores.logp.detach())
    close(metrics["positive"], positive)


@each_of_the_family
def test_published_settings(name: str) -> None:
    made = algos.make(name)
    assert made.needs == {"critic"} and made.reduce == "token"
    published = {
        "ppo_turn": {"gamma_turn": 0.99, "lam": 0.9, "low": 0.2, "high": 0.2, "ratio": "token"},
        "ppo_bilevel": {"gamma_turn": 0.95, "gamma_token": 1, "lam": 1, "lam_turn": 1, "low": 0.2, "high": 0.28},
        "vapo": {"lam_critic": 1, "alpha": 0.05, "mu": 0.1, "low": 0.2, "high": 0.28, "gamma_turn": 1},
    }.get(name, {"lam": 0.95, "low": 0.2, "high": 0.2})
    assert {field: getattr(made, field) for field in published} == published

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from algos.base import Batch
from algos.maths import advantages as adv
from algos.maths.advantages import Baseline, Scale, gae, group_advantages, returns_to_go, token_discount
from tests.algos.batches import Row, batch_of, batches, padded, quick, rewards_of_one

BASELINES: tuple[Baseline, ...] = ("group_mean", "group_median", "global_mean", "leave_one_out", "none")
GROUP_BASELINES: tuple[Baseline, ...] = ("group_mean", "group_median", "leave_one_out")
SCALES: tuple[Scale, ...] = ("none", "group", "batch")

options = st.tuples(st.sampled_from(BASELINES), st.sampled_from(SCALES))


@st.composite
def grouped(draw: st.DrawFn, min_size: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Returns, group ids and validity of a few episodes in any order."""
    rows = draw(
        st.lists(
            st.tuples(
                rewards_of_one, st.sampled_from((4, -9, 1 << 40)), st.sampled_from((True, True, False))
            ),
            min_size=min_size,
            max_size=12,
        )
    )
    returns, group, valid = zip(*rows)
    return torch.tensor(returns, dtype=torch.float64), torch.tensor(group), torch.tensor(valid)


def close(found: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=atol)


def ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


# Rewards and returns ---------------------------------------------------------------------------------


def test_rewards_past_the_last_turn_do_not_exist() -> None:
    reward = torch.tensor([[1.0, math.nan], [2.0, 3.0]])
    cleaned, valid = adv.clean_rewards(reward, torch.tensor([1, 2]))
    assert cleaned.tolist() == [[1, 0], [2, 3]] and valid.tolist() == [True, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_episode_with_a_reward_that_is_no_number_is_set_aside(bad: float) -> None:
    reward = torch.tensor([[1.0, bad], [2.0, 3.0]])
    cleaned, valid = adv.clean_rewards(reward, torch.tensor([2, 2]), clip=10.0)
    assert cleaned.tolist() == [[0, 0], [2, 3]] and valid.tolist() == [False, True]


def test_clipping_bounds_each_turn_on_both_sides() -> None:
    cleaned, _ = adv.clean_rewards(torch.tensor([[-9.0, 0.5, 9.0]]), torch.tensor([3]), clip=2.0)
    assert cleaned.tolist() == [[-2, 0.5, 2]]


@quick
@given(st.lists(rewards_of_one, min_size=1, max_size=6), st.sampled_from((0.0, 0.5, 1.0)))
def test_returns_to_go_is_the_discounted_sum_of_what_follows(rewards: list[float], gamma: float) -> None:
    expected = [
        sum(gamma ** (j - k) * rewards[j] for j in range(k, len(rewards))) for k in range(len(rewards))
    ]
    found = returns_to_go(torch.tensor([rewards], dtype=torch.float64), gamma)
    close(found, torch.tensor([expected], dtype=torch.float64))


# Tokens and turns ------------------------------------------------------------------------------------


@quick
@given(batches())
def test_turn_rewards_reach_their_last_tokens_and_sum_to_the_episode(batch: Batch) -> None:
    on_tokens = adv.on_last_token(batch.reward, batch.turn)
    for b in range(batch.size):
        for k in range(int(batch.n_turns[b])):
            at = (batch.turn[b] == k).nonzero().flatten().tolist()
            assert on_tokens[b, at[-1]] == batch.reward[b, k]
            assert (on_tokens[b, at[:-1]] == 0).all()
    assert (on_tokens[~batch.action] == 0).all()
    assert torch.equal(on_tokens.sum(1), batch.reward.sum(1))
    assert torch.equal(adv.sum_turns(on_tokens, batch.turn, batch.reward.shape[1]), batch.reward)


def test_a_turn_may_be_interrupted_by_tokens_that_nobody_sampled() -> None:
    turn = torch.tensor([[0, -1, 0, -1, 1]])
    assert adv.on_last_token(torch.tensor([[5.0, 7.0]]), turn).tolist() == [[0, 0, 5, 0, 7]]


def test_nothing_in_nothing_out() -> None:
    nothing, group, valid = torch.zeros(0).double(), torch.zeros(0).long(), ones(0)
    for name in ("group_mean", "group_median", "group_std", "leave_one_out_mean", "group_varies"):
        assert getattr(adv, name)(nothing, group, valid).shape == (0,)
    report = {"groups": 0, "singleton_groups": 0, "set_aside": 0, "informative_groups": 0}
    assert adv.group_report(nothing, group, valid) == report


def test_rows_that_say_nothing() -> None:
    silent = torch.full((2, 3), -1)
    assert adv.turns_of(silent) == 1 and adv.turns_of(torch.tensor([[-1, 0, 2]])) == 3
    assert token_discount(silent, 0.5, 0.5).tolist() == [[1, 1, 1]] * 2
    assert not adv.last_token(silent, 1).any() and not adv.first_token(silent, 1).any()


def test_whitening_fewer_than_two_gives_nothing() -> None:
    x = torch.tensor([3.0, 5.0])
    assert adv.whiten(x, torch.tensor([False, False])).tolist() == [0, 0]
    assert adv.whiten(x, torch.tensor([False, True])).tolist() == [0, 0]


def test_first_and_last_tokens_at_the_edges_of_a_row() -> None:
    turn = torch.tensor([[0, -1, 1], [-1, -1, 0]])
    assert adv.first_token(turn, 2).tolist() == [[True, False, True], [False, False, True]]
    assert adv.last_token(turn, 2).tolist() == [[True, False, True], [False, False, True]]
    assert adv.first_token(turn[1:], 1).tolist() == [[False, False, True]]  # fewer rows than columns


@quick
@given(batches())
def test_spreading_and_summing(batch: Batch) -> None:
    length = batch.action.sum(1)
    episodes = adv.spread_episodes(batch.bootstrap, batch.action)  # type: ignore[arg-type]
    close(episodes.sum(1), batch.bootstrap * length)  # type: ignore[operator]
    per_turn = adv.spread_turns(batch.reward, batch.turn)
    lengths = torch.stack([(batch.turn == k).sum(1) for k in range(batch.reward.shape[1])], 1)
    close(adv.sum_turns(per_turn, batch.turn, batch.reward.shape[1]), batch.reward * lengths)
    for spread in (episodes, per_turn):
        assert (spread[~batch.action] == 0).all()
    noise = torch.full(batch.turn.shape, math.nan, dtype=torch.float64).masked_fill(batch.action, 1)
    close(adv.sum_turns(noise, batch.turn, batch.reward.shape[1]), lengths.double())


# Group statistics against the standard library -------------------------------------------------------


@quick
@given(grouped())
def test_statistics_of_groups(data: tuple[Tensor, Tensor, Tensor]) -> None:
    returns, group, valid = data
    noisy = returns.masked_fill(~valid, math.nan)
    found = {
        name: getattr(adv, name)(noisy, group, valid)
        for name in ("group_mean", "group_median", "group_std", "leave_one_out_mean", "group_varies")
    }
    for i in range(len(returns)):
        members = [j for j in range(len(returns)) if group[j] == group[i] and valid[j]]
        xs = [float(returns[j]) for j in members]
        others = [float(returns[j]) for j in members if j != i]
        assert math.isclose(found["group_mean"][i], statistics.fmean(xs) if xs else 0, abs_tol=1e-12)
        assert math.isclose(found["group_median"][i], statistics.median(xs) if xs else 0, abs_tol=1e-12)
        assert math.isclose(
            found["group_std"][i], statistics.stdev(xs) if len(xs) > 1 else 0, rel_tol=1e-9, abs_tol=1e-12
        )
        assert bool(found["group_varies"][i]) == (len(set(xs)) > 1)
        expected = statistics.fmean(others) if others else 0
        assert math.isclose(found["leave_one_out_mean"][i], expected, abs_tol=1e-12)


@quick
@given(st.floats(-1e6, 1e6), st.integers(1, 9))
def test_equal_returns_have_no_deviation_at_all(x: float, size: int) -> None:
    """Their mean may differ from them by a rounding: of six times .1 it is .09999999999999999."""
    equal = torch.full((size,), x, dtype=torch.float64)
    assert adv.group_std(equal, torch.zeros(size).long(), ones(size)).tolist() == [0] * size


@quick
@given(grouped())
def test_report_counts_what_groups_can_teach(data: tuple[Tensor, Tensor, Tensor]) -> None:
    returns, group, valid = data
    values: dict[int, list[float]] = {int(g): [] for g in group}
    for x, g, ok in zip(returns.tolist(), group.tolist(), valid.tolist()):
        if ok:
            values[g].append(x)
    assert adv.group_report(returns, group, valid) == {
        "groups": len(values),
        "singleton_groups": sum(len(xs) == 1 for xs in values.values()),
        "set_aside": sum(not ok for ok in valid.tolist()),
        "informative_groups": sum(len(set(xs)) > 1 for xs in values.values()) / len(values),
    }


# Group advantages ------------------------------------------------------------------------------------


@quick
@given(grouped(), options, rewards_of_one)
def test_a_shift_of_rewards_changes_nothing(
    data: tuple[Tensor, Tensor, Tensor], option: tuple[Baseline, Scale], shift: float
) -> None:
    returns, group, valid = data
    baseline, scale = option
    if baseline != "none":
        before = group_advantages(returns, group, valid, baseline=baseline, scale=scale)
        after = group_advantages(returns + shift, group, valid, baseline=baseline, scale=scale)
        close(after, before)


@quick
@given(grouped(), st.sampled_from(BASELINES), st.sampled_from((0.125, 3.0, 64.0)))
def test_scaled_advantages_ignore_the_unit_of_reward_and_centred_ones_carry_it(
    data: tuple[Tensor, Tensor, Tensor], baseline: Baseline, unit: float
) -> None:
    returns, group, valid = data
    for scale in SCALES:
        factor = unit if scale == "none" else 1.0
        before = group_advantages(returns, group, valid, baseline=baseline, scale=scale, eps=0.0)
        after = group_advantages(unit * returns, group, valid, baseline=baseline, scale=scale, eps=0.0)
        close(after, factor * before)


def test_what_divides_is_the_mean_and_eps() -> None:
    returns = torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.float64)  # mean 1
    found = group_advantages(returns, torch.zeros(4).long(), ones(4), scale="mean", eps=0.25)
    close(found, torch.tensor([0, -0.8, 0.8, 0], dtype=torch.float64))  # +-1 / 1.25


@quick
@given(grouped(), st.sampled_from(SCALES))
def test_advantages_sum_to_zero_in_each_group(data: tuple[Tensor, Tensor, Tensor], scale: Scale) -> None:
    returns, group, valid = data
    for baseline in GROUP_BASELINES[::2]:
        found = group_advantages(returns, group, valid, baseline=baseline, scale=scale)
        for g in torch.unique(group):
            assert abs(float(found[group == g].sum())) < 1e-9
    everyone = group_advantages(returns, group, valid, baseline="global_mean", scale="batch")
    assert abs(float(everyone.sum())) < 1e-9


@quick
@given(grouped(), options, st.randoms(use_true_random=False))
def test_order_and_names_of_groups_mean_nothing(
    data: tuple[Tensor, Tensor, Tensor], option: tuple[Baseline, Scale], random: object
) -> None:
    returns, group, valid = data
    order = list(range(len(returns)))
    random.shuffle(order)  # type: ignore[attr-defined]
    before = group_advantages(returns, group, valid, baseline=option[0], scale=option[1])
    after = group_advantages(
        returns[order], 17 - group[order] * 3, valid[order], baseline=option[0], scale=option[1]
    )
    close(after, before[order])


@quick
@given(st.floats(-1e6, 1e6), st.integers(1, 7), st.sampled_from(GROUP_BASELINES), st.sampled_from(SCALES))
def test_a_group_without_variance_gets_exactly_nothing(
    x: float, size: int, baseline: Baseline, scale: Scale
) -> None:
    returns = torch.tensor([x] * size + [x - 1.0, x + 1.0], dtype=torch.float64)
    group = torch.tensor([0] * size + [1, 1])
    found = group_advantages(returns, group, ones(size + 2), baseline=baseline, scale=scale)
    assert (found[:size] == 0).all()
    assert found[-1] > 0 > found[-2]


def test_no_variance_in_the_batch_gives_exactly_nothing() -> None:
    returns, group = torch.full((3,), 0.1), torch.tensor([0, 0, 1])
    cases: tuple[tuple[Baseline, Scale], ...] = (
        ("global_mean", "none"),
        ("none", "batch"),
        ("none", "group"),
    )
    for baseline, scale in cases:
        assert (group_advantages(returns, group, ones(3), baseline=baseline, scale=scale) == 0).all()


@pytest.mark.parametrize("baseline", GROUP_BASELINES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_singleton_gets_exactly_nothing(baseline: Baseline, scale: Scale) -> None:
    returns, group = torch.tensor([1.0, 2.0, 7.0]), torch.tensor([0, 0, 1])
    found = group_advantages(returns, group, ones(3), baseline=baseline, scale=scale)
    assert found[2] == 0 and (found[:2] != 0).all()


@quick
@given(grouped(), options, st.sampled_from((math.nan, math.inf, -math.inf)))
def test_what_is_not_valid_touches_nobody(
    data: tuple[Tensor, Tensor, Tensor], option: tuple[Baseline, Scale], bad: float
) -> None:
    returns, group, valid = data
    baseline, scale = option
    found = group_advantages(returns.masked_fill(~valid, bad), group, valid, baseline=baseline, scale=scale)
    assert (found[~valid] == 0).all()
    alone = group_advantages(returns[valid], group[valid], valid[valid], baseline=baseline, scale=scale)
    assert torch.equal(found[valid], alone)


@quick
@given(st.lists(rewards_of_one, min_size=2, max_size=8), rewards_of_one)
def test_leave_one_out_is_the_centred_return_stretched_and_blind_to_its_own(
    rewards: list[float], other: float
) -> None:
    returns, group = torch.tensor(rewards, dtype=torch.float64), torch.zeros(len(rewards), dtype=torch.int64)
    valid, size = ones(len(rewards)), len(rewards)
    rloo = group_advantages(returns, group, valid, baseline="leave_one_out", scale="none")
    centred = group_advantages(returns, group, valid, baseline="group_mean", scale="none")
    close(rloo, size / (size - 1) * centred)
    changed = returns.clone()
    changed[0] = other
    baseline = adv.leave_one_out_mean(returns, group, valid)
    assert adv.leave_one_out_mean(changed, group, valid)[0] == baseline[0]


@quick
@given(grouped(), st.sampled_from(BASELINES), st.sampled_from(SCALES[1:]), st.sampled_from((0.0, 0.5)))
def test_scaling_only_divides(
    data: tuple[Tensor, Tensor, Tensor], baseline: Baseline, scale: Scale, eps: float
) -> None:
    returns, group, valid = data
    scope = group if scale == "group" else torch.zeros_like(group)
    sigma = adv.group_std(returns, scope, valid)
    divided = group_advantages(returns, group, valid, baseline=baseline, scale=scale, eps=eps)
    plain = group_advantages(returns, group, valid, baseline=baseline, scale="none")
    close(divided * (sigma + eps), torch.where(sigma > 0, plain, 0.0))


@quick
@given(grouped(), options, st.lists(rewards_of_one, min_size=12, max_size=12))
def test_turns_are_judged_by_the_statistics_of_episodes(
    data: tuple[Tensor, Tensor, Tensor], option: tuple[Baseline, Scale], later: list[float]
) -> None:
    returns, group, valid = data
    baseline, scale = option
    to_go = torch.stack([returns, torch.tensor(later, dtype=torch.float64)[: len(returns)]], 1)
    found = group_advantages(returns, group, valid, baseline=baseline, scale=scale, of=to_go)
    plain = group_advantages(returns, group, valid, baseline=baseline, scale=scale)
    assert torch.equal(found[:, 0], plain)
    dead = ~valid
    if baseline in GROUP_BASELINES or scale == "group":
        dead = dead | ~adv.group_varies(returns, group, valid)
    assert (found[dead] == 0).all()
    alive = plain != 0
    factor = _factor(returns, group, valid, scale)
    close((found[:, 1] - plain)[alive], ((to_go[:, 1] - returns) * factor)[alive])


def _factor(returns: Tensor, group: Tensor, valid: Tensor, scale: Scale) -> Tensor:
    if scale == "none":
        return torch.ones_like(returns)
    scope = group if scale == "group" else torch.zeros_like(group)
    return 1 / (adv.group_std(returns, scope, valid) + 1e-6)


# Generalised advantage estimation --------------------------------------------------------------------

unit = st.sampled_from((0.0, 0.3, 0.9, 1.0))


def judge(batch: Batch, gamma_token: float, gamma_turn: float, lam: float, **changes: Any) -> Tensor:
    """GAE of a batch over its action tokens."""
    batch = dataclasses.replace(batch, **changes)
    assert batch.value is not None and batch.bootstrap is not None
    return gae(
        adv.on_last_token(batch.reward, batch.turn),
        batch.value,
        batch.action,
        terminated=batch.terminated,
        bootstrap=batch.bootstrap,
        discount=token_discount(batch.turn, gamma_token, gamma_turn),
        lam=lam,
    )


def by_definition(batch: Batch, gamma_token: float, gamma_turn: float, lam: float) -> Tensor:
    """The O(T^2) double sum over the steps of each row, with nothing carried."""
    assert batch.value is not None and batch.bootstrap is not None
    result = torch.zeros_like(batch.value)
    for b in range(batch.size):
        at = batch.action[b].nonzero().flatten().tolist()
        turns = [int(batch.turn[b, t]) for t in at]
        last = [i + 1 == len(at) or turns[i + 1] != turns[i] for i in range(len(at))]
        discount = [gamma_token * (gamma_turn if end else 1) for end in last]
        reward = [float(batch.reward[b, k]) if end else 0.0 for k, end in zip(turns, last)]
        after = 0.0 if batch.terminated[b] else float(batch.bootstrap[b])
        value = [float(batch.value[b, t]) for t in at] + [after]
        delta = [r + g * value[i + 1] - value[i] for i, (r, g) in enumerate(zip(reward, discount))]
        for i, t in enumerate(at):
            result[b, t] = sum(
                math.prod(discount[i:j]) * lam ** (j - i) * delta[j] for j in range(i, len(at))
            )
    return result


@quick
@given(batches(), unit, unit, unit)
def test_gae_is_its_double_sum(batch: Batch, gamma_token: float, gamma_turn: float, lam: float) -> None:
    close(judge(batch, gamma_token, gamma_turn, lam), by_definition(batch, gamma_token, gamma_turn, lam))


@quick
@given(batches(), unit, unit)
def test_lambda_one_is_the_return_minus_the_value(
    batch: Batch, gamma_token: float, gamma_turn: float
) -> None:
    assert batch.value is not None
    found = judge(batch, gamma_token, gamma_turn, 1.0)
    returns = judge(batch, gamma_token, gamma_turn, 1.0, value=torch.zeros_like(batch.value))
    close(found, torch.where(batch.action, returns - batch.value, 0.0))


@quick
@given(batches())
def test_without_future_only_the_reward_and_the_value_count(batch: Batch) -> None:
    assert batch.value is not None
    expected = torch.where(batch.action, adv.on_last_token(batch.reward, batch.turn) - batch.value, 0.0)
    close(judge(batch, 0.0, 1.0, 0.9), expected)


@quick
@given(batches(), unit, unit, unit, st.sampled_from((1e9, math.nan, -math.inf)))
def test_what_the_user_says_has_no_value(
    batch: Batch, gamma_token: float, gamma_turn: float, lam: float, noise: float
) -> None:
    assert batch.value is not None
    before = judge(batch, gamma_token, gamma_turn, lam)
    after = judge(batch, gamma_token, gamma_turn, lam, value=batch.value.masked_fill(~batch.action, noise))
    assert torch.equal(after, before)
    assert (after[~batch.action] == 0).all()


@quick
@given(batches(), unit, unit, unit)
def test_padding_changes_nothing(batch: Batch, gamma_token: float, gamma_turn: float, lam: float) -> None:
    before = judge(batch, gamma_token, gamma_turn, lam)
    after = judge(padded(batch, 4), gamma_token, gamma_turn, lam)
    assert torch.equal(after[:, : before.shape[1]], before)
    assert (after[:, before.shape[1] :] == 0).all()


@quick
@given(batches(), unit, unit)
def test_truncation_asks_the_critic_and_termination_does_not(
    batch: Batch, gamma_token: float, gamma_turn: float
) -> None:
    assert batch.bootstrap is not None
    before = judge(batch, gamma_token, gamma_turn, 1.0)
    after = judge(batch, gamma_token, gamma_turn, 1.0, bootstrap=batch.bootstrap + 1)
    for b in range(batch.size):
        at = batch.action[b].nonzero().flatten()
        paid = token_discount(batch.turn, gamma_token, gamma_turn)[b, at]
        left = torch.stack([paid[i:].prod() for i in range(len(at))])
        close(after[b, at] - before[b, at], left * ~batch.terminated[b])
    nothing = torch.full_like(batch.bootstrap, math.nan)
    ended = torch.ones_like(batch.terminated)
    assert judge(batch, 0.9, 0.9, 0.9, bootstrap=nothing, terminated=ended).isfinite().all()


@quick
@given(batches(), unit)
def test_turns_are_steps_as_well_as_tokens_are(batch: Batch, lam: float) -> None:
    """On [B,K] the same function is GAE over turns; it agrees with tokens when each turn has one token."""
    assert batch.bootstrap is not None
    rows = [
        Row(tuple((2, 1) for _ in range(int(n))), tuple(r[:n].tolist()), terminated=bool(t), seed=i)
        for i, (n, r, t) in enumerate(zip(batch.n_turns, batch.reward, batch.terminated))
    ]
    single = batch_of(rows)
    assert single.value is not None and single.bootstrap is not None
    step = torch.arange(single.reward.shape[1]) < single.n_turns[:, None]  # [B,K]
    values = adv.sum_turns(single.value, single.turn, single.reward.shape[1])
    over_turns = gae(
        single.reward,
        values,
        step,
        terminated=single.terminated,
        bootstrap=single.bootstrap,
        discount=0.9,
        lam=lam,
    )
    close(adv.spread_turns(over_turns, single.turn), judge(single, 1.0, 0.9, lam))


@quick
@given(batches(), unit, unit)
def test_lambda_may_differ_from_row_to_row(batch: Batch, first: float, second: float) -> None:
    lam = torch.where(torch.arange(batch.size) % 2 == 0, first, second)[:, None].double()
    found = judge(batch, 0.9, 0.9, lam)  # type: ignore[arg-type]
    for b in range(batch.size):
        close(found[b], judge(batch, 0.9, 0.9, float(lam[b]))[b])


@quick
@given(batches(), unit, unit, st.integers(0, 99))
def test_potential_based_shaping_moves_the_critic_and_not_the_advantage(
    batch: Batch, gamma: float, lam: float, seed: int
) -> None:
    """Reward r + gamma Phi(s') - Phi(s) with V - Phi gives the advantages of r with V, for any lambda."""
    assert batch.value is not None and batch.bootstrap is not None
    phi = torch.randn(batch.value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    phi = phi * batch.action
    reward = adv.on_last_token(batch.reward, batch.turn)
    given_ = {"terminated": batch.terminated, "discount": gamma, "lam": lam}
    before = gae(reward, batch.value, batch.action, bootstrap=batch.bootstrap, **given_)  # type: ignore[arg-type]
    # lambda 0 with no reward is gamma Phi(s') - Phi(s); Phi after the end is 0
    nothing = torch.zeros_like(batch.bootstrap)
    shaping = gae(
        torch.zeros_like(phi),
        phi,
        batch.action,
        terminated=batch.terminated,
        bootstrap=nothing,
        discount=gamma,
        lam=0.0,
    )
    after = gae(
        reward + shaping,
        batch.value - phi,
        batch.action,
        bootstrap=batch.bootstrap,
        **given_,  # type: ignore[arg-type]
    )
    close(after, before)


def test_potential_based_shaping_keeps_the_best_plan() -> None:
    """All plans of a two-action, four-turn tree, enumerated."""
    generator = torch.Generator().manual_seed(3)
    plans = list(itertools.product((0, 1), repeat=4))
    nodes = [plan[:k] for k in range(5) for plan in itertools.product((0, 1), repeat=4)]
    worth = {node: float(torch.randn((), generator=generator)) for node in nodes}
    phi = {node: 3 * float(torch.randn((), generator=generator)) for node in nodes}
    gamma = 0.8
    plain = [[worth[plan[: k + 1]] for k in range(4)] for plan in plans]
    shaped = [
        [r + gamma * (phi[plan[: k + 1]] if k < 3 else 0) - phi[plan[:k]] for k, r in enumerate(rewards)]
        for plan, rewards in zip(plans, plain)
    ]
    before = returns_to_go(torch.tensor(plain, dtype=torch.float64), gamma)[:, 0]
    after = returns_to_go(torch.tensor(shaped, dtype=torch.float64), gamma)[:, 0]
    close(after, before - phi[()])
    assert after.argmax() == before.argmax()


def test_the_discount_of_a_turn_is_paid_once_when_it_ends() -> None:
    turn = torch.tensor([[-1, 0, 0, -1, 1, -1]])
    expected = torch.tensor([[1, 0.5, 0.5 * 0.25, 1, 0.5 * 0.25, 1]], dtype=torch.float64)
    assert torch.equal(token_discount(turn, 0.5, 0.25), expected)
    assert torch.equal(token_discount(turn), torch.ones_like(expected))


def test_nothing_is_discounted_unless_asked() -> None:
    reward, value = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25, 0.5]])
    ended, nothing = ones(1), torch.zeros(1)
    found = gae(reward, value, ones(2)[None], terminated=ended, bootstrap=nothing)
    assert found.tolist() == [[0.75, 0.5]]
    assert returns_to_go(reward).tolist() == [[1, 1]]


# Whitening and explained variance --------------------------------------------------------------------


@quick
@given(st.lists(rewards_of_one, min_size=2, max_size=20), st.lists(st.booleans(), min_size=20, max_size=20))
def test_whitening(numbers: list[float], flags: list[bool]) -> None:
    x, mask = torch.tensor(numbers, dtype=torch.float64), torch.tensor(flags)[: len(numbers)]
    found = adv.whiten(x.masked_fill(~mask, math.nan), mask, eps=0.0)
    assert (found[~mask] == 0).all()
    inside = x[mask]
    if len(set(inside.tolist())) < 2:
        assert (found == 0).all()
    else:
        close(found[mask], (inside - inside.mean()) / inside.std())
        half = adv.whiten(x, mask, eps=float(inside.std()))
        close(half, found / 2)


def test_equal_numbers_whiten_to_exactly_nothing() -> None:
    assert (adv.whiten(torch.full((3,), 0.1), ones(3)) == 0).all()


def test_explained_variance() -> None:
    target, mask = torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([True, True, True, False])
    assert adv.explained_variance(target, target, mask) == 1
    assert adv.explained_variance(target + 5, target, mask) == 1
    assert adv.explained_variance(torch.zeros(4), target, mask) == 0
    assert adv.explained_variance(-target, target, mask) == -3
    assert adv.explained_variance(target, torch.ones(4), mask) == 0
    assert adv.explained_variance(target, target, mask & False) == 0
    assert adv.explained_variance(torch.zeros(2), torch.tensor([0.0, 1e-30]), ones(2)) == 0  # 1e-60 is 0 in float32

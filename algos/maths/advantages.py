"""From rewards to advantages: returns, baselines, group statistics, GAE, whitening.

Statistics are taken over episodes, never over rows of a layout or over tokens, and a group is the
episodes that share an id, in any order and of any number. An episode whose reward is NaN or infinite is
not ``valid``: it takes no part in any statistic and gets advantage 0. Standard deviations are those of a
sample (divided by n - 1).

Axes: B rows (episodes), T tokens, K turns. ``turn`` is the turn of each token, -1 off action.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

Baseline = Literal["group_mean", "group_median", "global_mean", "leave_one_out", "none"]
Scale = Literal["none", "group", "batch", "mean"]


# Rewards and returns ---------------------------------------------------------------------------------------


def clean_rewards(
    reward: Float[Tensor, "B K"], n_turns: Int[Tensor, " B"], clip: float | None = None
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, " B"]]:
    """The rewards of real turns, and which episodes are valid.

    Args:
        reward: [B,K] reward that each turn brought.
        n_turns: [B] number of turns.
        clip: Bound of the absolute reward of a turn; ``None`` for no bound. An infinite one is set aside
            all the same.

    Returns:
        [B,K] rewards, 0 past the last turn and in episodes that are not valid; [B] bool, valid episodes.
    """
    real = torch.arange(reward.shape[1], device=reward.device) < n_turns[:, None]  # [B,K]
    valid = (torch.isfinite(reward) | ~real).all(1)
    cleaned = torch.where(real & valid[:, None], reward, torch.zeros_like(reward))
    return (cleaned if clip is None else cleaned.clamp(-clip, clip)), valid


def returns_to_go(reward: Float[Tensor, "B K"], gamma: float = 1.0) -> Float[Tensor, "B K"]:
    """Discounted return from each turn on: ``R_k = r_k + gamma R_{k+1}``.

    Args:
        reward: [B,K], 0 past the last turn.
        gamma: Discount per turn.

    Returns:
        [B,K]; column 0 is the return of the episode.
    """
    running, columns = torch.zeros_like(reward[:, 0]), []
    for r_k in reversed(reward.unbind(1)):
        running = r_k + gamma * running
        columns.append(running)
    return torch.stack(columns[::-1], 1)


# From episodes and turns to tokens, and back ---------------------------------------------------------------


def spread_episodes(x: Shaped[Tensor, " B"], action: Bool[Tensor, "B T"]) -> Shaped[Tensor, "B T"]:
    """Gives each action token the number of its episode: [B] -> [B,T], 0 off action."""
    return torch.where(action, x[:, None], x.new_zeros(()))


def spread_turns(x: Shaped[Tensor, "B K"], turn: Int[Tensor, "B T"]) -> Shaped[Tensor, "B T"]:
    """Gives each action token the number of its turn: [B,K] -> [B,T], 0 off action."""
    return torch.where(turn >= 0, x.gather(1, turn.clamp(min=0)), x.new_zeros(()))


def sum_turns(x: Shaped[Tensor, "B T"], turn: Int[Tensor, "B T"], turns: int) -> Shaped[Tensor, "B {turns}"]:
    """Sums the tokens of each turn: [B,T] -> [B,K] with K = ``turns``; what is off action does not count."""
    inside = torch.where(turn >= 0, x, torch.zeros_like(x))
    return x.new_zeros(x.shape[0], turns).scatter_add(1, turn.clamp(min=0), inside)


def on_last_token(x: Shaped[Tensor, "B K"], turn: Int[Tensor, "B T"]) -> Shaped[Tensor, "B T"]:
    """Puts the number of each turn on the turn's last token: [B,K] -> [B,T], 0 elsewhere.

    A turn brings its reward when it is complete; a reward on each of its tokens would count many times.
    """
    return torch.where(last_token(turn, x.shape[1]), spread_turns(x, turn), x.new_zeros(()))


def turns_of(turn: Int[Tensor, "B T"]) -> int:
    """K as far as tokens show it: the largest turn that has one, plus 1; at least 1."""
    return int(turn.amax().clamp(min=0)) + 1


def first_token(turn: Int[Tensor, "B T"], turns: int) -> Bool[Tensor, "B T"]:
    """[B,T] bool, the first token of each turn; ``turns`` is K."""
    return _extreme_token(turn, turns, "amin")


def last_token(turn: Int[Tensor, "B T"], turns: int) -> Bool[Tensor, "B T"]:
    """[B,T] bool, the last token of each turn."""
    return _extreme_token(turn, turns, "amax")


def _extreme_token(turn: Int[Tensor, "B T"], turns: int, which: str) -> Bool[Tensor, "B T"]:
    """[B,T] bool, the first or the last token of each turn: the smallest or largest position."""
    at = torch.arange(turn.shape[1], device=turn.device).expand_as(turn)
    index, outside = turn.clamp(min=0), -1 if which == "amax" else turn.shape[1]
    found = turn.new_full((turn.shape[0], turns), outside)
    found = found.scatter_reduce(1, index, torch.where(turn >= 0, at, outside), which)  # [B,K]
    return (turn >= 0) & (found.gather(1, index) == at)


# Statistics of groups --------------------------------------------------------------------------------------


def group_mean(
    x: Float[Tensor, " B"], group: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Mean over the valid episodes of the row's group: [B] -> [B]; 0 for a group without any."""
    member, count = _members(group, valid)
    return (_group_sum(x, member, valid, len(count)) / count.clamp(min=1))[member]


def group_median(
    x: Float[Tensor, " B"], group: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Median over the valid episodes of the row's group, [B] -> [B]; of four, the mid of the middle two."""
    member, count = _members(group, valid)
    order = torch.where(valid, x, torch.full_like(x, torch.inf)).argsort()
    order = order[member[order].argsort(stable=True)]  # by group, and by x inside a group, invalid ones last
    size = torch.bincount(member, minlength=len(count))
    first = size.cumsum(0) - size
    low, high = first + (count - 1).clamp(min=0) // 2, first + count // 2
    clean = torch.where(valid, x, torch.zeros_like(x))[order]
    return ((clean[low] + clean[high]) / 2)[member]


def leave_one_out_mean(
    x: Float[Tensor, " B"], group: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Mean over the *other* valid episodes of the row's group: [B] -> [B]; 0 where there are none.

    Source: Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740), eq. 6.
    """
    member, count = _members(group, valid)
    clean = torch.where(valid, x, torch.zeros_like(x))
    others = count[member] - valid.long()
    return (_group_sum(x, member, valid, len(count))[member] - clean) / others.clamp(min=1)


def group_std(
    x: Float[Tensor, " B"], group: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Standard deviation over the valid episodes of the row's group, [B] -> [B]; 0 if all are equal."""
    member, count = _members(group, valid)
    deviation = x - group_mean(x, group, valid)
    variance = _group_sum(deviation.square(), member, valid, len(count)) / (count - 1)  # not looked at for singletons
    return torch.where(group_varies(x, group, valid), variance.sqrt()[member], torch.zeros_like(x))


def group_varies(
    x: Float[Tensor, " B"], group: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> Bool[Tensor, " B"]:
    """Whether the valid episodes of the row's group differ at all: [B] bool; false for singletons.

    It compares the extremes, because a mean of equal numbers may differ from them by a rounding.
    """
    member, count = _members(group, valid)
    high = _group_extreme(x, member, valid, len(count), "amax")
    low = _group_extreme(x, member, valid, len(count), "amin")
    return (high > low)[member]


def group_advantages(
    returns: Float[Tensor, " B"],
    group: Int[Tensor, " B"],
    valid: Bool[Tensor, " B"],
    *,
    baseline: Baseline = "group_mean",
    scale: Scale = "group",
    eps: float = 1e-6,
    of: Float[Tensor, "B ..."] | None = None,
) -> Float[Tensor, "B ..."]:
    """Group-relative advantages ``(x - b) / (sigma + eps)``, with ``b`` and ``sigma`` taken from the returns.

    Scaling only divides: it never centres again, or the choice of the baseline would change nothing.
    Where what the baseline or the scale looks at (group or batch) has no variance, the advantage is
    exactly 0; so it is for singletons of the group baselines.

    Source: Shao et al. 2024 (arXiv 2402.03300), section 4.1; unscaled: Liu et al. 2025 (arXiv 2503.20783).

    Args:
        returns: [B] return of each episode.
        group: [B] group ids.
        valid: [B] bool, episodes that take part.
        baseline: What is subtracted.
        scale: Whose standard deviation divides; ``mean``: the mean of the group divides instead (MaxRL), and
            groups whose mean is not above 0 get 0.
        eps: Added to what divides.
        of: [B] or [B,K], what is centred and scaled, if not the returns themselves.

    Returns:
        The shape of ``of``, or [B]; 0 where not valid.
    """
    everyone = torch.zeros_like(group)
    scope = everyone if baseline == "global_mean" else group
    centre = _BASELINES[baseline](returns, scope, valid)
    alive = valid if baseline == "none" else valid & group_varies(returns, scope, valid)
    factor = torch.ones_like(returns)
    if scale == "mean":
        mean = group_mean(returns, group, valid)
        alive = alive & (mean > 0)
        factor = 1 / (mean + eps)
    elif scale != "none":
        sigma = group_std(returns, group if scale == "group" else everyone, valid)
        alive = alive & (sigma > 0)
        factor = 1 / (sigma + eps)
    x = returns if of is None else of
    column = (-1,) + (1,) * (x.ndim - 1)  # per-episode statistics against [B] or [B,K]
    advantage = (x - centre.view(column)) * factor.view(column)
    return torch.where(alive.view(column), advantage, torch.zeros_like(advantage))


def group_report(
    returns: Float[Tensor, " B"], group: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> dict[str, float]:
    """Counts for the log: how much the groups of a batch can teach.

    Returns:
        ``groups``, ``singleton_groups`` and ``set_aside`` (episodes that are not valid) as counts, and
        ``informative_groups``, the share of groups whose returns differ.
    """
    member, count = _members(group, valid)
    varies = torch.zeros_like(count, dtype=torch.bool)
    varies[member] = group_varies(returns, group, valid)
    return {
        "groups": float(len(count)),
        "singleton_groups": float((count == 1).sum()),
        "set_aside": float((~valid).sum()),
        "informative_groups": float(varies.sum()) / max(len(count), 1),
    }


def _members(
    group: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Int[Tensor, " groups"]]:
    """[B] position of each row's group among the groups, and the number of valid episodes of each group."""
    names, member = torch.unique(group, return_inverse=True)
    return member, torch.zeros_like(names).index_add(0, member, valid.to(names.dtype))


def _group_sum(
    x: Float[Tensor, " B"], member: Int[Tensor, " B"], valid: Bool[Tensor, " B"], groups: int
) -> Float[Tensor, " {groups}"]:
    return x.new_zeros(groups).index_add(0, member, torch.where(valid, x, torch.zeros_like(x)))


def _group_extreme(
    x: Float[Tensor, " B"], member: Int[Tensor, " B"], valid: Bool[Tensor, " B"], groups: int, which: str
) -> Float[Tensor, " {groups}"]:
    worst = -torch.inf if which == "amax" else torch.inf
    start = x.new_full((groups,), worst)
    return start.scatter_reduce(0, member, torch.where(valid, x, torch.full_like(x, worst)), which)


def _no_baseline(
    x: Float[Tensor, " B"], group: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    return torch.zeros_like(x)


_BASELINES = {
    "group_mean": group_mean,
    "group_median": group_median,
    "global_mean": group_mean,  # of one group that holds everyone
    "leave_one_out": leave_one_out_mean,
    "none": _no_baseline,
}


# Estimators over steps -------------------------------------------------------------------------------------


def token_discount(
    turn: Int[Tensor, "B T"], gamma_token: float = 1.0, gamma_turn: float = 1.0
) -> Float64[Tensor, "B T"]:
    """Discount from each action token to the next: [B,T] float64, 1 off action.

    Every step costs ``gamma_token``; the step that leaves a turn costs ``gamma_turn`` as well. The first
    makes words dear, the second makes dialogues short.
    """
    table = torch.tensor(
        [1.0, gamma_token, gamma_token * gamma_turn], dtype=torch.float64, device=turn.device
    )
    return table[(turn >= 0).long() + last_token(turn, turns_of(turn))]


def gae(
    reward: Float[Tensor, "B T"],
    value: Float[Tensor, "B T"],
    step: Bool[Tensor, "B T"],
    *,
    terminated: Bool[Tensor, " B"],
    bootstrap: Float[Tensor, " B"],
    discount: Float[Tensor, "#B #T"] | float = 1.0,
    lam: Float[Tensor, "#B #T"] | float = 1.0,
) -> Float[Tensor, "B T"]:
    """Generalised advantage estimation over those positions of a row that are time steps.

    ``delta_t = r_t + gamma_t V(next) - V_t`` and ``A_t = delta_t + gamma_t lambda A(next)``, where *next*
    is the next position that is a step: what lies between two steps (the user's words) is no time step,
    so neither values nor discounts act there. After the last step comes V(s_T) = ``bootstrap`` if the row
    was truncated, and 0 if it terminated.

    Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16.

    Args:
        reward: [B,T] reward of each step; what is off step does not count.
        value: [B,T] value before each step; what is off step does not matter.
        step: [B,T] bool. Tokens of the policy, or turns: any layout in which a row is a sequence.
        terminated: [B] bool.
        bootstrap: [B] value after the last step.
        discount: Scalar or [B,T], discount from a step to the next.
        lam: Scalar, [B,1] or [B,T].

    Returns:
        [B,T] advantages, 0 off step. The critic's target is ``advantage + value``.
    """
    zero = torch.zeros_like(reward)
    discount, lam = (torch.as_tensor(x, dtype=reward.dtype, device=reward.device) for x in (discount, lam))
    after = torch.where(terminated, torch.zeros_like(bootstrap), bootstrap)
    v_next = _value_of_next_step(value, step, after)
    delta = torch.where(step, reward + discount * v_next - value, zero)
    carry = torch.where(step, discount * lam, zero + 1)  # off step the running sum passes through
    running, columns = zero[:, 0], []
    for delta_t, carry_t in zip(reversed(delta.unbind(1)), reversed(carry.unbind(1))):
        running = torch.addcmul(delta_t, carry_t, running)
        columns.append(running)
    return torch.where(step, torch.stack(columns[::-1], 1), zero)


def _value_of_next_step(
    value: Float[Tensor, "B T"], step: Bool[Tensor, "B T"], after: Float[Tensor, " B"]
) -> Float[Tensor, "B T"]:
    """[B,T] value of the first step behind each position; ``after`` [B] behind the last one."""
    width = step.shape[1]
    at = torch.where(step, torch.arange(width, device=step.device), width)
    first = at.flip(1).cummin(1).values.flip(1)  # first step at or behind t
    behind = torch.cat([first[:, 1:], torch.full_like(first[:, :1], width)], 1)
    return torch.cat([value, after[:, None]], 1).gather(1, behind)


def whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], eps: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """Centres and scales the masked entries to mean 0 and standard deviation 1; 0 elsewhere.

    Entries that are all equal become exactly 0.
    """
    inside, count = torch.where(mask, x, torch.zeros_like(x)), mask.sum()
    mean = inside.sum() / count
    deviation = torch.where(mask, x - mean, torch.zeros_like(x))
    std = (deviation.square().sum() / (count - 1)).sqrt()
    varies = x.masked_fill(~mask, -torch.inf).amax() > x.masked_fill(~mask, torch.inf).amin()
    return torch.where(varies, deviation / (std + eps), torch.zeros_like(x))  # of fewer than two, nothing varies


def explained_variance(
    value: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Share of the targets' variance that the critic explains, a scalar: 1 is perfect, a constant gets 0.

    It is 0 as well if the targets do not vary, so that there is nothing to explain, or by less than can be squared.
    """
    error, truth = (target - value)[mask], target[mask]
    if truth.numel() == 0 or truth.amax() == truth.amin():
        return truth.new_zeros(())
    variance = truth.var(unbiased=False)
    return 1 - error.var(unbiased=False) / variance if variance > 0 else truth.new_zeros(())

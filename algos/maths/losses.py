"""Per-token losses: ratios, surrogates and the value loss. Nothing here is masked or averaged.

Axes: b rows of a micro-batch, T tokens. ``turn`` is the turn of each token, -1 off action.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algos.base import Minibatch, Scores, filled
from algos.maths.advantages import spread_episodes, spread_turns, sum_turns, turns_of
from algos.maths.kl import log_ratio

Level = Literal["token", "turn", "sequence"]


def policy_gradient(logp: Float[Tensor, "*shape"], advantage: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``-A log pi``, whose gradient is the policy gradient while on-policy. [b,T].

    Source: Williams 1992.
    """
    return -advantage * logp


def importance_ratio(
    logp: Float[Tensor, "b T"], old_logp: Float[Tensor, "b T"], turn: Int[Tensor, "b T"], level: Level = "token"
) -> Float[Tensor, "b T"]:
    """Ratio of the present policy to the old one, with gradient. [b,T].

    Source: Schulman et al. 2017 (token); Zheng et al. 2025 (arXiv 2507.18071), eq. 7 (sequence).

    Args:
        logp: [b,T] present log-probabilities.
        old_logp: [b,T] old ones, without gradient.
        turn: [b,T].
        level: ``token``: rho_t itself. ``sequence`` or ``turn``: the geometric mean of rho over the row
            or the turn, given to each of its tokens.
    """
    log_rho = log_ratio(logp, old_logp)
    if level == "token":
        return log_rho.exp()
    action = turn >= 0
    if level == "sequence":
        total = torch.where(action, log_rho, torch.zeros_like(log_rho)).sum(1)
        return spread_episodes(total / action.sum(1).clamp(min=1), action).exp()
    turns = turns_of(turn)
    length = sum_turns(torch.ones_like(log_rho), turn, turns).clamp(min=1)
    return spread_turns(sum_turns(log_rho, turn, turns) / length, turn).exp()


def truncated_importance(
    logp: Float[Tensor, "*shape"], behaviour_logp: Float[Tensor, "*shape"], cap: float
) -> Float[Tensor, "*shape"]:
    """``min(pi / mu, cap)`` of each token, without gradient: corrects for a sampler that is not the policy. [b,T].

    Truncation bounds the variance and leaves a bias where the ratio is above ``cap``.
    Source: Ionides 2008, "Truncated importance sampling".
    """
    return log_ratio(logp.detach(), behaviour_logp).exp().clamp(max=cap)


def clipped_surrogate(
    ratio: Float[Tensor, "*shape"],
    advantage: Float[Tensor, "*shape"],
    low: float | None = 0.2,
    high: float | None = 0.2,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The pessimistic surrogate ``-min(rho A, clip(rho, 1 - low, 1 + high) A)``.

    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7; two bounds: Yu et al. 2025 (arXiv 2503.14476).

    Args:
        ratio: [b,T].
        advantage: [b,T].
        low: How far the ratio may fall; ``None`` for no bound.
        high: How far it may rise; ``None`` for no bound.

    Returns:
        [b,T] loss; [b,T] 1 where the bound holds the gradient back, without gradient.
    """
    lower = 0.0 if low is None else 1 - low  # a ratio is positive
    upper = torch.inf if high is None else 1 + high
    loss = -torch.minimum(ratio * advantage, ratio.clamp(lower, upper) * advantage)
    held = ((ratio > upper) & (advantage > 0)) | ((ratio < lower) & (advantage < 0))
    return loss, held.to(ratio.dtype)


def value_loss(
    value: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    old_value: Float[Tensor, "*shape"],
    clip: float | None = 0.2,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Half the squared error of the critic, pessimistic about moves beyond ``clip`` from the old value.

    ``max((V - y)^2, (clip(V, V_old - clip, V_old + clip) - y)^2) / 2``

    Args:
        value: [b,T] present values.
        target: [b,T] regression targets.
        old_value: [b,T] values when the batch was judged.
        clip: Largest move that pays, in units of return; ``None`` for plain regression.

    Returns:
        [b,T] loss; [b,T] 1 where the bound holds the gradient back, without gradient.
    """
    error = (value - target).square()
    if clip is None:
        return error / 2, torch.zeros_like(value)
    near = old_value + (value - old_value).clamp(-clip, clip)
    bounded = (near - target).square()
    return torch.maximum(error, bounded) / 2, (bounded > error).to(value.dtype)


def critic_term(
    scores: Scores, batch: Minibatch, clip: float | None
) -> tuple[Float[Tensor, "b T"], Float[Tensor, "b T"]]:
    """The critic's loss where it trains, 0 elsewhere, and where the bound holds it back; [b,T] each."""
    loss, held = value_loss(
        filled(scores.value, "scores.value"), filled(batch.target, "target"), filled(batch.value, "value"), clip
    )
    at = filled(batch.critic_at, "critic_at")
    return loss * at, held * at

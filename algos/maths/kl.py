"""How far a policy is from another: estimators on sampled tokens, and the penalties made of them.

With ``d = logp - ref_logp`` of a token that was sampled from the policy, k1 = d, k2 = d^2 / 2 and k3 =
exp(-d) - 1 + d all estimate the reverse KL; their *gradients* differ, and a penalty acts by its gradient.
Source: Schulman, "Approximating KL divergence", 2020; gradients: Tang and Munos 2025 (arXiv 2506.09477).

Axes: B rows, b rows of a micro-batch, T tokens, K turns.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algos.base import KL, Batch, Minibatch, Placement, Scores, filled
from algos.maths.advantages import clean_rewards, sum_turns

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8 says only "lost"; soon after, squares of it overflow float32


def log_ratio(logp: Float[Tensor, "*shape"], ref_logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``d``, held within +-20. [b,T]."""
    return (logp - ref_logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def k2(d: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``d^2 / 2``: biased as a value, right as a gradient while on-policy."""
    return d.square() / 2


def k3(d: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``exp(-d) - 1 + d``: unbiased, never negative."""
    return torch.expm1(-d) + d


def kl_in_loss(
    placement: Placement,
    logp: Float[Tensor, "*shape"],
    ref_logp: Float[Tensor, "*shape"],
    old_logp: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """The penalty of ``placement`` as a term of the loss, with gradient; 0 if it acts in the reward. [b,T]"""
    d = log_ratio(logp, ref_logp)
    if placement == "loss_k2":
        return k2(d)
    if placement == "loss_k3":
        return k3(d)
    if placement == "loss_k3_is":
        return log_ratio(logp, old_logp).exp() * k3(d)
    return torch.zeros_like(logp)


def kl_in_reward(batch: Batch, kl: KL) -> Float[Tensor, "B T"]:
    """``-beta d`` of every action token, without gradient; 0 unless ``kl`` acts in the reward. [B,T].

    Raises:
        ConfigError: if the penalty acts in the reward and the learner left ``ref_logp`` empty.
    """
    if kl.beta == 0 or kl.placement != "reward_k1":
        return torch.zeros_like(batch.behaviour_logp)
    logp = batch.behaviour_logp if batch.old_logp is None else batch.old_logp
    d = log_ratio(logp, filled(batch.ref_logp, "ref_logp")).detach()
    return torch.where(batch.action, -kl.beta * d, torch.zeros_like(d))


def penalised_rewards(
    batch: Batch, kl: KL, clip: float | None = None
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, " B"]]:
    """Rewards of the turns, with the KL penalty of their tokens if it acts in the reward.

    Args:
        batch: The whole iteration.
        kl: The algorithm's pull.
        clip: Bound of a turn's absolute reward, before the penalty.

    Returns:
        [B,K] rewards, 0 in episodes that are not valid; [B] bool, valid episodes (every reward finite).
    """
    reward, valid = clean_rewards(batch.reward, batch.n_turns, clip)
    penalty = sum_turns(kl_in_reward(batch, kl), batch.turn, reward.shape[1])
    return reward + penalty * valid[:, None], valid


def regularisation(
    scores: Scores, batch: Minibatch, kl: KL, entropy: float
) -> tuple[Float[Tensor, "b T"], dict[str, Float[Tensor, "b T"]]]:
    """What every algorithm adds to its loss: the pull to the reference, less the entropy bonus.

    Returns:
        [b,T] term of the loss, with gradient; metrics [b,T] ``entropy``, ``kl`` and, given a reference,
        ``kl_ref``.
    """
    old_logp = filled(batch.old_logp, "old_logp")
    metrics = {
        "entropy": scores.entropy.detach(),
        "kl": k3(log_ratio(old_logp, scores.logp)).detach(),
    }
    term = -entropy * scores.entropy
    if kl.beta > 0:
        ref_logp = filled(batch.ref_logp, "ref_logp")
        term = term + kl.beta * kl_in_loss(kl.placement, scores.logp, ref_logp, old_logp)
        metrics["kl_ref"] = k3(log_ratio(scores.logp, ref_logp)).detach()
    return term, metrics

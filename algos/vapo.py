"""VAPO: PPO with one lambda for the critic, another for the actor that grows with the episode, and a pull to success.

    critic   y_t = GAE_t(lam_critic) + V_t                lam_critic = 1: the return itself
    actor    A_t = GAE_t(lam_actor)                       lam_actor = 1 - 1 / (alpha L), L action tokens of the row
    loss_t = PPO_t - mu 1[G > positive_above] log pi(a_t | s_t)

Source: Yue et al. 2025 (arXiv 2504.05118): decoupled and length-adaptive GAE, clip-higher, token-level loss,
positive-example language-model loss. Its value pre-training is ``critic_warmup`` of the learner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from algos.base import Batch, Minibatch, Scores, filled
from algos.checks import check, check_unused
from algos.maths.advantages import clean_rewards
from algos.ppo import PPO


@dataclass(frozen=True, kw_only=True)
class VAPO(PPO):
    """VAPO.

    Attributes:
        lam: Has no effect: the critic's lambda is ``lam_critic``, the actor's follows from ``alpha``.
        lam_critic: Lambda of the critic's targets.
        alpha: The actor's lambda is ``1 - 1 / (alpha L)``, and 0 where that is negative (L < 1 / alpha).
        mu: Weight of the log-likelihood of positive episodes.
        positive_above: An episode is positive if its return is above this.
    """

    zero_advantage_is_zero_loss: ClassVar[bool] = False  # a positive episode pulls without advantage too

    gamma_turn: float = 1.0
    lam_critic: float = 1.0
    alpha: float = 0.05
    high: float | None = 0.28
    mu: float = 0.1
    positive_above: float = 0.0

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check(self, "lam_critic", 0 <= self.lam_critic <= 1, "in [0, 1]")
        check(self, "alpha", self.alpha > 0, "above 0")
        check(self, "mu", self.mu >= 0, "at least 0")
        check_unused(self, ("lam",), False, "one lambda serves both, as in ppo; set alpha or lam_critic")
        check_unused(self, ("positive_above",), self.mu > 0, "mu is above 0")

    def estimate(self, reward: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Decoupled GAE over the action tokens; see ``PPO.estimate``."""
        value = filled(batch.value, "value")
        length = batch.action.sum(1, keepdim=True).clamp(min=1).to(value.dtype)  # [B,1]
        lam_actor = (1 - 1 / (self.alpha * length)).clamp(min=0)
        target = self.token_gae(reward, batch, self.lam_critic) + value
        return self.token_gae(reward, batch, lam_actor), target, batch.action

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's loss and the negative log-likelihood of positive episodes."""
        loss, metrics = super().loss(scores, batch)
        reward, valid = clean_rewards(batch.reward, batch.n_turns)
        positive = (valid & (reward.sum(1) > self.positive_above))[:, None] * batch.action  # [b,T]
        nll = -scores.logp * positive
        return loss + self.mu * nll, metrics | {"nll": nll.detach(), "positive": positive.to(nll.dtype)}

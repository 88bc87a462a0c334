"""PPO over the tokens of a conversation.

    delta_t = r_t + gamma V_next - V_t        A_t = delta_t + gamma lambda A_next      over action tokens only
    loss_t = -min(rho_t A_t, clip(rho_t, 1 - low, 1 + high) A_t) + c_v value_loss_t

A turn's reward stands on its last token. Advantages are whitened over the batch's action tokens.
Source: Schulman et al. 2017 (arXiv 1707.06347); GAE: Schulman et al. 2016 (arXiv 1506.02438).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from algos.base import Algorithm, Batch, Credit, Minibatch, Need, Scores, filled
from algos.checks import check
from algos.maths.advantages import (
    clean_rewards,
    explained_variance,
    gae,
    on_last_token,
    token_discount,
    whiten,
)
from algos.maths.kl import kl_in_reward, regularisation
from algos.maths.losses import Level, clipped_surrogate, critic_term, importance_ratio


@dataclass(frozen=True, kw_only=True)
class PPO(Algorithm):
    """PPO with a critic that reads the policy's hidden states.

    Attributes:
        gamma_turn: Discount of a turn; below 1 it makes dialogues short.
        gamma_token: Discount of a token; below 1 it punishes words.
        lam: Lambda of GAE, per token.
        ratio: Always ``token``: credit is a token's own, and tokens that share a ratio share its gradient.
        low: How far the ratio may fall below 1; ``None`` for no bound.
        high: How far it may rise above 1; ``None`` for no bound.
        value_clip: Largest move of a value that pays, in units of return; ``None`` for plain regression.
        value_coef: Weight of the value loss.
        whiten: Whether advantages are centred and scaled over the batch's action tokens.
    """

    zero_advantage_is_zero_loss: ClassVar[bool] = True

    epochs: int = 4
    minibatches: int = 4
    gamma_turn: float = 0.99
    gamma_token: float = 1.0
    lam: float = 0.95
    ratio: Level = "token"
    low: float | None = 0.2
    high: float | None = 0.2
    value_clip: float | None = 0.2
    value_coef: float = 0.5
    whiten: bool = True

    levels: ClassVar[tuple[Level, ...]] = ("token",)  # of the ratio: none that is coarser than the credit

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        for name in ("gamma_turn", "gamma_token", "lam"):
            check(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        check(self, "low", self.low is None or 0 < self.low <= 1, "in (0, 1], or None")
        check(self, "high", self.high is None or self.high > 0, "above 0, or None")
        check(self, "value_clip", self.value_clip is None or self.value_clip > 0, "above 0, or None")
        check(self, "value_coef", self.value_coef > 0, "above 0: PPO learns its critic")
        levels = " or ".join(map(repr, self.levels))
        check(self, "ratio", self.ratio in self.levels, f"{levels}, no coarser than the credit")

    @property
    def needs(self) -> frozenset[Need]:
        """A critic."""
        return super().needs | {"critic"}

    def estimate(self, reward: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """GAE over the action tokens: what most relatives replace.

        Args:
            reward: [B,K] finite rewards of the turns.
            batch: The whole iteration.

        Returns:
            [B,T] advantages; [B,T] targets of the critic; [B,T] bool, where the critic trains.
        """
        advantage = self.token_gae(reward, batch, self.lam)
        return advantage, advantage + filled(batch.value, "value"), batch.action

    def token_gae(self, reward: Tensor, batch: Batch, lam: Tensor | float) -> Tensor:
        """GAE over the action tokens [B,T] with rewards [B,K] and any lambda (scalar, or [B,1] of each row)."""
        return gae(
            on_last_token(reward, batch.turn) + kl_in_reward(batch, self.kl),
            filled(batch.value, "value"),
            batch.action,
            terminated=batch.settled,
            bootstrap=filled(batch.bootstrap, "bootstrap"),
            discount=token_discount(batch.turn, self.gamma_token, self.gamma_turn),
            lam=lam,
        )

    def credit(self, batch: Batch) -> Credit:
        """The estimated advantages, whitened over the batch's action tokens."""
        reward, valid = clean_rewards(batch.reward, batch.n_turns)
        advantage, target, critic_at = self.estimate(reward, batch)
        kept, critic_at = batch.action & valid[:, None], critic_at & valid[:, None]
        explained = explained_variance(filled(batch.value, "value"), target, critic_at)
        return Credit(
            whiten(advantage, kept) if self.whiten else advantage * kept,
            target=target,
            critic_at=critic_at,
            keep=valid,
            state=batch.state,
            metrics={"explained_variance": float(explained)},
        )

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped surrogate and the clipped value loss, with the regularisation."""
        ratio = importance_ratio(scores.logp, filled(batch.old_logp, "old_logp"), batch.turn, self.ratio)
        policy_loss, clipped = clipped_surrogate(ratio, batch.advantage, self.low, self.high)
        critic_loss, value_clipped = critic_term(scores, batch, self.value_clip)
        term, metrics = regularisation(scores, batch, self.kl, self.entropy)
        return policy_loss + self.value_coef * critic_loss + term, {
            **metrics,
            "policy_loss": policy_loss.detach(),
            "value_loss": critic_loss.detach(),
            "ratio": ratio.detach(),
            "clip_share": clipped,
            "value_clip_share": value_clipped,
        }

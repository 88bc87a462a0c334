"""GRPO: a group of conversations with the same scenario and the same user is each other's baseline.

    A_i = (G_i - mean of the group) / (std of the group + eps)         on every action token of episode i
    loss_t = -min(rho_t A_i, clip(rho_t, 1 - low, 1 + high) A_i) + beta KL_t

Source: Shao et al. 2024 (arXiv 2402.03300), eqs. 3 and 4. Its relatives are settings of it: Dr. GRPO (arXiv
2503.20783) does not divide, RLOO (arXiv 2402.14740) leaves the own return out of the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from algos.base import Algorithm, Batch, Credit, Minibatch, Need, Reduce, Scores, filled
from algos.checks import check, check_unused
from algos.maths.advantages import (
    Baseline,
    Scale,
    explained_variance,
    gae,
    group_advantages,
    group_varies,
    on_last_token,
    returns_to_go,
    spread_episodes,
    spread_turns,
    token_discount,
)
from algos.maths.kl import penalised_rewards, regularisation
from algos.maths.losses import Level, clipped_surrogate, critic_term, importance_ratio


@dataclass(frozen=True, kw_only=True)
class GRPO(Algorithm):
    """GRPO and its relatives.

    Attributes:
        baseline: What is subtracted from an episode's return.
        scale: Whose standard deviation divides the difference.
        eps: Added to the standard deviation.
        assignment: How an episode's credit reaches its tokens. ``outcome``: all tokens alike.
            ``process``: each turn by the return from it on. ``gae``: the centred return comes at the end,
            and a critic spreads it.
        ratio: Whether the ratio is a token's, or the geometric mean of a turn or of the whole sequence.
        low: How far the ratio may fall below 1; ``None`` for no bound.
        high: How far it may rise above 1; ``None`` for no bound.
        reward_clip: Bound of the absolute reward of a turn; ``None`` for no bound.
        mask_truncated: Leave truncated episodes out of the loss. They still count in the group's statistics.
        drop_dead: Leave groups whose returns are all equal out of the loss and its normaliser.
        gamma_turn: Discount of a turn.
        gamma_token: Discount of a token, for ``gae``.
        lam: Lambda, for ``gae``.
        value_clip: Largest move of a value that pays, for ``gae``; ``None`` for plain regression.
        value_coef: Weight of the value loss, for ``gae``.
    """

    zero_advantage_is_zero_loss: ClassVar[bool] = True

    reduce: Reduce = "seq"
    baseline: Baseline = "group_mean"
    scale: Scale = "group"
    eps: float = 1e-6
    assignment: Literal["outcome", "process", "gae"] = "outcome"
    ratio: Level = "token"
    low: float | None = 0.2
    high: float | None = 0.2
    reward_clip: float | None = None
    mask_truncated: bool = False
    drop_dead: bool = False
    gamma_turn: float = 1.0
    gamma_token: float = 1.0
    lam: float = 0.95
    value_clip: float | None = 0.2
    value_coef: float = 0.5

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        for name in ("gamma_turn", "gamma_token", "lam"):
            check(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        check(self, "low", self.low is None or 0 < self.low <= 1, "in (0, 1], or None")
        check(self, "high", self.high is None or self.high > 0, "above 0, or None")
        check(self, "eps", self.eps >= 0, "at least 0")
        check(self, "reward_clip", self.reward_clip is None or self.reward_clip > 0, "above 0, or None")
        check(self, "value_clip", self.value_clip is None or self.value_clip > 0, "above 0, or None")
        check(self, "value_coef", self.value_coef > 0, "above 0")
        # tokens that share a ratio share its gradient: advantages of their own would be averaged away
        coarse = (self.ratio, self.assignment) in {("sequence", "process"), ("sequence", "gae"), ("turn", "gae")}
        check(self, "ratio", not coarse, f"no coarser than the credit of assignment {self.assignment!r}")
        check(self, "reduce", (self.ratio, self.reduce) != ("sequence", "turn"), "no finer than ratio 'sequence'")
        own = self.top_entropy == 1 or self.ratio == "token"
        check(self, "top_entropy", own, f"1 with ratio {self.ratio!r}, through which all of its tokens train")
        check_unused(self, ("eps",), self.scale != "none", "scale divides")
        critic_only = ("gamma_token", "lam", "value_clip", "value_coef")
        check_unused(self, critic_only, self.assignment == "gae", "assignment is 'gae'")

    @property
    def needs(self) -> frozenset[Need]:
        """Groups if the statistics look at them, a critic for ``gae``."""
        by_group = self.baseline in ("group_mean", "group_median", "leave_one_out")
        grouped = by_group or self.scale in ("group", "mean") or self.drop_dead
        group: frozenset[Need] = frozenset({"group"}) if grouped else frozenset()
        critic: frozenset[Need] = frozenset({"critic"}) if self.assignment == "gae" else frozenset()
        return super().needs | group | critic

    def credit(self, batch: Batch) -> Credit:
        """The group-relative advantage of the episode, brought to its tokens by ``assignment``."""
        reward, valid = penalised_rewards(batch, self.kl, self.reward_clip)
        keep = valid & batch.terminated if self.mask_truncated else valid
        to_go = returns_to_go(reward, self.gamma_turn)  # [B,K]
        returns = reward.sum(1) if self.assignment == "gae" else to_go[:, 0]
        metrics = {"masked_truncated": float((valid & ~keep).sum())} if self.mask_truncated else {}
        if self.drop_dead:
            dead = valid & ~group_varies(returns, batch.group, valid)
            keep, metrics = keep & ~dead, {**metrics, "dropped_dead": float(dead.sum())}
        relative = partial(
            group_advantages,
            group=batch.group,
            valid=valid,
            baseline=self.baseline,
            scale=self.scale,
            eps=self.eps,
        )
        if self.assignment == "gae":
            spread = self._spread_by_critic(batch, relative(returns), keep)
            return spread._replace(metrics={**spread.metrics, **metrics})
        if self.assignment == "process":
            advantage = spread_turns(relative(returns, of=to_go), batch.turn)
        else:
            advantage = spread_episodes(relative(returns), batch.action)
        return Credit(advantage, keep=keep, state=batch.state, metrics=metrics)

    def _spread_by_critic(self, batch: Batch, outcome: Tensor, keep: Tensor) -> Credit:
        """GAE on a reward that is the outcome advantage [B], all of it on the episode's last token."""
        value = filled(batch.value, "value")
        last = (batch.n_turns - 1).clamp(min=0)[:, None]
        reward = torch.zeros_like(batch.reward).scatter(1, last, outcome[:, None])  # [B,K]
        advantage = gae(
            on_last_token(reward, batch.turn),
            value,
            batch.action,
            terminated=torch.ones_like(batch.terminated),  # the outcome is the whole return: nothing follows it
            bootstrap=torch.zeros_like(outcome),
            discount=token_discount(batch.turn, self.gamma_token, self.gamma_turn),
            lam=self.lam,
        )
        target, kept = advantage + value, batch.action & keep[:, None]
        metrics = {"explained_variance": float(explained_variance(value, target, kept))}
        return Credit(advantage * kept, target, kept, keep, batch.state, metrics)

    def surrogate(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's term of the loss [b,T], un-masked, and metrics: what most relatives replace."""
        ratio = importance_ratio(scores.logp, filled(batch.old_logp, "old_logp"), batch.turn, self.ratio)
        loss, clipped = clipped_surrogate(ratio, batch.advantage, self.low, self.high)
        return loss, {"ratio": ratio.detach(), "clip_share": clipped}

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate, with the regularisation, and the value loss if there is a critic."""
        policy_loss, metrics = self.surrogate(scores, batch)
        term, measured = regularisation(scores, batch, self.kl, self.entropy)
        metrics |= {**measured, "policy_loss": policy_loss.detach()}
        if self.assignment == "gae":
            critic_loss, clipped = critic_term(scores, batch, self.value_clip)
            term = term + self.value_coef * critic_loss
            metrics |= {"value_loss": critic_loss.detach(), "value_clip_share": clipped}
        return policy_loss + term, metrics

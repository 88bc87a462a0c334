"""REINFORCE: the plain policy gradient.

    A_t = G - b          G = sum of the episode's rewards
    loss_t = -A_t log pi(a_t | s_t)

Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement
learning".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from algos.base import Algorithm, Batch, Credit, Minibatch, Scores
from algos.checks import check, check_unused
from algos.maths.advantages import group_advantages, spread_episodes
from algos.maths.kl import penalised_rewards, regularisation
from algos.maths.losses import policy_gradient

EMA = "return_ema"  # key of the running baseline in the state that passes from batch to batch


@dataclass(frozen=True, kw_only=True)
class Reinforce(Algorithm):
    """REINFORCE with a constant baseline.

    Attributes:
        baseline: ``none``; ``batch_mean``, of the returns of this batch; ``ema``, a running mean of earlier
            batches, which does not depend on the returns it is subtracted from (the first batch has only its
            own mean).
        decay: Weight of the past in the running mean of ``ema``.
    """

    zero_advantage_is_zero_loss: ClassVar[bool] = True

    baseline: Literal["none", "batch_mean", "ema"] = "batch_mean"
    decay: float = 0.9

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check(self, "decay", 0 <= self.decay < 1, "in [0, 1)")
        check_unused(self, ("decay",), self.baseline == "ema", "baseline is 'ema'")
        # without a ratio, a second step would follow the gradient of a policy that is gone
        for name in ("epochs", "minibatches"):
            check(self, name, getattr(self, name) == 1, "1: REINFORCE has no ratio to correct a second step")

    def credit(self, batch: Batch) -> Credit:
        """``G - b`` on every action token."""
        reward, valid = penalised_rewards(batch, self.kl)
        returns, state = reward.sum(1), dict(batch.state)
        if self.baseline == "ema":
            mean = float(returns[valid].mean()) if valid.any() else 0.0
            centre = batch.state.get(EMA, mean)
            advantage = torch.where(valid, returns - centre, torch.zeros_like(returns))
            state = self._remember(batch.state, mean) if valid.any() else state
        else:
            baseline: Literal["none", "global_mean"] = "none" if self.baseline == "none" else "global_mean"
            advantage = group_advantages(returns, batch.group, valid, baseline=baseline, scale="none")
        return Credit(spread_episodes(advantage, batch.action), keep=valid, state=state)

    def _remember(self, state: Mapping[str, float], mean: float) -> dict[str, float]:
        before = state.get(EMA, mean)
        return {**state, EMA: self.decay * before + (1 - self.decay) * mean}

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """``-A log pi``, with the regularisation."""
        policy_loss = policy_gradient(scores.logp, batch.advantage)
        term, metrics = regularisation(scores, batch, self.kl, self.entropy)
        return policy_loss + term, {**metrics, "policy_loss": policy_loss.detach()}

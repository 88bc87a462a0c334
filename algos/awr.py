"""AWR: clone every episode, the better ones exponentially more.

    A_i = (G_i - mean) / std                                       mean and std over the episodes of the batch
    loss_t = -min(exp(A_i / beta), max_weight) log pi(a_t | s_t)

Source: Peng et al. 2019 (arXiv 1910.00177), algorithm 1. The paper's baseline is a critic's value of the state; here it
is the mean return of the batch, which needs none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from algos.base import Algorithm, Batch, Credit, Minibatch, Scores
from algos.checks import check
from algos.maths.advantages import group_advantages, spread_episodes
from algos.maths.kl import penalised_rewards, regularisation
from algos.maths.losses import policy_gradient


@dataclass(frozen=True, kw_only=True)
class AWR(Algorithm):
    """Advantage-weighted regression.

    The weighted episodes are a data set, made for many steps of regression: ``epochs`` and ``minibatches`` need no
    ratio.

    Attributes:
        beta: Temperature: small, and only the best are cloned; large, and all are cloned alike.
        max_weight: Upper bound of an episode's weight.
        scale: Whether the standard deviation of the batch divides the advantage, which frees ``beta`` of the unit
            of reward.
    """

    zero_advantage_is_zero_loss: ClassVar[bool] = True

    beta: float = 1.0
    max_weight: float = 20.0
    scale: Literal["batch", "none"] = "batch"

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check(self, "beta", self.beta > 0, "above 0")
        check(self, "max_weight", self.max_weight > 0, "above 0")

    def credit(self, batch: Batch) -> Credit:
        """The weight of its episode on every action token."""
        reward, valid = penalised_rewards(batch, self.kl)
        returns = reward.sum(1)
        advantage = group_advantages(returns, batch.group, valid, baseline="global_mean", scale=self.scale)
        weight = (advantage / self.beta).clamp(max=math.log(self.max_weight)).exp()  # the bound before exp overflows
        weight = torch.where(valid, weight, torch.zeros_like(weight))
        return Credit(spread_episodes(weight, batch.action), keep=valid, state=batch.state)

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """``-weight log pi``, with the regularisation."""
        policy_loss = policy_gradient(scores.logp, batch.advantage)
        term, metrics = regularisation(scores, batch, self.kl, self.entropy)
        return policy_loss + term, {**metrics, "policy_loss": policy_loss.detach()}

"""ReMax: the baseline is what the policy earns when it takes the likeliest token each time.

    A_i = G_i - G_greedy              G_greedy: return of one greedy episode of the same scenario and user
    loss_t = -min(rho_t A_i, clip(rho_t, 1 - low, 1 + high) A_i)

One more episode a scenario replaces the critic. The greedy episode is not trained on.
Source: Li et al. 2023 (arXiv 2310.10505), algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from algos.base import Batch, Credit, Need, filled
from algos.clipped import Clipped
from algos.maths.advantages import spread_episodes
from algos.maths.kl import penalised_rewards


@dataclass(frozen=True, kw_only=True)
class ReMax(Clipped):
    """REINFORCE with the greedy episode as baseline."""

    @property
    def needs(self) -> frozenset[Need]:
        """A greedy episode of each scenario."""
        return super().needs | {"greedy"}

    def credit(self, batch: Batch) -> Credit:
        """``G - G_greedy`` on every action token; an episode without a baseline is set aside."""
        reward, valid = penalised_rewards(batch, self.kl)
        greedy = filled(batch.greedy_return, "greedy_return")  # [B]
        keep = valid & greedy.isfinite()
        advantage = torch.where(keep, reward.sum(1) - greedy, reward.new_zeros(()))
        return Credit(
            spread_episodes(advantage, batch.action),
            keep=keep,
            state=batch.state,
            metrics={"without_greedy": float((valid & ~keep).sum())},
        )

"""ReBN: REINFORCE with return batch normalisation. Every turn of the batch is one sample.

    R_k = r_k + gamma R_{k+1}                                              for each turn k
    A_k = (R_k - mean) / std                               mean and std over all turns of the batch
    loss_t = -min(rho_t A_k, clip(rho_t, 1 - low, 1 + high) A_k)           on every token of turn k

Source: Liu et al. 2025, "GEM: A Gym for Agentic LLMs" (arXiv 2510.01051).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from algos.base import Batch, Credit, Reduce
from algos.checks import check
from algos.clipped import Clipped
from algos.maths.advantages import returns_to_go, spread_turns, whiten
from algos.maths.kl import penalised_rewards


@dataclass(frozen=True, kw_only=True)
class ReBN(Clipped):
    """REINFORCE whose returns are z-scored over the turns of a batch.

    Attributes:
        gamma_turn: Discount of a turn; below 1 it makes dialogues short.
    """

    reduce: Reduce = "turn"
    gamma_turn: float = 1.0

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check(self, "gamma_turn", 0 <= self.gamma_turn <= 1, "in [0, 1]")

    def credit(self, batch: Batch) -> Credit:
        """The return from each turn on, z-scored over all turns: a long turn counts no more than a short one."""
        reward, valid = penalised_rewards(batch, self.kl)
        at = torch.arange(reward.shape[1], device=reward.device)
        real = (at < batch.n_turns[:, None]) & valid[:, None]  # [B,K]
        advantage = whiten(returns_to_go(reward, self.gamma_turn), real)
        return Credit(spread_turns(advantage, batch.turn), keep=valid, state=batch.state)

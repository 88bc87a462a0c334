"""GiGPO: GRPO with a group inside the group: turns that start from the same state are each other's baseline too.

    R_k  = r_k + gamma_step R_{k+1}                                          return to go of turn k
    A_ik = A_i + omega (R_ik - mean of R over S) / (std of R over S + eps)   S: the visits of the state before turn
                                                                             k by any episode of the group
    loss_t = GRPO_t with A_ik on every token of turn k

Source: Feng et al. 2025 (arXiv 2505.10978), eq. 8 and before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from algos.base import Batch, Credit
from algos.checks import check, check_unused
from algos.grpo import GRPO
from algos.maths.advantages import group_advantages, returns_to_go, spread_turns
from algos.maths.kl import penalised_rewards


@dataclass(frozen=True, kw_only=True)
class GiGPO(GRPO):
    """GRPO with credit by state.

    Attributes:
        omega: Weight of the credit by state; 0 leaves GRPO.
        gamma_step: Discount per turn of the returns that visits of a state are compared by. Below 1 it prefers the
            turn from which success came sooner. (``gamma_turn`` discounts the return of the episode, as in GRPO.)
        baseline: Always ``group_mean``, in both parts.
        ratio: ``token`` or ``turn``: the tokens of a whole sequence would share what single turns have earned.
        scale: ``group`` or ``none``, in both parts.
        assignment: Always ``outcome``: the state brings the credit to the turns.
        drop_dead: Always false: episodes that earn alike may still differ from state to state.
    """

    scale: Literal["group", "none"] = "group"
    omega: float = 1.0
    gamma_step: float = 0.95

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check(self, "omega", self.omega >= 0, "at least 0")
        check(self, "gamma_step", 0 <= self.gamma_step <= 1, "in [0, 1]")
        check_unused(self, ("gamma_step",), self.omega > 0, "omega is above 0")
        check(self, "baseline", self.baseline == "group_mean", "'group_mean', in both parts")
        check(self, "ratio", self.ratio != "sequence", "'token' or 'turn': no coarser than the credit")
        check(self, "assignment", self.assignment == "outcome", "'outcome': the state brings the credit to the turns")
        check(self, "drop_dead", not self.drop_dead, "False: episodes that earn alike may differ from state to state")

    def credit(self, batch: Batch) -> Credit:
        """The advantage of the episode, and on top of it that of the turn among visits of the same state."""
        reward, valid = penalised_rewards(batch, self.kl, self.reward_clip)
        to_go = returns_to_go(reward, self.gamma_step)  # [B,K]
        real = torch.arange(to_go.shape[1], device=to_go.device) < batch.n_turns[:, None]
        visit = real & valid[:, None] & (batch.state_key != 0)  # key 0: the environment names no state
        names = torch.stack([batch.group[:, None].expand_as(batch.state_key), batch.state_key], 2)  # [B,K,2]
        _, state = torch.unique(names.flatten(0, 1), dim=0, return_inverse=True)  # [B K]
        step = group_advantages(to_go.flatten(), state, visit.flatten(), scale=self.scale, eps=self.eps).view_as(to_go)
        episode = super().credit(batch)
        informative = float((step != 0).sum()) / max(int(real.sum()), 1)
        return episode._replace(
            advantage=episode.advantage + self.omega * spread_turns(step, batch.turn),
            metrics={**episode.metrics, "informative_turns": informative},
        )

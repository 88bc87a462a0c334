"""REINFORCE++: the return from each token on, whitened over the whole batch, in PPO's surrogate without a critic.

    R_t = r_t - beta (log pi_old(a_t) - log pi_ref(a_t)) + gamma R_next      over action tokens only
    A_t = (R_t - b - mean) / std                           mean and std over all action tokens of the batch
    loss_t = -min(rho_t A_t, clip(rho_t, 1 - low, 1 + high) A_t)

A turn's reward stands on its last token; b is 0, or the mean return of the group (REINFORCE++-baseline).
Source: Hu et al. 2025 (arXiv 2501.03262).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from algos.base import Batch, Credit, Need
from algos.checks import check
from algos.clipped import Clipped
from algos.maths.advantages import clean_rewards, gae, group_advantages, on_last_token, token_discount, whiten
from algos.maths.kl import kl_in_reward


@dataclass(frozen=True, kw_only=True)
class ReinforcePP(Clipped):
    """REINFORCE++, and with ``baseline="group_mean"`` REINFORCE++-baseline.

    Attributes:
        baseline: What is subtracted before whitening: nothing, or the mean return of the group.
        whiten: Whether advantages are centred and scaled over the batch's action tokens.
        gamma_turn: Discount of a turn; below 1 it makes dialogues short.
        gamma_token: Discount of a token; below 1 it punishes words.
    """

    baseline: Literal["none", "group_mean"] = "none"
    whiten: bool = True
    gamma_turn: float = 1.0
    gamma_token: float = 1.0

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        for name in ("gamma_turn", "gamma_token"):
            check(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")

    @property
    def needs(self) -> frozenset[Need]:
        """Groups, for their baseline."""
        group: frozenset[Need] = frozenset({"group"}) if self.baseline == "group_mean" else frozenset()
        return super().needs | group

    def credit(self, batch: Batch) -> Credit:
        """The return from each token on, less the group's mean return, whitened."""
        reward, valid = clean_rewards(batch.reward, batch.n_turns)
        to_go = self._returns_to_go(reward, batch)  # [B,T]
        first = batch.action.int().argmax(1, keepdim=True)
        returns = to_go.gather(1, first).squeeze(1)  # [B] of whole episodes
        advantage = group_advantages(returns, batch.group, valid, baseline=self.baseline, scale="none", of=to_go)
        kept = batch.action & valid[:, None]
        return Credit(whiten(advantage, kept) if self.whiten else advantage * kept, keep=valid, state=batch.state)

    def _returns_to_go(self, reward: Tensor, batch: Batch) -> Tensor:
        """[B,T] discounted return from each action token on: GAE with V = 0 and lambda = 1."""
        nothing = torch.zeros_like(batch.behaviour_logp)
        return gae(
            on_last_token(reward, batch.turn) + kl_in_reward(batch, self.kl),
            nothing,
            batch.action,
            terminated=batch.settled,
            bootstrap=nothing[:, 0],
            discount=token_discount(batch.turn, self.gamma_token, self.gamma_turn),
        )

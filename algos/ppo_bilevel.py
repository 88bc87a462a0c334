"""PPO with GAE on two levels: over turns first, and then over the tokens inside each turn.

With e_k the last token of turn k:

    turns    delta_k = r_k + gamma_turn V_{e_{k+1}} - V_{e_k}     A_{e_k} = delta_k + gamma_turn lam_turn A_{e_{k+1}}
    tokens   delta_t = gamma_token V_{t+1} - V_t                  A_t = delta_t + gamma_token lam A_{t+1}     t < e_k

The last token of a turn receives the advantage of the turn; from there it flows back to the turn's first token and
stops. The critic trains at every action token on ``A_t + V_t``.
Source: Wang et al. 2025 (RAGEN, arXiv 2504.20073, and its repository; VAGEN, arXiv 2510.16907, Bi-Level GAE).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.base import Batch, filled
from algos.checks import check
from algos.maths.advantages import gae, last_token, on_last_token, sum_turns, token_discount
from algos.maths.kl import kl_in_reward
from algos.ppo import PPO


@dataclass(frozen=True, kw_only=True)
class PPOBilevel(PPO):
    """PPO with bi-level GAE.

    Attributes:
        lam: Lambda inside a turn, per token.
        lam_turn: Lambda between turns.
    """

    gamma_turn: float = 0.95
    lam: float = 1.0
    lam_turn: float = 1.0
    high: float | None = 0.28

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check(self, "lam_turn", 0 <= self.lam_turn <= 1, "in [0, 1]")

    def estimate(self, reward: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """GAE over turns, then over the tokens of each; see ``PPO.estimate``."""
        value, turn, turns = filled(batch.value, "value"), batch.turn, reward.shape[1]
        last, penalty = last_token(turn, turns), kl_in_reward(batch, self.kl)  # [B,T]
        # A step leads from the last token of a turn to the last of the next, and pays for the tokens on its way.
        way = sum_turns(penalty * ~last, turn, turns).roll(-1, 1)  # [B,K]
        way[:, -1] = 0
        at_last = sum_turns(value * last, turn, turns)  # [B,K]
        over_turns = gae(
            reward + sum_turns(penalty * last, turn, turns) + self.gamma_turn * way,
            at_last,
            sum_turns(last.long(), turn, turns) > 0,
            terminated=batch.settled,
            bootstrap=filled(batch.bootstrap, "bootstrap"),
            discount=self.gamma_turn,
            lam=self.lam_turn,
        )
        advantage = gae(
            torch.where(last, on_last_token(over_turns + at_last, turn), penalty),
            value,
            batch.action,
            terminated=torch.ones_like(batch.terminated),
            bootstrap=torch.zeros_like(value[:, 0]),
            discount=token_discount(turn, self.gamma_token) * ~last,  # here every turn is an episode of its own
            lam=self.lam,
        )
        return advantage, advantage + value, batch.action

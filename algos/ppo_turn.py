"""PPO whose step is a turn: what the agent said before it was answered is one action.

    delta_k = r_k + gamma V_{k+1} - V_k        A_k = delta_k + gamma lambda A_{k+1}        over turns
    V_k = value before the first token of turn k        every token of turn k gets A_k

The critic learns V_k alone, so it trains at the first token of each turn and nowhere else.
Source: Liu et al. 2025 (GEM, arXiv 2510.01051), section on PPO over turns; Li et al. 2025 (Turn-PPO, arXiv
2512.17008), whose gamma .99 and lambda .9 are the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from algos.base import Batch, filled
from algos.checks import check_unused
from algos.maths.advantages import first_token, gae, spread_turns, sum_turns
from algos.maths.kl import kl_in_reward
from algos.maths.losses import Level
from algos.ppo import PPO


@dataclass(frozen=True, kw_only=True)
class PPOTurn(PPO):
    """PPO over turns.

    Attributes:
        lam: Lambda of GAE, per turn.
        gamma_token: Has no effect: inside a turn no time passes.
        ratio: ``token``, or ``turn``: the geometric mean over the turn, whose tokens share their credit.
    """

    levels: ClassVar[tuple[Level, ...]] = ("token", "turn")

    lam: float = 0.9

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check_unused(self, ("gamma_token",), False, "tokens are steps, as in ppo and ppo_bilevel")

    def estimate(self, reward: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """GAE over the turns [B,K], given to each of their tokens; see ``PPO.estimate``."""
        turn, turns = batch.turn, reward.shape[1]
        first = first_token(turn, turns)  # [B,T]
        value = sum_turns(filled(batch.value, "value") * first, turn, turns)  # [B,K]
        advantage = gae(
            reward + sum_turns(kl_in_reward(batch, self.kl), turn, turns),
            value,
            sum_turns(first.long(), turn, turns) > 0,
            terminated=batch.settled,
            bootstrap=filled(batch.bootstrap, "bootstrap"),
            discount=self.gamma_turn,
            lam=self.lam,
        )
        return spread_turns(advantage, turn), spread_turns(advantage + value, turn), first

"""GMPO: GRPO on the geometric mean of the tokens' ratios, each of them clipped before the mean is taken.

    l_t = min(log rho_t, high) if A_i > 0 else max(log rho_t, -low)
    loss_t = -exp(mean of l over the row) A_i                                on every action token of episode i

Bounds on the logarithm are wide (exp(+-0.4)), because one outlier moves a geometric mean little.
Source: Zhao et al. 2025 (arXiv 2507.20673), eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.base import Minibatch, Scores, filled
from algos.checks import check
from algos.grpo import GRPO
from algos.maths.kl import log_ratio
from algos.maths.losses import importance_ratio


@dataclass(frozen=True, kw_only=True)
class GMPO(GRPO):
    """GRPO with a geometric mean.

    Attributes:
        low: How far the logarithm of a token's ratio may fall below 0; ``None`` for no bound.
        high: How far it may rise above 0; ``None`` for no bound.
        ratio: Always ``token``: tokens are clipped one by one, and their mean is the row's.
        assignment: Always ``outcome``: a row has one mean, so it can have but one advantage.
        reduce: Not ``turn``, for the same reason.
    """

    low: float | None = 0.4
    high: float | None = 0.4

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check(self, "ratio", self.ratio == "token", "'token': the mean over the row comes after the clip")
        check(self, "assignment", self.assignment == "outcome", "'outcome': a row has one mean and one advantage")
        check(self, "reduce", self.reduce != "turn", "no finer than the row, which has one mean")
        check(self, "top_entropy", self.top_entropy == 1, "1: all tokens of a row train through its mean")

    def surrogate(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The geometric mean of the clipped ratios, times the advantage, on every token of the row."""
        log_rho = log_ratio(scores.logp, filled(batch.old_logp, "old_logp"))
        above = log_rho.clamp(max=torch.inf if self.high is None else self.high)
        below = log_rho.clamp(min=-torch.inf if self.low is None else -self.low)
        kept = torch.where(batch.advantage > 0, above, below)
        mean = importance_ratio(kept, torch.zeros_like(kept), batch.turn, "sequence")  # of exp(kept), geometric
        clipped = ((kept != log_rho) & (batch.advantage != 0)).to(mean.dtype)
        return -mean * batch.advantage, {"ratio": mean.detach(), "clip_share": clipped}

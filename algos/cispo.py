"""CISPO: GRPO that truncates the weight of a token and never drops the token.

    loss_t = -sg[min(rho_t, 1 + high)] A_i log pi(a_t | s_t)                 sg[.]: no gradient flows through

A clipped surrogate has no gradient where its bound holds; here such a token still pulls, with a bounded weight.
Source: MiniMax-M1 (arXiv 2506.13585), eqs. 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from algos.base import Minibatch, Reduce, Scores, filled
from algos.checks import check, check_unused
from algos.grpo import GRPO
from algos.maths.losses import importance_ratio, policy_gradient


@dataclass(frozen=True, kw_only=True)
class CISPO(GRPO):
    """GRPO with truncated importance weights.

    Attributes:
        low: Has no effect: weights have no lower bound but 0, as in the paper.
        high: A weight is at most ``1 + high``. The paper names no number; 4 is the bound 5 that others settled on.
        ratio: Always ``token``: the weight is a token's own.
    """

    reduce: Reduce = "token"
    low: float | None = None
    high: float = 4.0

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check_unused(self, ("low",), False, "a small ratio drops tokens, as in grpo")
        check(self, "ratio", self.ratio == "token", "'token': the weight is a token's own")

    def surrogate(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy gradient, weighted by the truncated ratio."""
        ratio = importance_ratio(scores.logp, filled(batch.old_logp, "old_logp"), batch.turn).detach()
        weight = ratio.clamp(max=1 + self.high)
        loss = policy_gradient(scores.logp, weight * batch.advantage)
        return loss, {"ratio": ratio, "clip_share": (ratio > weight).to(ratio.dtype)}

"""GRPO with the advantage clipped in place of the ratio: for comparison, not for use.

    loss_t = max(A_i l_t, clip(A_i, -bound, bound) l_t)                      l_t = -log pi(a_t | s_t) >= 0
           = max(A_i, -bound) l_t

The formula looks like PPO's and is no trust region: there is no ratio in it, so nothing notices how far the policy has
moved. As l_t is never negative, all it does is to let no episode count as worse than ``-bound``.
Source: a formula found in guides to GRPO for conversational agents.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from algos.base import Batch, Credit, Minibatch, Scores
from algos.checks import check, check_unused
from algos.grpo import GRPO
from algos.maths.losses import policy_gradient


@dataclass(frozen=True, kw_only=True)
class GRPOAdvantageClip(GRPO):
    """GRPO without a ratio, its advantage bounded from below.

    Attributes:
        bound: No advantage is below ``-bound``.
        ratio: Has no effect, for there is no ratio.
        low: Has no effect, as ``ratio``.
        high: Has no effect, as ``ratio``.
    """

    bound: float = 0.2
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check(self, "bound", self.bound > 0, "above 0")
        check_unused(self, ("ratio", "low", "high"), False, "there is a ratio, as in grpo")
        # without a ratio, a second step would follow the gradient of a policy that is gone
        for name in ("epochs", "minibatches"):
            check(self, name, getattr(self, name) == 1, "1: there is no ratio to correct a second step")

    def credit(self, batch: Batch) -> Credit:
        """GRPO's advantage, bounded from below: since ``l_t >= 0``, the bound can act here as well as in the loss."""
        credit = super().credit(batch)
        bounded = credit.advantage.clamp(min=-self.bound)
        share = float((bounded != credit.advantage).sum()) / max(int(batch.action.sum()), 1)
        return credit._replace(advantage=bounded, metrics={**credit.metrics, "bounded_share": share})

    def surrogate(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy gradient."""
        return policy_gradient(scores.logp, batch.advantage), {}

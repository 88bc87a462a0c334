"""PPO's surrogate for algorithms that differ only in how they judge a batch.

    loss_t = -min(rho_t A_t, clip(rho_t, 1 - low, 1 + high) A_t)

Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7; two bounds: Yu et al. 2025 (arXiv 2503.14476).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from algos.base import Algorithm, Minibatch, Scores, filled
from algos.checks import check
from algos.maths.kl import regularisation
from algos.maths.losses import clipped_surrogate, importance_ratio


@dataclass(frozen=True, kw_only=True)
class Clipped(Algorithm):
    """A loss without a ``credit`` of its own: a relative brings that.

    Attributes:
        low: How far the ratio of a token may fall below 1; ``None`` for no bound.
        high: How far it may rise above 1; ``None`` for no bound.
    """

    zero_advantage_is_zero_loss: ClassVar[bool] = True

    low: float | None = 0.2
    high: float | None = 0.2

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check(self, "low", self.low is None or 0 < self.low <= 1, "in (0, 1], or None")
        check(self, "high", self.high is None or self.high > 0, "above 0, or None")

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped surrogate, with the regularisation."""
        ratio = importance_ratio(scores.logp, filled(batch.old_logp, "old_logp"), batch.turn)
        policy_loss, clipped = clipped_surrogate(ratio, batch.advantage, self.low, self.high)
        term, metrics = regularisation(scores, batch, self.kl, self.entropy)
        return policy_loss + term, {
            **metrics,
            "policy_loss": policy_loss.detach(),
            "ratio": ratio.detach(),
            "clip_share": clipped,
        }

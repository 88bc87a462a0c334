"""SAPO: GRPO whose trust region ends softly, by a sigmoid gate instead of a clip.

    f(rho) = 4 / tau  sigmoid(tau (rho - 1))           f'(rho) = 4 p (1 - p),  p = sigmoid(tau (rho - 1))
    loss_t = -f(rho_t) A_i                             tau = tau_positive if A_i > 0 else tau_negative

On-policy f' = 1, so the gradient is GRPO's; away from rho = 1 it fades to both sides, faster for bad episodes.
Source: Gao et al. 2025 (arXiv 2511.20347).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.base import Minibatch, Scores, filled
from algos.checks import check, check_unused
from algos.grpo import GRPO
from algos.maths.losses import importance_ratio


@dataclass(frozen=True, kw_only=True)
class SAPO(GRPO):
    """GRPO with a soft gate.

    Attributes:
        tau_positive: Steepness of the gate where the advantage is above 0.
        tau_negative: Steepness where it is not. Pushing a token down lifts all others, so it fades sooner.
        low: Has no effect: nothing is clipped.
        high: Has no effect: nothing is clipped.
        ratio: Always ``token``: the gate looks at each token by itself.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        check_unused(self, ("low", "high"), False, "the ratio is clipped, as in grpo; set the taus")
        check(self, "ratio", self.ratio == "token", "'token': the gate looks at each token by itself")
        for name in ("tau_positive", "tau_negative"):
            check(self, name, getattr(self, name) > 0, "above 0")

    def surrogate(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The gated ratio times the advantage; ``clip_share`` is the share of the gradient that the gate holds back."""
        ratio = importance_ratio(scores.logp, filled(batch.old_logp, "old_logp"), batch.turn)
        tau = torch.full_like(ratio, self.tau_negative).masked_fill(batch.advantage > 0, self.tau_positive)
        p = torch.sigmoid(tau * (ratio - 1))
        held = 1 - 4 * p * (1 - p)
        return -4 / tau * p * batch.advantage, {"ratio": ratio.detach(), "clip_share": held.detach()}

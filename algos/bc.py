"""Behaviour cloning: maximum likelihood of demonstrated turns. The warm start.

    A_t = 1
    loss_t = -log pi(a_t | s_t)

Source: Pomerleau 1988. The rewards of the demonstrations are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from algos.base import Algorithm, Batch, Credit, Minibatch, Scores
from algos.checks import check
from algos.maths.kl import regularisation
from algos.maths.losses import policy_gradient


@dataclass(frozen=True, kw_only=True)
class BC(Algorithm):
    """Behaviour cloning on the action tokens of demonstrations."""

    demonstrations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        in_loss = self.kl.placement in ("loss_k2", "loss_k3")
        check(self, "kl", self.kl.beta == 0 or in_loss, "in the loss and without a ratio: BC has no reward")

    def credit(self, batch: Batch) -> Credit:
        """1 on every demonstrated token."""
        return Credit(batch.action.to(batch.behaviour_logp.dtype), state=batch.state)

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """``-log pi``, with the regularisation."""
        policy_loss = policy_gradient(scores.logp, batch.advantage)
        term, metrics = regularisation(scores, batch, self.kl, self.entropy)
        return policy_loss + term, {**metrics, "policy_loss": policy_loss.detach()}

"""TOPR: clone what went well at full weight, and unlearn what went badly only as far as it is still likely.

    A_i = G_i - centre
    w_i = 1 if A_i >= 0 else sg[clamp(prod_t rho_t, 0, 1)]             rho over the action tokens of the episode
    loss_t = -w_i A_i log pi(a_t | s_t)

The taper is a bound of the loss: a failure that the policy no longer produces is left alone, so that its
probability is not driven to 0 for ever. sg: without gradient.
Source: Le Roux et al. 2025 (arXiv 2503.14286), the TOPR gradient with a+ = b+ = b- = 1 and a- = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from algos.base import Algorithm, Batch, Credit, Minibatch, Scores, filled
from algos.maths.advantages import spread_episodes
from algos.maths.kl import penalised_rewards, regularisation
from algos.maths.losses import policy_gradient


@dataclass(frozen=True, kw_only=True)
class TOPR(Algorithm):
    """Tapered off-policy REINFORCE.

    Attributes:
        centre: Subtracted from the return: what is below it counts as bad. The paper's rewards are +1 and -1; the
            default is the middle between failure (0) and success (1).
    """

    zero_advantage_is_zero_loss: ClassVar[bool] = True

    centre: float = 0.5

    def credit(self, batch: Batch) -> Credit:
        """``G - centre`` on every action token."""
        reward, valid = penalised_rewards(batch, self.kl)
        advantage = torch.where(valid, reward.sum(1) - self.centre, reward.new_zeros(()))
        return Credit(spread_episodes(advantage, batch.action), keep=valid, state=batch.state)

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The tapered policy gradient, with the regularisation."""
        log_rho = scores.logp.detach() - filled(batch.old_logp, "old_logp")
        total = torch.where(batch.action, log_rho, torch.zeros_like(log_rho)).sum(1)  # [b] of the whole episode
        tapered = spread_episodes(total.clamp(max=0).exp(), batch.action)  # clamped first: exp cannot overflow
        weight = torch.where(batch.advantage < 0, tapered, torch.ones_like(tapered))
        policy_loss = policy_gradient(scores.logp, weight * batch.advantage)
        term, metrics = regularisation(scores, batch, self.kl, self.entropy)
        return policy_loss + term, {
            **metrics,
            "policy_loss": policy_loss.detach(),
            "taper": weight,
            "clip_share": (weight < 1).to(weight.dtype),
        }

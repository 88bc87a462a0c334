"""Sign: better or worse than the median of the batch, and by how much does not matter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from algos import Preset
from algos.base import Algorithm, Batch, Credit, Minibatch, Scores
from algos.checks import check
from algos.maths.advantages import group_median, spread_episodes
from algos.maths.kl import penalised_rewards, regularisation
from algos.maths.losses import policy_gradient


@dataclass(frozen=True, kw_only=True)
class Sign(Algorithm):
    """A_i = size * sign(G_i - median); ``size`` is the step that an episode is worth."""

    size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "size", self.size > 0, "above 0")

    def credit(self, batch: Batch) -> Credit:
        reward, valid = penalised_rewards(batch, self.kl)
        centre = group_median(reward.sum(1), torch.zeros_like(batch.group), valid)
        advantage = self.size * torch.sign(reward.sum(1) - centre) * valid
        return Credit(spread_episodes(advantage, batch.action), keep=valid, state=batch.state)

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        policy_loss = policy_gradient(scores.logp, batch.advantage)
        term, metrics = regularisation(scores, batch, self.kl, self.entropy)
        return policy_loss + term, {**metrics, "policy_loss": policy_loss.detach()}


gentle_sign = Preset("their_algorithms:Sign", {"size": 0.1})

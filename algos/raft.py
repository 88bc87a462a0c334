"""RAFT: clone the episodes that went well, and drop the others.

    keep_i = 1 if G_i > threshold else 0
    loss_t = -log pi(a_t | s_t)                                    on the action tokens of kept episodes

Source: Dong et al. 2023 (arXiv 2304.06767); as studied here: Xiong et al. 2025 (arXiv 2504.11343).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from algos.base import Algorithm, Batch, Credit, Minibatch, Scores
from algos.checks import check
from algos.maths.advantages import clean_rewards, spread_episodes
from algos.maths.kl import regularisation
from algos.maths.losses import policy_gradient


@dataclass(frozen=True, kw_only=True)
class RAFT(Algorithm):
    """Behaviour cloning of one's own successes.

    The kept episodes are a data set, and its likelihood may be climbed in any number of steps: ``epochs`` and
    ``minibatches`` need no ratio.

    Attributes:
        threshold: An episode is kept if its return is above this.
    """

    zero_advantage_is_zero_loss: ClassVar[bool] = True

    threshold: float = 0.0

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        super().__post_init__()
        in_loss = self.kl.placement != "reward_k1"
        check(self, "kl", self.kl.beta == 0 or in_loss, "in the loss: the reward only filters, and carries no gradient")

    def credit(self, batch: Batch) -> Credit:
        """1 on every action token of an episode whose return is above the threshold; the others are not kept."""
        reward, valid = clean_rewards(batch.reward, batch.n_turns)
        keep = valid & (reward.sum(1) > self.threshold)
        return Credit(spread_episodes(keep.to(reward.dtype), batch.action), keep=keep, state=batch.state)

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """``-log pi``, with the regularisation."""
        policy_loss = policy_gradient(scores.logp, batch.advantage)
        term, metrics = regularisation(scores, batch, self.kl, self.entropy)
        return policy_loss + term, {**metrics, "policy_loss": policy_loss.detach()}

"""The critic: a small head on hidden states, over the policy's own trunk or a trunk of its own.

``value[:, t]`` is V of the conversation *before* token ``t``, so it is read from the hidden state at ``t -
1``. The last layer starts at zero: an untrained critic says 0 everywhere, and GAE starts as the plain return.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Trunk = Literal["shared", "detached", "own"]


class ValueHead(nn.Module):
    """Linear -> ReLU -> Dropout -> Linear, one scalar for each hidden state.

    Dropout is part of the published head, and is active in ``train()`` mode only; the learner always stays in
    ``eval()`` mode, so that two passes over the same tokens agree.

    Args:
        hidden_size: D, the width of the hidden states.
        width: Width of the hidden layer; D when left out.
        dropout: Probability of the dropout layer.
    """

    def __init__(self, hidden_size: int, width: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        width = hidden_size if width is None else width
        self.inner = nn.Linear(hidden_size, width)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(width, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns values ``[...]`` in float32 for hidden states ``[..., D]``."""
        inner = torch.relu(self.inner(hidden))
        return cast(Tensor, self.outer(self.dropout(inner))).squeeze(-1).float()


class Critic(nn.Module):
    """A value head and, if it does not share the policy's, the trunk below it.

    Attributes:
        head: The :class:`ValueHead`.
        trunk: Its own copy of the policy's decoder, or ``None`` if it reads the policy's hidden states.
        detached: Whether the value loss stops at the head and leaves the shared trunk alone.
    """

    def __init__(self, head: ValueHead, trunk: nn.Module | None = None, *, detached: bool = False) -> None:
        super().__init__()
        self.head = head
        self.trunk = trunk
        self.detached = detached

    def forward(self, hidden: Tensor) -> Tensor:
        """Values ``[...]`` of hidden states ``[..., D]``."""
        return cast(Tensor, self.head(hidden))


def decoder(model: Any) -> Any:
    """The part of a causal language model below its head: tokens to hidden states."""
    return model.get_decoder()


def new_critic(model: PreTrainedModel, *, trunk: Trunk = "shared", seed: int = 0) -> Critic:
    """Builds an untrained critic for a policy; it returns exactly 0 for every state.

    Args:
        model: The policy's causal language model.
        trunk: ``"shared"`` lets the value loss train the policy's trunk too, ``"detached"`` reads its
            hidden states without touching it, ``"own"`` starts from a copy of it.
        seed: Seed of the head's inner layer. The process-wide generator is left as it was.
    """
    reference = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ValueHead(int(decoder(model).config.hidden_size))
    own = copy.deepcopy(decoder(model)) if trunk == "own" else None
    return Critic(head, own, detached=trunk == "detached").to(reference.device).eval()

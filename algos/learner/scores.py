"""What a model says about the tokens of a batch: log-probability, entropy and value at the action positions only.

The trunk gives hidden states at the action positions (``algos.learner.trunk``), and the head runs over them in chunks:
at a large vocabulary the logits are most of the memory, and three tokens out of four are not the agent's.

Axes: b rows, T tokens, A action tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from algos.base import Scores
from algos.learner.trunk import hidden_before
from algos.policies.critic import Critic, decoder
from algos.policies.products import linear, rounded

CHUNK_ELEMENTS = 2**23  # logits held at once: 32 MB in float32, and a few times that while they are used


def score(
    model: PreTrainedModel,
    tokens: Tensor,
    action: Tensor,
    *,
    temperature: float = 1.0,
    critic: Critic | None = None,
    entropy_grad: bool = False,
) -> Scores:
    """Scores the action tokens of some rows, with gradient where autograd is on.

    Rows are padded on the right and attention is causal, so no mask is needed: nothing that counts can see
        padding.

    Args:
        model: Causal language model in evaluation mode.
        tokens: ``[b,T]``.
        action: ``[b,T]`` bool; never true in column 0.
        temperature: Divides the logits, as in the sampler.
        critic: Gives ``Scores.value``; without it that is ``None``.
        entropy_grad: Whether the entropy carries a gradient (an entropy bonus); measuring it alone is
            cheaper.

    Returns:
        ``[b,T]`` float32 tensors, 0 off action; ``value[:, t]`` is read before token ``t``.
    """
    row, column = action.nonzero(as_tuple=True)  # [A]
    before = hidden_before(decoder(model), tokens, row, column)  # [A,D]
    logp, entropy = _selected(_head(model), before, tokens[row, column], temperature, entropy_grad)
    value = None
    if critic is not None and critic.trunk is not None:
        value = critic(hidden_before(critic.trunk, tokens, row, column))
    elif critic is not None:
        value = critic(before.detach() if critic.detached else before)
    return Scores(*(None if x is None else _scatter(x, action) for x in (logp, entropy, value)))  # type: ignore[arg-type]


def linear_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are just its head on its last hidden states, as scoring assumes.

    Some families scale or cap their logits in between (Gemma 2, Cohere, Granite).
    """
    tokens = torch.arange(4, device=next(model.parameters()).device)[None]
    with torch.no_grad():
        whole = model(input_ids=tokens, use_cache=False).logits
        parts = _head(model)(decoder(model)(input_ids=tokens, use_cache=False).last_hidden_state)
    return bool(torch.allclose(whole.float(), parts.float(), rtol=1e-4, atol=1e-4))


@contextlib.contextmanager
def recomputing(model: Any, on: bool) -> Iterator[None]:
    """Gradient checkpointing for the passes inside, and only for them: sampling keeps its cache.

    transformers recomputes a layer only in training mode. Only the layers' own switch is turned; what is
    inside them (dropout) stays in evaluation mode.
    """
    if not on:
        yield
        return
    model.activation_checkpointing_enable()
    model.disable_input_require_grads()  # of use to frozen embeddings only, and a hook more each time
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        model.activation_checkpointing_disable()


def _head(model: Any) -> nn.Linear:
    return cast(nn.Linear, model.get_output_embeddings())


def _selected(
    head: nn.Linear, hidden: Tensor, targets: Tensor, temperature: float, entropy_grad: bool
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, ``[A]`` each, in chunks of rows."""

    def chunk(h: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        spare = rounded(len(h)) - len(h)
        logits = linear(head, F.pad(h, (0, 0, 0, spare)))[: len(h)].float()  # [a,V]
        if temperature != 1.0:
            logits = logits / temperature
        every = torch.log_softmax(logits, -1)
        with contextlib.nullcontext() if entropy_grad else torch.no_grad():
            entropy = -(every.exp() * every).sum(-1)
        return every.gather(-1, target[:, None]).squeeze(-1), entropy

    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    if len(hidden) <= size:
        return chunk(hidden, targets)
    # Autograd would keep every chunk's logits; recomputing them in the backward pass keeps one chunk's.
    parts = [
        cast(tuple[Tensor, Tensor], checkpoint(chunk, h, target, use_reentrant=False))
        for h, target in zip(torch.split(hidden, size), torch.split(targets, size))
    ]
    logp, entropy = zip(*parts)
    return torch.cat(logp), torch.cat(entropy)


def _scatter(values: Tensor, action: Tensor) -> Tensor:
    """Puts ``[A]`` values back at their places, ``[b,T]``, 0 elsewhere."""
    return values.new_zeros(action.shape).masked_scatter(action, values)

"""Batches, a policy small enough to see through, and the algorithms that every test of the zoo goes through.

Numbers of a row depend only on the row's own seed: a row stays the same whatever stands beside or behind it.
Rewards are multiples of 1/8: sums of them are exact in floating point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import algos
from algos.base import KL, Algorithm, Batch, Credit, Minibatch, Scores
from algos.maths.reductions import loss_weights

VOCABULARY = 5
quick = settings(max_examples=40, deadline=None)
rewards_of_one = st.integers(-40, 40).map(lambda eighths: eighths / 8)


class Row(NamedTuple):
    """One conversation: (observed tokens, sampled tokens) of each turn, and what came of it."""

    turns: tuple[tuple[int, int], ...]
    rewards: tuple[float, ...]
    group: int = 0
    terminated: bool = True
    seed: int = 0


@st.composite
def row_lists(draw: st.DrawFn, min_size: int = 1, max_size: int = 6) -> list[Row]:
    """Conversations of any lengths, in groups of any sizes, some of them truncated."""
    rows = []
    for seed in range(draw(st.integers(min_size, max_size))):
        turns = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
        rewards = draw(st.lists(rewards_of_one, min_size=len(turns), max_size=len(turns)))
        group = draw(st.sampled_from((-3, 7, 100)))
        rows.append(Row(tuple(turns), tuple(rewards), group, draw(st.booleans()), seed))
    return rows


def batches(min_size: int = 1, max_size: int = 6) -> st.SearchStrategy[Batch]:
    """Batches with every field filled."""
    return row_lists(min_size, max_size).map(batch_of)


def batch_of(rows: Sequence[Row], *, padding: int = 0) -> Batch:
    """The batch of these conversations in float64, every field filled."""
    width = max(sum(o + a for o, a in row.turns) for row in rows) + padding
    turns = max(len(row.turns) for row in rows)
    columns: dict[str, list[Tensor]] = {}
    for row in rows:
        for name, tensor in _columns(row, width, turns).items():
            columns.setdefault(name, []).append(tensor)
    stacked: dict[str, Any] = {name: torch.stack(tensors) for name, tensors in columns.items()}
    return Batch(**stacked)


def _columns(row: Row, width: int, turns: int) -> dict[str, Tensor]:
    turn = [t for k, (o, a) in enumerate(row.turns) for t in [-1] * o + [k] * a]
    action = [t >= 0 for t in turn]
    length = len(turn)
    generator = torch.Generator().manual_seed(row.seed)

    def padded(values: Tensor | Sequence[float], size: int, fill: float) -> Tensor:
        values = torch.as_tensor(values)
        return torch.cat([values, values.new_full((size - len(values),), fill)])

    def noise(centre: float, spread: float) -> Tensor:
        drawn = centre + spread * torch.randn(length, generator=generator, dtype=torch.float64)
        return padded(drawn * torch.tensor(action), width, 0)

    behaviour = noise(-1.5, 0.3)
    return {
        "tokens": padded(torch.randint(VOCABULARY, (length,), generator=generator), width, 0),
        "action": padded(torch.tensor(action), width, False),
        "turn": padded(turn, width, -1),
        "reward": padded(torch.tensor(row.rewards, dtype=torch.float64), turns, 0),
        "n_turns": torch.tensor(len(row.turns)),
        "group": torch.tensor(row.group),
        "terminated": torch.tensor(row.terminated),
        "state_key": padded(torch.tensor([(row.seed + k) % 3 for k in range(len(row.turns))]), turns, 0),
        "version": torch.tensor(0),
        "behaviour_logp": behaviour,
        "old_logp": behaviour,
        "ref_logp": behaviour + noise(0, 0.2),
        "value": noise(0.3, 0.7),
        "bootstrap": torch.randn((), generator=generator, dtype=torch.float64),
        "greedy_return": torch.randn((), generator=generator, dtype=torch.float64),
    }


def padded(batch: Batch, columns: int) -> Batch:
    """The same rows with more right padding, which holds numbers that must not matter."""

    def pad(tensor: Tensor, fill: float) -> Tensor:
        return torch.cat([tensor, tensor.new_full((tensor.shape[0], columns), fill)], 1)

    fills = {"tokens": 1, "action": False, "turn": -1}
    fills |= dict.fromkeys(("behaviour_logp", "old_logp", "ref_logp", "value"), 0)
    wide: dict[str, Any] = {name: pad(getattr(batch, name), fill) for name, fill in fills.items()}
    return dataclasses.replace(batch, **wide)


# A policy one can see through ------------------------------------------------------------------------


def table(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [V,V] of the next token after each token, and the critic's value [V] after each token."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    values = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), values.requires_grad_()


def score(batch: Batch, parameters: tuple[Tensor, Tensor]) -> Scores:
    """What the table says about a batch; 0 off action."""
    logits, values = parameters
    before = batch.tokens.roll(1, 1)  # a row begins with an observed token, so what wraps around is not used
    distribution = logits.log_softmax(1)[before]  # [B,T,V]
    logp = distribution.gather(2, batch.tokens[..., None]).squeeze(2)
    entropy = -(distribution.exp() * distribution).sum(2)
    zero = torch.zeros((), dtype=logits.dtype)
    logp, entropy, value = (torch.where(batch.action, x, zero) for x in (logp, entropy, values[before]))
    return Scores(logp, entropy, value)


def observed(batch: Batch, seed: int = 1) -> Batch:
    """The batch as the learner fills it: old and reference policies and values are (other) tables."""
    old, reference = score(batch, table(seed)), score(batch, table(seed + 1))
    return dataclasses.replace(
        batch,
        behaviour_logp=old.logp.detach(),
        old_logp=old.logp.detach(),
        ref_logp=reference.logp.detach(),
        value=None if old.value is None else old.value.detach(),
    )


def loss_of(
    algorithm: Algorithm,
    data: Minibatch,
    weights: Tensor,
    parameters: tuple[Tensor, Tensor],
) -> Tensor:
    """What the learner adds up for one micro-batch."""
    loss, _ = algorithm.loss(score(data, parameters), data)
    return (weights * loss)[data.action].sum()


def judged(algorithm: Algorithm, batch: Batch) -> tuple[Credit, Minibatch, Tensor]:
    """Credit, data with credit, and weights of a whole batch."""
    credit = algorithm.credit(batch)
    return credit, Minibatch.of(batch, credit), loss_weights(batch, credit.keep, algorithm)


def gradient_of(algorithm: Algorithm, batch: Batch, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Loss and gradient (logits and values in one vector) of a whole batch in one piece."""
    _, data, weights = judged(algorithm, batch)
    parameters = table(seed)
    loss = loss_of(algorithm, data, weights, parameters)
    return loss.detach(), flat_gradient(loss, parameters)


def flat_gradient(loss: Tensor, parameters: tuple[Tensor, Tensor]) -> Tensor:
    """One vector; parameters that the loss does not reach have gradient 0."""
    found = torch.autograd.grad(loss + 0 * sum(p.sum() for p in parameters), parameters)
    return torch.cat([g.flatten() for g in found])


# Every algorithm, and every option of those that have many -------------------------------------------

_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "reinforce-none": ("reinforce", {"baseline": "none"}),
    "reinforce-ema": ("reinforce", {"baseline": "ema"}),
    "reinforce-reward_k1": ("reinforce", {"kl": KL(0.1, "reward_k1")}),
    "reinforce-loss_k2-entropy": ("reinforce", {"kl": KL(0.1, "loss_k2"), "entropy": 0.01}),
    "grpo-median": ("grpo", {"baseline": "group_median"}),
    "grpo-global": ("grpo", {"baseline": "global_mean", "scale": "batch", "reduce": "token"}),
    "grpo-loo": ("grpo", {"baseline": "leave_one_out"}),
    "grpo-nobaseline": ("grpo", {"baseline": "none", "scale": "none"}),
    "grpo-process": ("grpo", {"assignment": "process", "gamma_turn": 0.9, "reduce": "turn"}),
    "grpo-gae": ("grpo", {"assignment": "gae", "gamma_token": 0.9, "gamma_turn": 0.8, "lam": 0.7}),
    "grpo-turn": ("grpo", {"ratio": "turn", "reduce": "prompt"}),
    "grpo-sequence": ("grpo", {"ratio": "sequence", "low": 3e-4, "high": 4e-4}),
    "grpo-unclipped": ("grpo", {"low": None, "high": None}),
    "grpo-clipped-rewards": ("grpo", {"reward_clip": 1.0}),
    "grpo-mask": ("grpo", {"mask_truncated": True}),
    "grpo-reward_k1": ("grpo", {"kl": KL(0.1, "reward_k1")}),
    "grpo-loss_k2": ("grpo", {"kl": KL(0.1, "loss_k2")}),
    "grpo-loss_k3": ("grpo", {"kl": KL(0.1, "loss_k3"), "entropy": 0.01}),
    "grpo-loss_k3_is": ("grpo", {"kl": KL(0.1, "loss_k3_is")}),
    "reinforce_pp-discounts": ("reinforce_pp", {"gamma_turn": 0.9, "gamma_token": 0.8}),
    "reinforce_pp-plain": (
        "reinforce_pp_baseline",
        {"whiten": False, "low": None, "high": None, "kl": KL(0.1, "reward_k1")},
    ),
    "rebn-reward_k1": ("rebn", {"gamma_turn": 0.5, "kl": KL(0.1, "reward_k1")}),
    "remax-reward_k1": ("remax", {"low": None, "high": None, "kl": KL(0.1, "reward_k1")}),
    "raft-loss_k3": ("raft", {"threshold": 0.25, "kl": KL(0.1, "loss_k3"), "entropy": 0.01}),
    "topr-loss_k2": ("topr", {"centre": 0.0, "kl": KL(0.1, "loss_k2")}),
    "awr-unscaled": ("awr", {"scale": "none", "beta": 0.5, "max_weight": 2.0}),
    "grpo-drop_dead": ("grpo", {"drop_dead": True, "gamma_turn": 0.9, "baseline": "global_mean", "scale": "batch"}),
    "cispo-capped": ("cispo", {"high": 0.1, "kl": KL(0.1, "loss_k3_is")}),
    "cispo-process": ("cispo", {"high": 0.2, "assignment": "process"}),
    "sapo-steep": ("sapo", {"tau_positive": 3.0, "tau_negative": 9.0, "entropy": 0.01}),
    "sapo-gae": ("sapo", {"assignment": "gae", "lam": 0.7}),
    "gmpo-narrow": ("gmpo", {"low": 0.05, "high": 0.1, "kl": KL(0.1, "loss_k2")}),
    "gmpo-unclipped": ("gmpo", {"low": None, "high": None}),
    "gigpo-unscaled": ("gigpo", {"scale": "none", "omega": 0.5, "gamma_step": 0.8, "reduce": "turn"}),
    "gigpo-reward_k1": ("gigpo", {"kl": KL(0.1, "reward_k1"), "mask_truncated": True}),
    "advantage_clip-tight": ("grpo_advantage_clip", {"bound": 0.01, "assignment": "process"}),
    "ppo-plain": ("ppo", {"whiten": False, "value_clip": None, "low": None, "high": None}),
    "ppo-discounts": ("ppo", {"gamma_turn": 0.9, "gamma_token": 0.8, "lam": 0.5}),
    "ppo-reward_k1": ("ppo", {"kl": KL(0.1, "reward_k1"), "entropy": 0.01}),
    "ppo_turn-turn": ("ppo_turn", {"ratio": "turn", "gamma_turn": 0.8, "lam": 0.5, "reduce": "turn"}),
    "ppo_turn-reward_k1": ("ppo_turn", {"kl": KL(0.1, "reward_k1"), "whiten": False}),
    "ppo_bilevel-discounts": (
        "ppo_bilevel",
        {"gamma_turn": 0.8, "lam_turn": 0.6, "gamma_token": 0.9, "lam": 0.7, "kl": KL(0.1, "reward_k1")},
    ),
    "vapo-adaptive": ("vapo", {"alpha": 0.5, "mu": 0.3, "positive_above": 0.25, "kl": KL(0.1, "reward_k1")}),
    "vapo-alone": ("vapo", {"mu": 0.0, "lam_critic": 0.5, "gamma_turn": 0.9}),
}

ZOO: dict[str, Algorithm] = {name: algos.make(name) for name in algos.names()} | {
    variant: algos.make(name, **fields) for variant, (name, fields) in _VARIANTS.items()
}

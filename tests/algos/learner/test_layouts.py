"""A row for each turn and a row for each conversation are the same experience."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

import algos
from algos.base import KL, Algorithm, Batch, Minibatch, Scores
from algos.learner.layouts import per_turn
from algos.learner.scores import score as model_score
from algos.maths.reductions import loss_weights
from algos.policies.critic import new_critic
from algos.policies.load import load_policy
from algos.rollout.episodes import collate
from tests.algos.batches import (
    ZOO,
    Row,
    batch_of,
    batches,
    flat_gradient,
    judged,
    loss_of,
    observed,
    score,
    table,
)
from tests.algos.learner.made import conversations

few = settings(max_examples=5, deadline=None)


def by_row(algorithm: Algorithm) -> bool:
    """Whether the loss of a token depends on the ratios of the whole row: a sequence is not its turns."""
    means = (type(ZOO["gmpo"]), type(ZOO["topr"]))
    return getattr(algorithm, "ratio", "") == "sequence" or isinstance(algorithm, means)


BY_TOKEN = {name: algorithm for name, algorithm in ZOO.items() if not by_row(algorithm)}
BY_ROW = {name: algorithm for name, algorithm in ZOO.items() if by_row(algorithm)}


def whole_and_cut(algorithm: Algorithm, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Loss and gradient in both layouts."""
    _, data, weights = judged(algorithm, batch)
    found = []
    for rows, w in ((data, weights), per_turn(data, weights)):
        parameters = table()
        loss = loss_of(algorithm, rows, w, parameters)
        found.append((loss.detach(), flat_gradient(loss, parameters)))
    return found


def filled(batch: Batch) -> Batch:
    """The batch as the learner fills it, entropies included."""
    batch = observed(batch)
    return dataclasses.replace(batch, old_entropy=score(batch, table(1)).entropy.detach())


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", BY_TOKEN)
@few
@given(batches())
def test_loss_and_gradient_are_those_of_whole_conversations(name: str, batch: Batch) -> None:
    whole, cut = whole_and_cut(BY_TOKEN[name], filled(batch))
    close(cut, whole)


@few
@given(batches())
def test_turns_keep_their_tokens_and_all_that_was_said_before(batch: Batch) -> None:
    _, data, weights = judged(ZOO["ppo"], filled(batch))
    rows, w = per_turn(data, weights)
    assert rows.size == int(batch.n_turns.sum()) == len(w)
    row = 0
    for b in range(batch.size):
        for k in range(int(batch.n_turns[b])):
            own = (batch.turn[b] == k).nonzero().flatten()
            end = int(own[-1]) + 1
            assert rows.action[row].nonzero().flatten().tolist() == own.tolist()
            assert (rows.turn[row][own] == k).all() and (rows.turn[row] >= 0).sum() == len(own)
            assert torch.equal(rows.tokens[row, :end], batch.tokens[b, :end]) and not rows.tokens[row, end:].any()
            for name in ("advantage", "target", "old_logp", "value"):
                assert torch.equal(getattr(rows, name)[row, own], getattr(data, name)[b, own]), name
            assert torch.equal(w[row, own], weights[b, own])
            assert torch.equal(rows.reward[row], batch.reward[b]) and rows.group[row] == batch.group[b]
            row += 1
    assert (w[~rows.action] == 0).all() and w.sum() == pytest.approx(float(weights.sum()))


def test_the_last_turn_is_the_widest_row() -> None:
    """Columns that no turn reaches are gone; a turn may be interrupted by tokens that nobody sampled."""
    batch = filled(batch_of([Row(((2, 1), (1, 2)), (0.0, 1.0)), Row(((1, 1),), (0.0,), seed=1)], padding=3))
    turn = torch.tensor([[-1, -1, 0, -1, 1, -1, -1, -1, -1], [-1, 0, -1, 0, -1, -1, -1, -1, -1]])
    batch = dataclasses.replace(batch, turn=turn, action=turn >= 0)
    _, data, weights = judged(ZOO["grpo"], batch)
    rows, w = per_turn(data, weights)
    assert rows.turn.tolist() == [[-1, -1, 0, -1, -1], [-1, -1, -1, -1, 1], [-1, 0, -1, 0, -1]]
    assert w.shape == (3, 5)


def test_a_row_without_action_tokens_has_no_turn() -> None:
    batch = filled(batch_of([Row(((1, 2),), (1.0,)), Row(((3, 0),), (0.0,), seed=1)]))
    _, data, weights = judged(ZOO["bc"], batch)
    assert per_turn(data, weights)[0].size == 1
    rows, w = per_turn(data.rows(torch.tensor([1])), weights[1:])
    assert rows.size == 0 and w.numel() == 0


# A sequence is not its turns ---------------------------------------------------------------------------


def test_algorithms_of_sequences_are_the_expected_ones() -> None:
    assert {"gspo", "rloo", "gmpo", "topr", "grpo-sequence"} <= set(BY_ROW)
    assert {"grpo", "ppo", "ppo_turn", "reinforce", "grpo-turn", "vapo", "bc"} <= set(BY_TOKEN)


@pytest.mark.parametrize("name", ("gspo", "rloo", "grpo-sequence"))
@few
@given(batches())
def test_cut_into_turns_a_ratio_of_the_sequence_is_one_of_the_turn(name: str, batch: Batch) -> None:
    algorithm = BY_ROW[name]
    batch = filled(batch)
    _, cut = whole_and_cut(algorithm, batch)
    changed: Any = {"ratio": "turn"}
    whole, _ = whole_and_cut(dataclasses.replace(algorithm, **changed), batch)
    close(cut, whole)


def test_and_that_is_another_loss() -> None:
    batch = filled(batch_of([Row(((1, 2), (1, 3)), (0.0, r), seed=i) for i, r in enumerate((0.0, 1.0, 0.5))]))
    for name in ("gspo", "gmpo"):
        whole, cut = whole_and_cut(BY_ROW[name], batch)
        assert not torch.allclose(whole[1], cut[1], rtol=1e-3)


@pytest.mark.parametrize("name", BY_ROW)
@few
@given(batches())
def test_on_the_first_pass_the_gradients_agree_all_the_same(name: str, batch: Batch) -> None:
    """At ratio 1 the gradient by a token's log-probability is ``-w A`` where row and weights have one A and one w."""
    algorithm = dataclasses.replace(BY_ROW[name], kl=KL(), entropy=0.0)
    _, data, weights = judged(algorithm, filled(batch))
    assume(bool((weights > 0).any()))
    gradients = []
    for rows, w in ((data, weights), per_turn(data, weights)):
        assert rows.old_logp is not None
        logp = rows.old_logp.clone().requires_grad_()
        loss, _ = algorithm.loss(Scores(logp, torch.zeros_like(logp), rows.value), rows)
        gradients.append(torch.autograd.grad((w * loss)[rows.action].sum(), logp)[0][rows.action])
    close((gradients[1],), (gradients[0],))


# A real model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields"), [("grpo", {"reduce": "turn"}), ("ppo", {"epochs": 1}), ("grpo", {"ratio": "turn"})]
)
def test_a_model_gets_the_same_gradient_from_both_layouts(name: str, fields: dict[str, Any]) -> None:
    """What was said before reaches a turn through attention: each turn's row carries it as context."""
    algorithm = algos.make(name, **fields)
    policy = load_policy("nano")
    model = policy.model
    batch = collate(conversations(policy, 4))
    critic = new_critic(model) if "critic" in algorithm.needs else None
    modules = [model] if critic is None else [model, critic]
    parameters = [p for module in modules for p in module.parameters()]
    with torch.no_grad():
        then = model_score(model, batch.tokens, batch.action, critic=critic)
    changes: dict[str, Any] = {"old_logp": then.logp + 0.1 * batch.action * torch.sin(batch.tokens.float())}
    if then.value is not None:
        changes |= {"value": then.value, "bootstrap": torch.zeros(batch.size)}
    batch = dataclasses.replace(batch, **changes)
    credit = algorithm.credit(batch)
    data, weights = Minibatch.of(batch, credit), loss_weights(batch, credit.keep, algorithm)

    def gradient(rows: Minibatch, w: Tensor) -> Tensor:
        loss, _ = algorithm.loss(model_score(model, rows.tokens, rows.action, critic=critic), rows)
        found = torch.autograd.grad((w * loss)[rows.action].sum(), parameters, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    whole, cut = gradient(data, weights), gradient(*per_turn(data, weights))
    assert float(whole.abs().max()) > 1e-3
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)

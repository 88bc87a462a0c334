from __future__ import annotations

import dataclasses
import math
import typing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import algos
from algos.base import Batch, Reduce
from algos.maths.reductions import loss_weights, surest_last, token_weights
from tests.algos.batches import Row, batch_of, batches, padded, quick

REDUCTIONS: tuple[Reduce, ...] = typing.get_args(Reduce)
reductions = st.sampled_from(REDUCTIONS)
some = st.lists(st.booleans(), min_size=6, max_size=6)


def by_definition(
    batch: Batch, keep: list[bool], reduce: Reduce, longest: int | None = None
) -> list[list[float]]:
    """The table of the docstring, token by token."""
    rows = [b for b in range(batch.size) if keep[b]]
    length = {b: int(batch.action[b].sum()) for b in rows}
    turns = {(b, int(k)) for b in rows for k in batch.turn[b] if k >= 0}
    groups = {int(batch.group[b]) for b in rows}

    def weight(b: int, t: int) -> float:
        if not (keep[b] and batch.action[b, t]):
            return 0.0
        group = sum(length[i] for i in rows if batch.group[i] == batch.group[b])
        return {
            "token": 1 / sum(length.values()),
            "seq": 1 / (len(rows) * length[b]),
            "const": 1 / (len(rows) * (longest or max(length.values()))),
            "seq_sum": 1 / len(rows),
            "prompt": 1 / (len(groups) * group),
            "turn": 1 / (len(turns) * int((batch.turn[b] == batch.turn[b, t]).sum())),
        }[reduce]

    return [[weight(b, t) for t in range(batch.action.shape[1])] for b in range(batch.size)]


@quick
@given(batches(), some, reductions, st.sampled_from((None, 17)))
def test_weights_are_those_of_the_table(
    batch: Batch, flags: list[bool], reduce: Reduce, longest: int | None
) -> None:
    keep = flags[: batch.size]
    found = token_weights(batch, torch.tensor(keep), reduce, longest=longest)
    expected = torch.tensor(by_definition(batch, keep, reduce, longest), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@quick
@given(batches(), some, reductions)
def test_numerator_and_denominator_share_one_mask(batch: Batch, flags: list[bool], reduce: Reduce) -> None:
    """A row that is not kept might as well not be there; nor might padding."""
    keep = torch.tensor(flags[: batch.size])
    found = token_weights(batch, keep, reduce)
    if keep.any():
        alone = token_weights(batch.rows(keep), None, reduce)
        torch.testing.assert_close(found[keep], alone, rtol=1e-12, atol=0)
    assert (found[~keep] == 0).all() and (found[~batch.action] == 0).all()
    wide = token_weights(padded(batch, 3), keep, reduce)
    assert torch.equal(wide[:, :-3], found) and (wide[:, -3:] == 0).all()


@quick
@given(batches())
def test_averages_sum_to_one(batch: Batch) -> None:
    for reduce in ("token", "seq", "prompt", "turn"):
        assert abs(float(token_weights(batch, None, reduce).sum()) - 1) < 1e-12


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_nothing_kept_weighs_nothing(reduce: Reduce) -> None:
    batch = batch_of([Row(((1, 2),), (1.0,)), Row(((2, 1),), (0.0,))])
    assert (token_weights(batch, torch.tensor([False, False]), reduce) == 0).all()


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_a_row_without_action_tokens_does_not_count(reduce: Reduce) -> None:
    batch = batch_of([Row(((1, 2),), (1.0,), group=0), Row(((3, 0),), (0.0,), group=1)])
    alone = token_weights(batch.rows(torch.tensor([0])), None, reduce)
    assert torch.equal(token_weights(batch, None, reduce)[:1], alone)


def test_the_dtype_is_that_of_the_log_probabilities() -> None:
    batch = batch_of([Row(((1, 2),), (1.0,))])
    assert token_weights(batch).dtype == torch.float64


# The tokens at which the policy was least sure ------------------------------------------------------


@quick
@given(batches(), some, st.sampled_from((0.01, 0.2, 0.5, 0.9, 1.0)))
def test_the_surest_tokens_are_left_out(batch: Batch, flags: list[bool], share: float) -> None:
    """Of n kept tokens those from rank ceil((1 - share)(n - 1)) on, counted from the surest."""
    keep = torch.tensor(flags[: batch.size])
    entropy = (batch.behaviour_logp * 8).round().abs()  # with ties
    for kept, rows in ((keep, keep), (None, torch.ones_like(keep))):
        counted = batch.action & rows[:, None]
        found = surest_last(entropy.masked_fill(~counted, math.nan), batch.action, kept, share)
        assert torch.equal(found, surest_last(entropy.masked_fill(~counted, 1e9), batch.action, kept, share))
        inside = sorted(entropy[counted].tolist())
        if not inside:
            assert not found.any()
            continue
        least = inside[math.ceil(round((1 - share) * (len(inside) - 1), 9))]
        assert torch.equal(found, counted & (entropy >= least))
        assert found.any() and (share < 1 or torch.equal(found, counted))


@quick
@given(batches(), some, reductions)
def test_tokens_that_do_not_train_are_as_if_nobody_had_said_them(
    batch: Batch, flags: list[bool], reduce: Reduce
) -> None:
    keep = torch.tensor(flags[: batch.size])
    at = batch.behaviour_logp > -1.5
    silent = batch.with_columns(action=batch.action & at, turn=torch.where(batch.action & at, batch.turn, -1))
    assert torch.equal(token_weights(batch, keep, reduce, at=at), token_weights(silent, keep, reduce))


def test_an_algorithm_says_which_tokens_and_which_budget() -> None:
    batch = batch_of([Row(((1, 4),), (1.0,)), Row(((1, 2),), (0.0,), seed=1)])
    batch = dataclasses.replace(batch, old_entropy=batch.behaviour_logp.abs())
    budget = loss_weights(batch, None, algos.make("dr_grpo", budget=50))
    assert torch.equal(budget, token_weights(batch, None, "const", longest=50))
    assert budget[batch.action].tolist() == [pytest.approx(1 / (2 * 50))] * 6  # 1 / (S L_max)
    half = loss_weights(batch, None, algos.make("grpo", top_entropy=0.5))
    assert batch.old_entropy is not None
    at = surest_last(batch.old_entropy, batch.action, None, 0.5)
    assert torch.equal(half, token_weights(batch, None, "seq", at=at)) and 0 < int(at.sum()) < 6

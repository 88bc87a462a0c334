from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import algos
from algos.base import Batch, Minibatch
from convgym.errors import ConfigError
from tests.algos.batches import Row, batch_of, batches, padded, quick


def tensors(batch: Batch) -> dict[str, Tensor]:
    columns = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return {name: x for name, x in columns.items() if isinstance(x, Tensor)}


@quick
@given(batches())
def test_rows_takes_the_same_rows_of_every_field(batch: Batch) -> None:
    index = torch.arange(batch.size).flip(0)[: 1 + batch.size // 2]
    some = batch.rows(index)
    assert some.size == len(index)
    assert all(torch.equal(x, tensors(batch)[name][index]) for name, x in tensors(some).items())


@quick
@given(batches())
def test_trimmed_takes_away_shared_padding_and_nothing_else(batch: Batch) -> None:
    again = padded(batch, 3).trimmed()
    assert all(torch.equal(x, tensors(batch)[name]) for name, x in tensors(again).items())
    assert batch.action[:, -1].any()


def test_trimming_spares_fields_that_happen_to_be_as_wide() -> None:
    batch = padded(batch_of([Row(((1, 1),), (1.0,))]), 1)  # T = 3
    wide = dataclasses.replace(batch, reward=torch.ones(1, 3), state_key=torch.zeros(1, 3).long())
    assert wide.trimmed().reward.shape == (1, 3) and wide.trimmed().tokens.shape == (1, 2)


def test_fields_that_are_empty_stay_empty() -> None:
    batch = dataclasses.replace(batch_of([Row(((1, 1),), (1.0,))]), ref_logp=None)
    assert batch.rows(torch.tensor([0])).trimmed().to("cpu").ref_logp is None


@pytest.mark.parametrize(
    ("field", "shape"),
    [("tokens", (2, 9)), ("turn", (3, 5)), ("group", (3,)), ("state_key", (2, 4)), ("value", (2, 1))],
)
def test_shapes_that_contradict_each_other_are_refused(field: str, shape: tuple[int, ...]) -> None:
    batch = batch_of([Row(((1, 1),), (1.0,)), Row(((3, 2),), (1.0,))])
    wrong: dict[str, Any] = {field: torch.zeros(shape)}
    with pytest.raises(ConfigError, match=rf"Batch\.{field} has shape .*expected \(2"):
        dataclasses.replace(batch, **wrong)


# What contradicts itself cannot be built ---------------------------------------------------------------


def two_rows() -> Batch:
    """Heard, said, heard, said, said in two turns; and heard, heard, heard, said, said in one."""
    return batch_of([Row(((1, 1), (1, 2)), (0.5, 1.0), group=-4), Row(((3, 2),), (1.0,), group=9, seed=1)])


def changed(name: str, place: tuple[int, ...], number: float) -> dict[str, Any]:
    """The column of ``two_rows`` with another number at one place."""
    column = getattr(two_rows(), name).clone()
    column[place] = number
    return {name: column}


def signed_mask() -> Tensor:
    return torch.where(two_rows().action, 1, -1)


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"action": signed_mask()}, r"action is torch\.int64, expected torch\.bool.*mask > 0"),
    ({"action": signed_mask().clamp(min=0).float()}, r"action is torch\.float32, expected torch\.bool"),
    ({"terminated": torch.ones(2)}, r"terminated is torch\.float32, expected torch\.bool"),
    ({"judged": torch.ones(2, dtype=torch.uint8)}, r"judged is torch\.uint8, expected torch\.bool"),
    ({"tokens": torch.zeros(2, 5)}, r"tokens is torch\.float32, expected torch\.int64"),
    ({"turn": two_rows().turn.int()}, r"turn is torch\.int32, expected torch\.int64.*long"),
    ({"n_turns": torch.tensor([2.0, 1.0])}, r"n_turns is torch\.float32, expected torch\.int64"),
    ({"group": torch.ones(2)}, r"group is torch\.float32"),
    ({"reward": torch.ones(2, 2, dtype=torch.int64)}, r"reward is torch\.int64, expected floating point.*float"),
    ({"behaviour_logp": torch.ones(2, 5).long()}, r"behaviour_logp is torch\.int64, expected floating point"),
    ({"greedy_return": torch.ones(2).long()}, r"greedy_return is torch\.int64, expected floating point"),
    ({"behaviour_logp": None}, r"behaviour_logp is a NoneType, expected a tensor \(2, 5\)"),
    ({"tokens": np.zeros((2, 5), np.int64)}, r"tokens is a ndarray, expected a tensor"),
    ({"action": torch.ones(5, dtype=torch.bool)}, r"action is a tensor \(5,\), expected a tensor \[B,T\]"),
    ({"reward": [1.0]}, r"reward is a list, expected a tensor \[B,K\]"),
]
NUMBERS: list[tuple[dict[str, Any], str]] = [
    (changed("tokens", (1, 0), -100), r"tokens\[1, 0\] is -100, expected an id"),
    (changed("n_turns", (1,), 0), r"n_turns\[1\] is 0, expected 1 to K = 2"),
    (changed("n_turns", (0,), 3), r"n_turns\[0\] is 3, expected 1 to K = 2"),
    (changed("turn", (0, 2), 0), r"turn\[0, 2\] is 0, expected .*-1 where it is not"),
    (changed("turn", (0, 2), -2), r"turn\[0, 2\] is -2"),
    (changed("turn", (1, 3), -1), r"turn\[1, 3\] is -1, expected 0 to n_turns - 1 where action"),
    (changed("turn", (1, 4), 1), r"turn\[1, 4\] is 1, expected 0 to n_turns - 1"),
    ({"turn": torch.tensor([[-1, 1, -1, 1, 0], [-1, -1, -1, 0, 0]])}, r"turn\[0, 4\] is 0, expected turns in order"),
    (changed("behaviour_logp", (0, 3), math.nan), r"behaviour_logp\[0, 3\] is nan, expected a finite number"),
    (changed("behaviour_logp", (1, 4), -math.inf), r"behaviour_logp\[1, 4\] is -inf"),
    (changed("old_logp", (0, 1), math.inf), r"old_logp\[0, 1\] is inf"),
    (changed("n_turns", (1,), 2), r"reward\[1, 1\] is 0\.0, expected no turn here"),
]


@pytest.mark.parametrize(("columns", "message"), FORMS + NUMBERS)
def test_columns_that_contradict_the_others_are_refused_with_the_place(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^Batch\.{message}") as caught:
        dataclasses.replace(two_rows(), **columns)
    assert "algos.rollout.episodes.collate" in str(caught.value)


@pytest.mark.parametrize(("rows", "width", "turns"), [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
def test_a_batch_of_nothing_is_refused(rows: int, width: int, turns: int) -> None:
    batch = two_rows()
    sizes = batch._shapes(rows, width, turns)
    columns: dict[str, Any] = {n: x.new_zeros(sizes[n]) for n, x in tensors(batch).items()}
    with pytest.raises(ConfigError, match=rf"\({rows}, {width}\) with K={turns}, expected at least one row, one token"):
        dataclasses.replace(batch, **columns)


@quick
@given(batches(), st.integers(0, 99), st.sampled_from(("turn", "behaviour_logp", "old_logp", "tokens")))
def test_one_wrong_number_anywhere_is_found(batch: Batch, which: int, name: str) -> None:
    places = batch.action.nonzero()
    row, column = places[which % len(places)].tolist()
    wrong = {"turn": int(batch.n_turns[row]), "tokens": -1}.get(name, math.nan)
    columns: Any = {name: getattr(batch, name).clone()}
    columns[name][row, column] = wrong
    with pytest.raises(ConfigError, match=re.escape(f"Batch.{name}[{row}, {column}] is {wrong}")):
        dataclasses.replace(batch, **columns)


@quick
@given(batches(), st.sampled_from((math.nan, math.inf, -7.0)))
def test_bad_luck_is_legal(batch: Batch, number: float) -> None:
    """What comes of it is told in ``test_bad_input.py``."""
    off = ~batch.action
    past = torch.arange(batch.reward.shape[1]) >= batch.n_turns[:, None]
    columns: dict[str, Any] = {
        "behaviour_logp": batch.behaviour_logp.masked_fill(off, number),
        "value": None if batch.value is None else batch.value.masked_fill(off, number),
        "reward": torch.full_like(batch.reward, number),
        "state_key": batch.state_key.masked_fill(past, -5),
        "group": -batch.group - 2**40,
    }
    assert dataclasses.replace(batch, **columns).size == batch.size


def test_a_row_without_an_action_token_is_legal() -> None:
    batch = batch_of([Row(((2, 1),), (1.0,)), Row(((3, 0),), (0.5,), seed=1)])
    assert batch.action.any(1).tolist() == [True, False]
    interrupted = batch_of([Row(((1, 2), (1, 1)), (0.0, 1.0))])
    turn = torch.tensor([[0, -1, 0, -1, 1]])
    assert dataclasses.replace(interrupted, turn=turn, action=turn >= 0).size == 1


# Columns that were computed ----------------------------------------------------------------------------


def test_computed_columns_are_compared_by_shape_and_type_and_not_read() -> None:
    batch = two_rows()
    spoilt = torch.full_like(batch.behaviour_logp, math.nan)
    assert batch.with_columns(old_logp=spoilt).old_logp is spoilt  # a broken model is the business of the learner
    for columns, message in FORMS:
        with pytest.raises(ConfigError, match=message):
            batch.with_columns(**columns)
    with pytest.raises(TypeError, match="no column 'olp_logp'"):
        batch.with_columns(olp_logp=spoilt)
    assert batch.rows(torch.tensor([], dtype=torch.int64)).size == 0


def test_credit_has_the_shape_and_type_of_its_batch() -> None:
    batch, ppo = two_rows(), algos.make("ppo")
    credit = ppo.credit(batch)
    assert credit.critic_at is not None
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"critic_at": credit.critic_at.float()}, r"critic_at is torch\.float32, expected torch\.bool"),
        ({"advantage": credit.advantage[:, 0]}, r"advantage has shape \(2,\), expected \(2, 5\)"),
        ({"advantage": None}, r"advantage is a NoneType"),
        ({"target": credit.advantage.long()}, r"target is torch\.int64, expected floating point"),
    ]
    for columns, message in wrong:
        with pytest.raises(ConfigError, match=rf"^Minibatch\.{message}"):
            Minibatch.of(batch, credit._replace(**columns))

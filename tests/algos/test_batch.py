from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from algos.base import Batch
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

"""The shapes in the annotations are checked whenever a test calls the mathematics."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

import algos.maths
from algos.maths import advantages, losses

MODULES = [importlib.import_module(f"algos.maths.{m.name}") for m in pkgutil.iter_modules(algos.maths.__path__)]
FUNCTIONS = [
    pytest.param(function, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__
]


def parts(hint: Any) -> list[Any]:
    """The type and everything inside it: of a union, a tuple, a dict."""
    return [hint, *(part for inner in typing.get_args(hint) for part in parts(inner))]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_tensor_says_its_shape(function: Callable[..., Any]) -> None:
    hints = typing.get_type_hints(function)
    assert "return" in hints
    assert not [name for name, hint in hints.items() if Tensor in parts(hint)]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nothing_calls_it_unchecked(function: Callable[..., Any]) -> None:
    assert hasattr(function, "__wrapped__"), "the import hook of tests/conftest.py came too late"


REWARD, VALUE, STEP, ENDS = torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.ones(2).bool()


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": torch.zeros(2, 4)},  # another width
        {"reward": torch.zeros(3)},  # no rows
        {"step": torch.ones(2, 3)},  # a mask of numbers
        {"bootstrap": torch.zeros(2, 1)},  # a column would be broadcast to [2,2]
        {"terminated": torch.ones(3).bool()},  # of other rows
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_shape_is_caught(wrong: dict[str, Tensor]) -> None:
    right = {"reward": REWARD, "value": VALUE, "step": STEP, "terminated": ENDS, "bootstrap": torch.zeros(2)}
    advantages.gae(**right)  # type: ignore[arg-type]
    with pytest.raises(jaxtyping.TypeCheckError):
        advantages.gae(**right | wrong)  # type: ignore[arg-type]


def test_what_would_broadcast_is_caught() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        losses.clipped_surrogate(torch.ones(4, 3), torch.ones(4, 1))

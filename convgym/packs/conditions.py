"""Comparisons on a field of a record: ``loan.renewals < {most}``. One pattern reads them, nothing evaluates them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from convgym.types import Event
from convgym.world import World

__all__ = ["OPERATORS", "Comparison", "Holds", "compares", "fill", "named", "read_comparison"]

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_COMPARISON = re.compile(r"([a-z][a-z0-9_]*)\.([a-z][a-z0-9_]*) (==|!=|<=|>=|<|>) (\S.*)")
_SLOT = re.compile(r"\{(\w+)\}")


class Comparison(NamedTuple):
    """A comparison; ``value`` is a word, a number in digits, or a parameter in braces."""

    table: str
    field: str
    op: str
    value: str


def read_comparison(text: str) -> Comparison | None:
    """Reads ``TABLE.FIELD OPERATOR VALUE``.

    >>> read_comparison("loan.renewals < {most}")
    Comparison(table='loan', field='renewals', op='<', value='{most}')
    >>> read_comparison("__import__('os')") is None
    True
    """
    found = _COMPARISON.fullmatch(text)
    return Comparison(*found.groups()) if found else None


def named(text: str) -> tuple[str, ...]:
    """The names in braces, in order.

    >>> named("Up to {most} renewals, {most}.")
    ('most', 'most')
    """
    return tuple(_SLOT.findall(text))


def fill(text: str, values: Mapping[str, str]) -> str:
    """Puts values in for names in braces; a value is never looked at for braces of its own."""
    return _SLOT.sub(lambda match: values.get(match.group(1), match.group()), text)


def compares(op: str, left: str | int, right: str) -> bool:
    """Compares a field's value with a word, or with digits where the field is a number."""
    return OPERATORS[op](left, int(right) if isinstance(left, int) else right)


@dataclass(frozen=True)
class Holds:
    """Whether a comparison holds for the record that an event is about, as it was in the beginning."""

    table: str
    field: str
    op: str
    value: str

    def __call__(self, world: World, event: Event) -> bool:
        row = world.tables[self.table].get(event.arguments.get(self.table, ""))
        return row is not None and compares(self.op, row[self.field], self.value)

"""Records per seed: one of each table is what the conversation is about, the others distract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from convgym.packs import schema
from convgym.packs.effects import Row
from convgym.packs.script import Script
from convgym.seeding import Stream
from convgym.world import World

__all__ = ["Drawn", "draw_world"]

OWN = 0.5  # chance that a distractor belongs to the same records, and is alike; the first one always does


class Drawn(NamedTuple):
    """A world, and what the conversation is about in it.

    Attributes:
        world: The world.
        keys: Key of the record in question, for each table.
        rows: The record itself.
    """

    world: World
    keys: Mapping[str, str]
    rows: Mapping[str, Row]

    def value(self, dotted: str) -> str:
        """The value of ``TABLE.FIELD``, or the key of ``TABLE``, of the record in question."""
        table, _, field = dotted.partition(".")
        return str(self.rows[table][field]) if field else self.keys[table]


class _Column(NamedTuple):
    """How a field is drawn: from ``words``, from the numbers of so many ``digits``, or as the key of a ``ref``."""

    field: str
    words: Sequence[Any]
    digits: int
    ref: str
    pool: str


class _Plan(NamedTuple):
    """How the records of a table are drawn in a split."""

    name: str
    digits: int
    columns: tuple[_Column, ...]
    unique: tuple[str, ...]
    changed: _Column | None
    alike: tuple[str, ...]
    distractors: tuple[int, ...]


def draw_world(
    script: Script, stream: Stream, split: str, level: int, legal: Mapping[tuple[str, str], Sequence[str | int]]
) -> Drawn:
    """Draws all records.

    Args:
        script: The pack.
        stream: The scenario stream.
        split: Which words of the pools.
        level: The difficulty.
        legal: What fields of the records in question may be; others are free.
    """
    numbers = {length: _numbers(stream, length, count) for length, count in script.lengths[level].items()}
    pools = {pool: stream.deal(script.words_of(pool, split), count) for pool, count in script.dealt.items()}
    keys: dict[str, str] = {}
    main: dict[str, Row] = {}
    tables: dict[str, dict[str, Row]] = {}
    for plan in _plans(script, split):
        name = plan.name
        keys[name] = key = numbers[plan.digits].pop()
        main[name] = row = _question(plan, stream, numbers, pools, keys, legal)
        rows = [
            (numbers[plan.digits].pop(), _distractor(plan, stream, numbers, keys, tables, row, number))
            for number in range(plan.distractors[level - 1])
        ]
        if plan.unique:
            rows = _distinct(plan, row, rows)
        rows.insert(stream.below(len(rows) + 1), (key, row))
        tables[name] = dict(rows)
    return Drawn(World(tables), keys, main)


@lru_cache(maxsize=256)
def _plans(script: Script, split: str) -> tuple[_Plan, ...]:
    """How each table is drawn, those that others refer to first."""
    return tuple(_plan(script, split, name, script.scenario.records[name]) for name in script.order)


def _plan(script: Script, split: str, name: str, table: schema.Table) -> _Plan:
    columns = {field: _column(script, split, field, column) for field, column in table.fields.items()}
    # The last of the fields that can be another: those before it may be what records are found by.
    free = [columns[field] for field in table.unique if len(columns[field].words) > 1]
    changed = free[-1] if free else None
    return _Plan(name, table.key.digits, tuple(columns.values()), table.unique, changed, table.alike, table.distractors)


def _column(script: Script, split: str, field: str, column: schema.Column) -> _Column:
    if isinstance(column, schema.Digits):
        return _Column(field, (), column.digits, "", "")
    if isinstance(column, schema.Ref):
        return _Column(field, (), 0, column.ref, "")
    if isinstance(column, schema.Pool):
        return _Column(field, script.words_of(column.pool, split), 0, "", column.pool)
    if isinstance(column, schema.Number):
        return _Column(field, range(column.low, column.high + 1, column.step), 0, "", "")
    return _Column(field, column.choice if column.start is None else (column.start,), 0, "", "")


def _question(
    plan: _Plan,
    stream: Stream,
    numbers: Mapping[int, list[str]],
    pools: Mapping[str, list[str]],
    keys: Mapping[str, str],
    legal: Mapping[tuple[str, str], Sequence[str | int]],
) -> Row:
    """Draws the record that the conversation is about; no two of them share a word of a pool."""
    row: Row = {}
    for field, words, digits, ref, pool in plan.columns:
        if ref:
            row[field] = keys[ref]
        elif pool:
            row[field] = pools[pool].pop()
        elif digits:
            row[field] = numbers[digits].pop()
        else:
            row[field] = stream.pick(legal.get((plan.name, field), words))
    return row


def _distractor(
    plan: _Plan,
    stream: Stream,
    numbers: Mapping[int, list[str]],
    keys: Mapping[str, str],
    tables: Mapping[str, Mapping[str, Row]],
    main: Row,
    number: int,
) -> Row:
    row: Row = {}
    for field, words, digits, ref, _ in plan.columns:
        if words:
            row[field] = stream.pick(words) if len(words) > 1 else words[0]
        elif digits:
            row[field] = numbers[digits].pop()
        else:
            own = number == 0 or stream.random() < OWN
            row[field] = keys[ref] if own else stream.pick(list(tables[ref]))
    if plan.alike and (number == 0 or stream.random() < OWN):
        for field in plan.alike:
            row[field] = main[field]
    return row


def _distinct(plan: _Plan, main: Row, rows: Sequence[tuple[str, Row]]) -> list[tuple[str, Row]]:
    """Changes records that equal an earlier one in all unique fields, or leaves them out where that is not possible."""
    seen, kept = {tuple([main[field] for field in plan.unique])}, []
    for key, row in rows:
        what = tuple([row[field] for field in plan.unique])
        if what in seen:
            row = next((other for other in _others(plan.changed, row) if _what(plan, other) not in seen), {})
            what = _what(plan, row) if row else what
        if row:
            seen.add(what)
            kept.append((key, row))
    return kept


def _what(plan: _Plan, row: Row) -> tuple[Any, ...]:
    return tuple([row[field] for field in plan.unique])


def _others(column: _Column | None, row: Row) -> Iterator[Row]:
    """A record with each of the other words in a field, from the next one on."""
    if column is not None:
        at = column.words.index(row[column.field])
        for word in (*column.words[at + 1 :], *column.words[:at]):
            yield {**row, column.field: word}


def _numbers(stream: Stream, length: int, count: int) -> list[str]:
    low = 10 ** (length - 1)
    return [str(low + n) for n in stream.distinct(9 * low, count)]

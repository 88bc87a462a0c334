"""Records per seed: one of each table is what the conversation is about, the others distract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from convgym.packs import schema
from convgym.packs.effects import Row
from convgym.packs.script import Script
from convgym.seeding import Stream
from convgym.world import World

__all__ = ["Drawn", "draw_world"]

OWN = 0.5  # chance that a distractor belongs to the same record as what the conversation is about


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
    pools = {pool: iter(stream.deal(script.words_of(pool, split), n)) for pool, n in script.dealt.items()}
    keys: dict[str, str] = {}
    main: dict[str, Row] = {}
    tables: dict[str, dict[str, Row]] = {}
    for name in script.order:
        table = script.scenario.records[name]
        keys[name] = key = next(numbers[table.key.digits])
        row: Row = {}
        for field, column in table.fields.items():
            if (name, field) in legal:
                row[field] = stream.pick(legal[name, field])
            elif isinstance(column, schema.Pool):
                row[field] = next(pools[column.pool])
            elif isinstance(column, schema.Ref):
                row[field] = keys[column.ref]
            else:
                row[field] = _value(script, column, stream, split, numbers)
        main[name] = row
        others = {
            next(numbers[table.key.digits]): _distractor(script, table, stream, split, numbers, keys, tables)
            for _ in range(table.distractors[level - 1])
        }
        if table.unique:
            others = _distinct(script, table, split, row, others)
        rows = list(others.items())
        rows.insert(stream.below(len(rows) + 1), (key, row))
        tables[name] = dict(rows)
    return Drawn(World(tables), keys, main)


def _distractor(
    script: Script,
    table: schema.Table,
    stream: Stream,
    split: str,
    numbers: Mapping[int, Iterator[str]],
    keys: Mapping[str, str],
    tables: Mapping[str, Mapping[str, Row]],
) -> Row:
    row: Row = {}
    for field, column in table.fields.items():
        if isinstance(column, schema.Ref):
            other = list(tables[column.ref])
            row[field] = keys[column.ref] if stream.random() < OWN else stream.pick(other)
        else:
            row[field] = _value(script, column, stream, split, numbers)
    return row


def _value(
    script: Script, column: schema.Column, stream: Stream, split: str, numbers: Mapping[int, Iterator[str]]
) -> Any:
    if isinstance(column, schema.Digits):
        return next(numbers[column.digits])
    if isinstance(column, schema.Number):
        return column.low + column.step * stream.below((column.high - column.low) // column.step + 1)
    if isinstance(column, schema.Choice):
        return column.start if column.start is not None else stream.pick(column.choice)
    assert isinstance(column, schema.Pool)  # references are for the caller, who knows the keys
    return stream.pick(script.words_of(column.pool, split))


def _distinct(
    script: Script, table: schema.Table, split: str, main: Row, others: Mapping[str, Row]
) -> dict[str, Row]:
    """Changes records that equal an earlier one in all unique fields, or leaves them out where none is left."""
    seen, kept = {tuple([main[field] for field in table.unique])}, {}
    field = table.unique[0]
    column = table.fields[field]
    words: Sequence[str | int] = ()
    if isinstance(column, schema.Pool):
        words = script.words_of(column.pool, split)
    elif isinstance(column, schema.Number):
        words = range(column.low, column.high + 1, column.step)
    elif isinstance(column, schema.Choice) and column.start is None:
        words = column.choice
    for key, row in others.items():
        at = words.index(row[field]) if words else 0
        for i in range(max(1, len(words))):
            changed = {**row, field: words[(at + i) % len(words)]} if words else row
            what = tuple([changed[each] for each in table.unique])
            if what not in seen:
                seen.add(what)
                kept[key] = changed
                break
    return kept


def _numbers(stream: Stream, length: int, count: int) -> Iterator[str]:
    low = 10 ** (length - 1)
    return iter([str(low + n) for n in stream.distinct(9 * low, count)])

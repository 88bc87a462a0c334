"""The closed set of things that a pack's tools can do: look up, find, set, insert, compare, end.

A tool's event carries its own arguments in canonical form, and the keys of the records that these lead to: the
event of ``renew(loan)`` also says whose loan it is, so that a rule can ask whether *that* member was verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from convgym.packs import schema
from convgym.packs.checks import listed, owned
from convgym.packs.conditions import fill, named
from convgym.tools import Arguments, Tool, ToolResult
from convgym.types import Event
from convgym.world import World

if TYPE_CHECKING:
    from convgym.packs.script import Script

__all__ = ["Tools", "canonical", "lead", "make_tools", "owner"]

Row = dict[str, Any]
"""A record: replaced, never changed."""


class Tools(dict[str, Tool]):
    """The tools of a pack; their models are made when it is loaded, so a copy asks the pack for them."""

    def __init__(self, script: Script, tools: Mapping[str, Tool]) -> None:
        super().__init__(tools)
        self.script = script

    def __reduce__(self) -> tuple[Callable[[Script], Tools], tuple[Script]]:
        return _tools_of, (self.script,)

    def __deepcopy__(self, memo: object) -> Tools:
        return self


def _tools_of(script: Script) -> Tools:
    return script.tools


def make_tools(script: Script) -> Tools:
    """Makes the tools of a pack."""
    made = {}
    for name, tool in script.scenario.tools.items():
        run = partial(_run, script, name, tool, _EFFECTS[type(tool.effect)])
        ends = isinstance(tool.effect, schema.End)
        made[name] = Tool(name, tool.description, _arguments(name, tool.parameters), run, ends)
    return Tools(script, made)


def _arguments(name: str, parameters: schema.Parameters) -> type[Arguments]:
    fields: dict[str, Any] = {}
    for argument, wanted in parameters.properties.items():
        kind: Any = int if wanted.type == "integer" else str
        if wanted.enum is not None:
            kind = Literal[wanted.enum]
        fields[argument] = (kind, Field(description=wanted.description))
    model: type[Arguments] = create_model(f"{name.title()}Arguments", __base__=Arguments, **fields)
    return model


def canonical(column: schema.Column | None, text: str, script: Script) -> str | None:
    """Brings a value into the form in which a column holds it; None if it cannot hold it."""
    value = " ".join(text.split())
    if column is None:
        return value
    if isinstance(column, schema.Number):
        digits = value.removeprefix("-")
        legal = digits.isascii() and digits.isdecimal() and len(digits) < 9 and column.low <= int(value) <= column.high
        return str(int(value)) if legal else None
    words = listed(column, script.scenario.pools)
    if words is None:
        return value
    return next((word for word in words if word.lower() == value.lower()), None)


def lead(script: Script, world: World, arguments: Mapping[str, str]) -> dict[str, str]:
    """Adds the keys of the records that the arguments lead to."""
    found = dict(arguments)
    for name in arguments:
        if name in script.own_refs:
            _follow(script, world, name, found)
    return found


def _follow(script: Script, world: World, table: str, found: dict[str, str]) -> None:
    row = _row(world, table, found[table])
    for ref in script.own_refs[table] if row else ():
        if ref not in found:
            found[ref] = row[ref]
            _follow(script, world, ref, found)


Effect = Callable[["Script", Any, World, dict[str, str]], "tuple[str, dict[str, str]]"]
"""Does it: what to say, and what the event says beyond the arguments. Raises :class:`_Refused` where it cannot."""


class _Refused(Exception):
    """The world turns an attempt down."""


def _run(
    script: Script, name: str, tool: schema.Tool, effect: Effect, world: World, arguments: Arguments, turn: int
) -> ToolResult:
    given = {key: str(value) for key, value in arguments.__dict__.items()}
    try:
        legal = dict(_legal(script, name, world, given))
        said, more = effect(script, tool.effect, world, legal)
    except _Refused as refused:
        plain = {key: " ".join(value.split()) for key, value in given.items()}
        return ToolResult(f"error: {refused}", Event(turn, name, plain, ok=False))
    write = isinstance(tool.effect, schema.Set | schema.Insert)
    event = Event(turn, name, lead(script, world, legal) | more, write=write)
    return ToolResult(fill(tool.says, legal) if tool.says else said, event)


def _legal(script: Script, name: str, world: World, given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields the arguments in canonical form; keys have to exist."""
    for argument, text in given.items():
        value = canonical(script.column_of(name, argument), text, script)
        unknown = argument in script.own_refs and world.get(argument, text.strip()) is None
        if value is None or unknown:
            raise _Refused(f"no such {argument.replace('_', ' ')}")
        yield argument, value


def _look_up(script: Script, effect: schema.LookUp, world: World, legal: dict[str, str]) -> tuple[str, dict[str, str]]:
    return _show(_row(world, effect.look_up, legal[effect.look_up]), effect.show), {}


def _find(script: Script, effect: schema.Find, world: World, legal: dict[str, str]) -> tuple[str, dict[str, str]]:
    table, value = effect.find, legal[effect.by]
    rows = [*world.rows(table), *((k, row) for (t, k), row in world.overlay.items() if t == table and k not in
                                  world.tables[table])]  # fmt: skip
    found = [(key, row) for key, row in rows if str(row[effect.by]) == value][: effect.at_most]
    if not found:
        raise _Refused("nothing found")
    said = "; ".join(f"{table} {key}: {_show(row, effect.show)}" for key, row in found)
    return said, {"found": "|".join(key for key, _ in found)}


def _show(row: Row, fields: tuple[str, ...]) -> str:
    return ", ".join([f"{field.replace('_', ' ')} {row[field]}" for field in fields])


def _set(script: Script, effect: schema.Set, world: World, legal: dict[str, str]) -> tuple[str, dict[str, str]]:
    table, _, field = effect.set.partition(".")
    column = script.scenario.records[table].fields[field]
    names = named(effect.to)
    value = legal[names[0]] if names else canonical(column, effect.to, script)
    row = _row(world, table, legal[table])
    if value is None or (names and canonical(column, value, script) is None):
        raise _Refused(f"no such {field.replace('_', ' ')}")
    if str(row[field]) == value:
        raise _Refused(f"already {value}")
    _put(world, table, legal[table], {**row, field: int(value) if isinstance(column, schema.Number) else value})
    return "done", {}


def _insert(script: Script, effect: schema.Insert, world: World, legal: dict[str, str]) -> tuple[str, dict[str, str]]:
    row: Row = {}
    for field, column in script.scenario.records[effect.insert].fields.items():
        value = effect.constants.get(field, legal.get(field, ""))
        row[field] = int(value) if isinstance(column, schema.Number) else value
    key = "/".join(str(value) for value in row.values())
    if world.get(effect.insert, key) is not None:
        raise _Refused("already there")
    _put(world, effect.insert, key, row)
    return "done", {}


def _row(world: World, table: str, key: str) -> Row:
    """The record as it stands now, empty if there is none."""
    row: Row = world.get(table, key) or {}
    return row


def _put(world: World, table: str, key: str, row: Any) -> None:
    """Writes a record; worlds are typed for named tuples, a pack's records are dicts that nobody changes."""
    world.put(table, key, row)


def _compare(script: Script, effect: schema.Compare, world: World, legal: dict[str, str]) -> tuple[str, dict[str, str]]:
    table, _, field = effect.compare.partition(".")
    if str(_row(world, table, legal[table])[field]) != legal[field]:
        raise _Refused("no match")
    return "verified", {}


def _end(script: Script, effect: schema.End, world: World, legal: dict[str, str]) -> tuple[str, dict[str, str]]:
    return "done", {}


_EFFECTS: dict[type[schema.Part], Effect] = {
    schema.LookUp: _look_up,
    schema.Find: _find,
    schema.Set: _set,
    schema.Insert: _insert,
    schema.Compare: _compare,
    schema.End: _end,
}


def owner(scenario: schema.Scenario, tool: str, argument: str) -> schema.Column | None:
    """The column whose values an argument takes: a key, a field of what the tool touches, or a slot's."""
    if argument in scenario.records:
        return scenario.records[argument].key
    effect, table = scenario.tools[tool].effect, ""
    if isinstance(effect, schema.Find):
        table = effect.find
    elif isinstance(effect, schema.Insert):
        table = effect.insert
    elif isinstance(effect, schema.Compare):
        table = effect.compare.partition(".")[0]
    elif isinstance(effect, schema.Set) and effect.to == f"{{{argument}}}":
        return owned(effect.set, scenario.records)
    slot = scenario.language.slots.get(argument)
    return owned(f"{table}.{argument}", scenario.records) or (
        owned(slot.value or argument, scenario.records) if slot else None
    )

"""A loaded pack: what is worked out once from the file, and drawn from in each episode."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from convgym import rules as policy
from convgym.errors import PackError
from convgym.language.speak import load_bank
from convgym.packs import schema
from convgym.packs.checks import carried, check, closure, listed, shows
from convgym.packs.conditions import Comparison, Holds, compares, fill, named, read_comparison
from convgym.packs.effects import make_tools, owner
from convgym.packs.hearing import domain_of, one_of
from convgym.packs.source import FILE, Place, Problem, Source, parse, raise_for, read
from convgym.packs.validation import validate
from convgym.rules import Rule
from convgym.tools import describe
from convgym.users.base import PERSONAS, Persona

__all__ = ["Ending", "Script", "load"]

SPLIT_FROM = 12  # words that a pool needs for its last 15 % to be held out; days of the week are not
MOST_ENDINGS = 64
MOST_CELLS = 1_000  # fields of all records of a world: a reset takes less than a millisecond
MOST_COMBINATIONS = 64  # of the parameters that speak about one ending

Values = tuple[str, ...]
"""The values of a pack's parameters in an episode, in their order."""


class Ending(NamedTuple):
    """How a conversation should end: a goal, and the rule that speaks against it, "" for none."""

    goal: str
    rule: str
    template: str
    from_level: int


class Script:
    """A loaded pack. It is immutable, and copies of it are itself.

    Attributes:
        text: The file.
        scenario: Its sections.
        source: Where each thing stands.
        tools: Its tools.
        domain: What users understand.
        user: The users' bank.
        agent: The agents' bank.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.source: Source = parse(text)
        self.scenario = s = validate(self.source)
        raise_for(check(s), self.source)
        self.own_refs = {
            name: tuple(field for field, column in table.fields.items() if isinstance(column, schema.Ref))
            for name, table in s.records.items()
        }
        self.order = tuple(sorted(s.records, key=lambda table: len(closure(s, table))))
        self.conditions = {name: _read(rule) for name, rule in s.rules.items() if isinstance(rule, schema.OnlyIf)}
        self.endings = tuple(_endings(s))
        raise_for(self._impossible(), self.source)
        self._columns = {(tool, a): owner(s, tool, a) for tool in s.tools for a in s.tools[tool].parameters.properties}
        self.tools = make_tools(self)
        self.ends = frozenset(name for name, tool in self.tools.items() if tool.ends)
        self.domain = domain_of(s.language)
        done = [phrase for verb in s.language.verbs.values() for phrase in verb.done]
        self.done = re.compile(rf"\b(?:{one_of(done)})\b" if done else "(?!)")
        self.told = {goal.tell: _words(self.column(goal.tell), s) for goal in s.goals.values() if goal.tell}
        self.user = {**load_bank("common", "user"), **s.words.user}
        self.agent = {**load_bank("common", "agent"), **s.words.agent}
        self.personas = _personas(s)
        columns = [(table, field, c) for table in self.order for field, c in s.records[table].fields.items()]
        self.private = tuple((table, field) for table, field, c in columns if getattr(c, "private", False))
        self.dealt = Counter(c.pool for _, _, c in columns if isinstance(c, schema.Pool))
        self.lengths = {level: _lengths(s, level) for level in range(1, schema.LEVELS + 1)}

    def __reduce__(self) -> tuple[Callable[[str], Script], tuple[str]]:
        return _script, (self.text,)

    def __deepcopy__(self, memo: object) -> Script:
        return self

    def column(self, dotted: str) -> schema.Column:
        """The column of ``TABLE.FIELD``, or the key of ``TABLE``."""
        table, _, field = dotted.partition(".")
        return self.scenario.records[table].fields[field] if field else self.scenario.records[table].key

    def column_of(self, tool: str, argument: str) -> schema.Column | None:
        """The column whose values an argument takes, None for free text."""
        return self._columns[tool, argument]

    def words_of(self, pool: str, split: str) -> Sequence[str]:
        """The words of a pool that a split may use."""
        return _words_of(self.scenario.pools[pool], split)

    def endings_at(self, level: int) -> tuple[Ending, ...]:
        """The endings whose goals and rules a difficulty has."""
        return tuple(ending for ending in self.endings if ending.from_level <= level)

    def rules_at(self, level: int) -> Iterator[tuple[str, schema.Rule]]:
        """The rules that a difficulty has."""
        return ((name, rule) for name, rule in self.scenario.rules.items() if rule.from_level <= level)

    def showing(self, rule: str) -> tuple[str, ...]:
        """The tools that show what a rule compares."""
        condition = self.conditions[rule]
        tools = self.scenario.tools.items()
        return tuple(name for name, tool in tools if shows(tool, condition.table, condition.field))

    @lru_cache(maxsize=4_096)  # noqa: B019 - scripts are few, and kept by `_script` anyway
    def legal_at(self, ending: Ending, values: Values, level: int) -> Mapping[tuple[str, str], Sequence[str | int]]:
        """As :meth:`legal`, worked out once."""
        return self.legal(ending, values, level)

    def legal(self, ending: Ending, values: Values, level: int) -> Mapping[tuple[str, str], Sequence[str | int]]:
        """What the fields of the records in question may be, so that exactly the ending's rule speaks against it.

        Returns:
            ``{(table, field): values}`` for the fields that rules compare.
        """
        found: dict[tuple[str, str], Sequence[str | int]] = {}
        tools = {call.tool for call in self.scenario.goals[ending.goal].required}
        for name, rule in self.rules_at(level):
            if name in self.conditions and tools & set(rule.tools):
                table, field, op, value = self._with(self.conditions[name], values)
                left = found.get((table, field)) or _values(self.column(f"{table}.{field}"))
                want = name != ending.rule
                found[table, field] = [each for each in left if compares(op, each, value) is want] or ()
                if not found[table, field]:
                    return found
        return found

    def _with(self, condition: Comparison, values: Values) -> Comparison:
        return condition._replace(value=fill(condition.value, dict(zip(self.scenario.parameters, values))))

    def _impossible(self) -> Iterator[Problem]:
        """Yields the endings that no world has, and what would make worlds too large or too small."""
        s = self.scenario
        if len(self.endings) > MOST_ENDINGS:
            yield Problem(("goals",), f"expected at most {MOST_ENDINGS} outcomes, got {len(self.endings)}.")
            return
        for ending in self.endings:
            yield from self._empty(ending)
        rows = {name: 1 + max(table.distractors) for name, table in s.records.items()}
        cells = sum(rows[name] * (1 + len(table.fields)) for name, table in s.records.items())
        if cells > MOST_CELLS:
            yield Problem(("records",), f"expected at most {MOST_CELLS} fields in all records of a world, got {cells}.")
        levels = [_lengths(s, level) for level in range(1, schema.LEVELS + 1)]
        most = {length: max(each[length] for each in levels) for length in levels[0]}
        for name, table in s.records.items():
            for field, column in {"key": table.key, **table.fields}.items():
                at: Place = ("records", name, "fields", field) if field in table.fields else ("records", name, "key")
                if isinstance(column, schema.Digits) and 2 * most[column.digits] > 9 * 10 ** (column.digits - 1):
                    yield Problem((*at, "digits"), f"expected more than {column.digits}: no two may be alike.")
        for pool, words in s.pools.items():
            count = sum(pool == getattr(c, "pool", None) for table in s.records.values() for c in table.fields.values())
            if min(len(_words_of(words, "train")), len(_words_of(words, "test_goal"))) < count:
                yield Problem(("pools", pool), f"expected more words: {count} fields take different ones from it.")

    def _empty(self, ending: Ending) -> Iterator[Problem]:
        s, goal = self.scenario, self.scenario.goals[ending.goal]
        tools = {call.tool for call in goal.required}
        about = {name for rule, (*_, value) in self.conditions.items() if tools & set(s.rules[rule].tools)
                 for name in named(value)}  # fmt: skip
        ranges = [each if name in about else each[:1] for name, each in s.parameters.items()]
        combinations = 1
        for each in ranges:
            combinations *= len(each)
        if combinations > MOST_COMBINATIONS:
            most = f"expected at most {MOST_COMBINATIONS} combinations for {ending.template!r}."
            yield Problem(("parameters",), most)
            return
        at: Place = ("goals", ending.goal, "unless", goal.unless.index(ending.rule)) if ending.rule else (
            "goals", ending.goal)  # fmt: skip
        for level in range(ending.from_level, schema.LEVELS + 1):
            for values in product(*ranges):
                for (table, field), left in self.legal(ending, values, level).items():
                    if not left:
                        named_values = ", ".join(f"{n}={v}" for n, v in zip(s.parameters, values) if n in about)
                        where = f" with {named_values}" if named_values else ""
                        why = f"no value of {table}.{field} makes {ending.template!r} the right outcome{where}"
                        yield Problem(at, f"expected it to be possible at level {level}, but {why}.")
                        return

    @lru_cache(maxsize=1_024)  # noqa: B019
    def rules(self, level: int, values: Values) -> tuple[Rule, ...]:
        """The policy of an episode; text and checks come from the same parameters."""
        parameters = dict(zip(self.scenario.parameters, values))
        return tuple(
            Rule(name, fill(rule.brief, parameters), fill(rule.full, parameters), self._check(name, rule, values))
            for name, rule in self.rules_at(level)
        )

    def _check(self, name: str, rule: schema.Rule, values: Values) -> policy.Check:
        names = frozenset(rule.tools)
        if isinstance(rule, schema.Before) and rule.before == "confirmed":
            same = tuple(dict.fromkeys(argument for tool in rule.tools for argument in carried(self.scenario, tool)))
            return policy.Before(names, rule.before, same, names_it="intent")
        if isinstance(rule, schema.Before):
            return policy.Before(names, rule.before, rule.same)
        if isinstance(rule, schema.Since):
            return policy.Since(names, rule.since, rule.reset)
        if isinstance(rule, schema.AtMostOnce):
            return policy.AtMostOnce(names, rule.at_most_once)
        if isinstance(rule, schema.OnlyIf):
            return policy.OnlyIf(names, Holds(*self._with(self.conditions[name], values)))
        return policy.Never(names)

    @lru_cache(maxsize=1_024)  # noqa: B019
    def instructions(self, level: int, values: Values, style: str) -> str:
        """The system message of an episode."""
        s, rules = self.scenario, self.rules(level, values)
        if style == "brief":
            return f"{policy.render(rules, style)} Tools: {describe(self.tools.values(), style)}".strip()
        return (
            f"{s.role} Serve the user under this policy:\n{policy.render(rules, style)}\n"
            "If you refuse, look first and say the reason. Say when something is done.\n\n"
            "Either speak to the user, or call one tool by writing "
            '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
            f"{describe(self.tools.values(), style)}"
        )


def load(folder: str | PathLike[str]) -> Script:
    """Loads a pack; equal files are read once.

    Raises:
        PackError: If it cannot be played; each line says file, line, field and what is wrong.
    """
    text = read(folder)
    try:
        return _script(text)
    except PackError as error:
        file = Path(folder) / FILE
        raise PackError("\n".join(f"{file}:{line}" for line in str(error).splitlines())) from None


@lru_cache(maxsize=32)
def _script(text: str) -> Script:
    return Script(text)


def _read(rule: schema.OnlyIf) -> Comparison:
    found = read_comparison(rule.only_if)
    assert found is not None  # see checks
    return found


def _endings(s: schema.Scenario) -> Iterator[Ending]:
    for name, goal in s.goals.items():
        kind = "tell" if goal.tell else "fulfil"
        yield Ending(name, "", f"{kind}/{name}", goal.from_level)
        for rule in goal.unless:
            kind = "refuse" if getattr(s.rules[rule], "reason", None) else "instead"
            yield Ending(name, rule, f"{kind}/{name}/{rule}", max(goal.from_level, s.rules[rule].from_level))


@lru_cache(maxsize=512)
def _words_of(words: tuple[str, ...], split: str) -> tuple[str, ...]:
    if len(words) < SPLIT_FROM:
        return words
    held = max(1, round(0.15 * len(words)))
    return words[-held:] if split == "test_goal" else words[:-held]


def _values(column: schema.Column) -> Sequence[str | int]:
    """What a column that rules may compare can hold at first."""
    if isinstance(column, schema.Number):
        return range(column.low, column.high + 1, column.step)
    assert isinstance(column, schema.Choice)  # see checks
    return (column.start,) if column.start is not None else column.choice


def _lengths(s: schema.Scenario, level: int) -> dict[int, int]:
    """How many numbers of each length a world has."""
    counts: Counter[int] = Counter()
    for table in s.records.values():
        for column in (table.key, *table.fields.values()):
            if isinstance(column, schema.Digits):
                counts[column.digits] += 1 + table.distractors[level - 1]
    return dict(counts)


def _words(column: schema.Column, s: schema.Scenario) -> re.Pattern[str]:
    words = listed(column, s.pools)
    return re.compile(rf"\b(?:{one_of(words)})\b" if words else "(?!)")


def _personas(s: schema.Scenario) -> tuple[tuple[Persona, ...], tuple[Persona, ...]]:
    """Those of training, and those held out."""
    if not s.personas:
        return PERSONAS[:-3], PERSONAS[-3:]
    made = [(p.held_out, Persona(name, p.patience, p.pushes, p.prefix or "")) for name, p in s.personas.items()]
    return tuple(p for held, p in made if not held), tuple(p for held, p in made if held)

"""ToolDatabase: a question whose answer lies several linked tables away, found by exact look-ups under a budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

from pydantic import Field

from convgym import rules as policy
from convgym.core import ConversationEnv, Split, Task, expect
from convgym.language.speak import load_bank
from convgym.language.understand import Domain, understand
from convgym.rules import Rule
from convgym.scenarios.linked_tables import (
    LEAF,
    LINK,
    SCHEMAS,
    VALUES,
    Question,
    Row,
    Table,
    describe_cell,
    draw_rows,
    draw_value,
    look_ups,
)
from convgym.seeding import Streams
from convgym.tools import Arguments, Tool, ToolResult, describe
from convgym.types import Act, EndReason, Event, Heard, Outcome, Reply
from convgym.users.base import Speaker, draw_persona
from convgym.world import World

__all__ = ["HELD_OUT", "HOPS", "KINDS", "MOST_ROWS", "ROWS", "Asker", "AtMost", "Goal", "ToolDatabase"]

READ = 2_000  # characters of a message that are read
MOST_ROWS = 3  # that one look-up shows
KINDS = tuple(f"{kind}/{schema}" for kind in ("tell", "set", "none") for schema in SCHEMAS)
HELD_OUT = {"tell/shop": LEAF, "set/office": LINK, "none/school": LEAF}  # only test_composition asks for these
HOPS, ROWS = (2, 2, 3, 3, 4), (4, 6, 8, 12, 16)  # at each difficulty
STARTS = ("name", "leaf", "both")  # how the question names its first row

# -- tools -----------------------------------------------------------------------------------------------


class FindArguments(Arguments):
    table: str = Field(description="name of the table")
    column: str = Field(description="column to look in")
    value: str = Field(description="exact value of that column")


class SetArguments(Arguments):
    table: str = Field(description="name of the table")
    key: str = Field(description="the row's value in the first column")
    column: str = Field(description="column to change")
    value: str = Field(description="new value")


@lru_cache(maxsize=4_096)  # of at most 200 characters each, see Arguments
def canonical(value: str) -> str:
    """Brings a value into the form in which values are compared."""
    return " ".join(value.lower().split())


def _place(tables: Sequence[Table], name: str, column: str) -> tuple[Table | None, int, str]:
    """Finds a table and a column by their canonical names, or says what there is instead."""
    for table in tables:
        if table.name == name:
            if column in table.columns:
                return table, table.columns.index(column), ""
            return None, 0, f"error: no such column; {table.name} has {', '.join(table.columns)}"
    return None, 0, f"error: no such table; there are {', '.join([table.name for table in tables])}"


def _matches(world: World, table: str, at: int, value: str) -> list[tuple[str, Row]]:
    """The rows whose cell equals a value; what is not on record equals nothing."""
    sought = canonical(value)
    return [(row_id, row) for row_id, row in world.rows(table) if sought and row[at].lower() == sought]


def _find(tables: Sequence[Table], world: World, arguments: FindArguments, turn: int) -> ToolResult:
    what = {"table": canonical(arguments.table), "column": canonical(arguments.column), "rows": ""}
    table, at, problem = _place(tables, what["table"], what["column"])
    if table is None:
        return ToolResult(problem, Event(turn, "find", what, ok=False))
    found = _matches(world, table.name, at, arguments.value)
    if not found:
        return ToolResult("no rows", Event(turn, "find", what, ok=False))
    shown = found[:MOST_ROWS]
    text = "; ".join([_show(table, row) for _, row in shown])
    more = len(found) - len(shown)
    what["rows"] = "|".join([row_id for row_id, _ in shown])
    return ToolResult(f"{text}; {more} more" if more else text, Event(turn, "find", what))


def _show(table: Table, row: Row) -> str:
    return ", ".join([f"{column} {cell or 'none'}" for column, cell in zip(table.columns, row)])


def _set(tables: Sequence[Table], world: World, arguments: SetArguments, turn: int) -> ToolResult:
    what = {
        "table": canonical(arguments.table), "key": canonical(arguments.key),
        "column": canonical(arguments.column), "value": canonical(arguments.value),
    }  # fmt: skip
    table, at, problem = _place(tables, what["table"], what["column"])
    found = [] if table is None else _matches(world, table.name, 0, arguments.key)
    if table is not None:
        if at == 0:
            problem = "error: the first column cannot be changed"
        elif len(found) != 1:
            problem = f"error: {len(found)} rows with this key"
        elif found[0][1][at].lower() == what["value"]:
            problem = "error: it is so already"
    if table is None or problem:
        return ToolResult(problem, Event(turn, "set", what, ok=False))
    row_id, row = found[0]
    cells = list(row)
    cells[at] = " ".join(arguments.value.split())
    world.put(table.name, row_id, Row(*cells))
    return ToolResult(f"set {table.columns[at]}", Event(turn, "set", what, write=True))


def _tools(tables: Sequence[Table]) -> dict[str, Tool]:
    tools = (
        Tool(
            "find",
            f"Shows at most {MOST_ROWS} rows of a table that have exactly this value in this column.",
            FindArguments,
            partial(_find, tables),
        ),
        Tool("set", "Changes one cell of the row with this key.", SetArguments, partial(_set, tables)),
    )
    return {tool.name: tool for tool in tools}


TOOLS = {(name, hops): _tools(schema.tables[:hops]) for name, schema in SCHEMAS.items() for hops in sorted(set(HOPS))}

# -- policy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtMost:
    """At most ``count`` events in ``names``, whether they succeed or not."""

    names: frozenset[str]
    count: int

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        return sum([past.name in self.names for past in earlier]) < self.count


@lru_cache(maxsize=16)
def make_rules(budget: int) -> tuple[Rule, ...]:
    """Builds the policy of one episode: how often the agent may look into the tables."""
    rule = Rule(
        "budget", f"At most {budget} finds.",
        f"You may call find at most {budget} times in a conversation; calls that find nothing count too.",
        AtMost(frozenset({"find"}), budget),
    )  # fmt: skip
    return (rule,)


@dataclass(frozen=True)
class Goal:
    """What has to be true at the end.

    Attributes:
        path: ``(table, row id)`` of each row on the way; all must have been shown before an answer counts.
        answer: The value to tell, canonical; "" if there is none and that has to be said.
        change: Arguments of the one write that must happen; empty if none may.
        rules: The policy; none of it may be broken.
    """

    path: tuple[tuple[str, str], ...]
    answer: str
    change: Mapping[str, str]
    rules: tuple[Rule, ...]

    def __call__(self, world: World) -> Outcome:
        met = {f"found {table}": False for table, _ in self.path}
        met["answered"] = False
        for event in world.log:
            if event.name == "find" and event.ok:
                rows = event.arguments["rows"].split("|")
                for table, row_id in self.path:
                    met[f"found {table}"] |= event.arguments["table"] == table and row_id in rows
            elif self._answers(event) and sum(met.values()) >= len(self.path):  # known before it was said
                met["answered"] = True
        if self.change:
            met["set"] = world.happened("set", **self.change)
        missing = tuple(name for name, done in met.items() if not done)
        damage = self._damage(world)
        if damage:
            return Outcome(False, 0.0, (*missing, damage))
        return Outcome(not missing, 1.0 - len(missing) / len(met), missing)

    def _answers(self, event: Event) -> bool:
        if self.answer:
            return event.name == "tell" and event.arguments["value"] == self.answer
        return event.name == "refuse" and event.arguments["reason"] == "missing"

    def _damage(self, world: World) -> str:
        """Names what must not be: a wrong value, a wrong denial, another write, a false report, a broken rule."""
        written = False
        for event in world.log:
            if event.name == "tell" and event.arguments["value"] != self.answer:
                return "a wrong value"  # each candidate in a message is an event: naming several is wrong
            if event.name == "refuse" and event.arguments["reason"] and self.answer:
                return "a false denial"
            if event.write and (written or not self.change or event.arguments != self.change):
                return "another write"
            written |= event.write
            if event.name == "done" and self.change and not written:
                return "a false report"
        broken = policy.violations(self.rules, world)
        return f"rule {broken[0]}" if broken else ""


# -- the user --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Asker(Speaker):
    """Asks one question, wants one answer, and, where it asked for a change, that too.

    It cannot know which value is right: it believes what it is told.

    Attributes:
        change: Arguments of the write that it wants; empty if it wants none.
    """

    change: Mapping[str, str]
    patience: int = 0
    pushes: int = 0
    answered: bool = False

    def key(self) -> str:
        """Describes the state that its next answer depends on."""
        return f"{self.patience}|{self.pushes}|{self.answered}"

    def open(self, streams: Streams) -> Reply:
        """Asks its question."""
        self.patience, self.pushes = self.persona.patience, self.persona.pushes
        return self.greet([self._want()], streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Takes an answer, or asks again; leaves when it has everything or its patience is spent."""
        answer = self._hear(heard)
        changed = not self.change or world.happened("set", **self.change)
        if self.answered and changed:
            return self.say([Act("goodbye", {})], turn, streams, EndReason.CONCLUDED)
        if answer is None and self.answered:
            answer = "still_set"
        elif answer is None and self.change and changed:
            answer = "still_tell"
        elif answer is None:
            answer = self._want().name if heard.acts else "nag"
        if answer != "waiting":  # every other answer here means that the message brought nothing
            self.patience -= 1
        if self.patience <= 0:
            return self.say([Act("leave", {})], turn, streams, EndReason.ABANDONED)
        return self.say([Act(answer, {})], turn, streams)

    def _want(self) -> Act:
        return Act("ask_set" if self.change else "ask", {})

    def _hear(self, heard: Heard) -> str | None:
        """Notes an answer, and returns the key of what there is to say to anything else."""
        if not heard.understood:
            return "repeat"
        told = [act for act in heard.acts if act.name == "tell"]
        if told:
            self.answered |= len(told) == 1
            return None if len(told) == 1 else "which_one"
        for act in heard.acts:
            if act.name == "refuse":
                return self._denied(act.slots["reason"])
            if act.name in ("request", "promise", "done"):
                return {"request": "inform_thing", "promise": "waiting", "done": None}[act.name]
        return None

    def _denied(self, reason: str) -> str | None:
        if not reason:
            return "why"
        if self.pushes > 0:
            self.pushes -= 1
            return "doubt"
        self.answered = True
        return None


DOMAIN = Domain(
    slots={"thing": r"which|what|who|whose|names?|mean|repeat|rephrase|clarify|question|details|looking for"},
    reasons={"missing": r"find|found|records?|recorded|listed|entry|entered|known|missing|see any|database|exists?"},
)
_ABSENT = (
    r"(?:on (?:record|file)|recorded|listed|entered|entry|known|there|found|given|assigned|set|available|specified"
    r"|provided|stored|stated|filled)"
)
_MISSING = re.compile(
    rf"\bno (?:\w+ ){{0,3}}?{_ABSENT}\b|\b(?:not|nothing|isn't|never|found no) (?:\w+ )?(?:{_ABSENT}|in the)\b"
    r"|(?:\b(?:is|was|says|shows)|[:=]) (?:'|\")?(?:none|empty|missing|blank|unknown|unavailable|nothing)\b"
    r"|\b(?:has|have|had|there(?:'s| is| are| was)|found|finds?|see) (?:no|not any)\b"
    r"(?! (?:other|further|more|need|problem))|\bn/a\b"
    r"|\b(?:does not|doesn't|do not|don't) (?:have|exist|list|belong|show|contain|include|hold)\b"
    r"|\bno (?:record|entry|such|value|data|information|rows|matching)\b|\bwithout an?\b"
    rf"|\b(?:hasn't|has not|have not|haven't) been {_ABSENT}\b|\bleft (?:blank|empty)\b|\b(?:came|comes?) up empty\b"
    r"|\bthere (?:isn't|is not|wasn't) (?:an?|any)\b|\black(?:s|ing)\b"
)
_DONE = re.compile(
    r"\b(?:i|we)(?:'ve| have)?(?: just| now| also| successfully| already| gone ahead and| went ahead and){0,4} "
    r"(?:made (?:the|that|your) (?:change|update|correction)|set (?:it|this|that|the)|entered (?:the|it|your)|"
    r"saved (?:the|it|your)|stored (?:the|it)|put in (?:the|it)|replaced (?:the|it)|overwr(?:ote|itten))\b|"
    r"\b(?:change|update|new \w+(?: \w+)?) (?:is|was|has been) (?:now |just )?(?:saved|stored|in place|made|entered|"
    r"set)\b"
)
_UNDONE = re.compile(
    r"\?|\b(?:if|unless|once|when|before|until|not|never|no|nothing|[a-z]{2,8}n't|(?:can|could|may|shall|"
    r"should) (?:i|we))\b"
)
_SENTENCES = re.compile(r"(?<=[.!?;])\s+")
_SUPPOSED = re.compile(  # what is supposed or asked is no denial
    r"^(?:so |then |and |but )?(?:if|unless|in case)\b|\?$"
    r"|(?:\b(?:will|would|can|could|should|let me(?! know))|'ll)\b.{0,160}\b(?:if|whether|unless|in case)\b"
)


@lru_cache(maxsize=64)
def _pattern(column: str) -> re.Pattern[str]:
    """The form of a column's values in lower case."""
    values = VALUES[column]
    if values[0][-1].isdigit():
        form = "[a-z]" * values[0][0].isalpha() + f"[0-9]{{{sum(map(str.isdigit, values[0]))}}}"
    else:
        form = "|".join([value.lower() for value in values])
    return re.compile(rf"(?<![\w-])(?:{form})(?![\w%-])")  # 100% is no room


@lru_cache(maxsize=8_192)
def _read(column: str, text: str) -> Heard:
    """Finds every value of the column, a denial that there is one, and what else the message does.

    Values and a denial in one message are all claims: a hedge is wrong, whatever is right.
    """
    heard = understand(DOMAIN, text)
    plain = " ".join(text.replace("’", "'").lower().split())
    acts = [Act("tell", {"value": value}) for value in dict.fromkeys(_pattern(column).findall(plain))]
    denial = any(_MISSING.search(part) for part in _SENTENCES.split(plain) if not _SUPPOSED.search(part))
    if denial and not any(act.name == "refuse" for act in heard.acts):
        acts.append(Act("refuse", {"reason": "missing", "item": ""}))
    acts.extend(heard.acts)
    if not any(act.name in ("done", "refuse") for act in acts) and any(
        _DONE.search(part) and not _UNDONE.search(part) for part in _SENTENCES.split(plain)
    ):
        acts.append(Act("done", {"amount": ""}))
    return Heard(tuple(acts), heard.understood or bool(acts))


def listen(column: str, mentioned: frozenset[str], text: str) -> Heard:
    """What the asker understands of an agent message.

    Args:
        column: The column that was asked for; a value of its form is a claim.
        mentioned: Values that are no answers: the new value, and the name that the question is about.
        text: The message.
    """
    heard = _read(column, text[:READ])
    if not heard.acts or heard.acts[0].name != "tell":
        return heard
    return Heard(tuple([act for act in heard.acts if act.slots.get("value") not in mentioned]), True)


class ToolDatabase(ConversationEnv):
    """A user asks for a value that lies two to four linked tables away.

    Description:
        The instructions name the tables with their columns. The answer takes a chain of exact look-ups: a
        person's team, the team's room, the room's phone. The agent tells the user the value; in a third of
        the episodes it also changes that cell, and tells the old value; in another third a cell on the way is
        empty, and the agent has to say that there is nothing on record. Three schemas: an office, a shop, a
        school.
    Observation:
        Text. At reset the instructions and the user's question; then what the user or a tool says.
    Action:
        Text to the user, or one tool call.
    Tools:
        ``find(table, column, value)`` shows at most 3 rows with exactly this value; there are no wildcards.
        ``set(table, key, column, value)`` changes one cell.
    Reward:
        1 at the end if every row on the way was looked up, then the right value (or that there is none) was
        told, and the change that was asked for was made and no other. Otherwise 0: also for a second value,
        in the same message or later, and for more look-ups than the policy allows. ``info["cost"]`` counts
        the look-ups over the budget.
    Episode end:
        The user leaves when it has its answer (right or wrong: it cannot know) and its change, or when
        patience is spent. Cut after 12 turns.
    Difficulty:
        Hops 2, 2, 3, 3, 4; rows a table 4, 6, 8, 12, 16. With them come cells that are empty and do not
        matter (from 2), questions that name the first row by another column (from 3), namesakes (from 4) and
        typing errors (from 4). The budget is the hops and 1 to 3 more.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` has its own names, teams, carriers and
        so on along the way; ``test_composition`` asks for columns that training never asks for in that schema
        and kind of task.
    Audit:
        Resists dumping the tables (row cap, exact values, budget), guessing (every row on the way must have
        been shown first) and listing values (each one is a claim; none is an ordinary word, so that courtesies
        claim nothing). Saying that there is nothing on record is right in one class of three, so what counts of
        an exploiter is what it gets beyond chance over the classes.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 12
    by_class: ClassVar[bool] = True

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws a schema with its rows, a way through them, and what is asked of its end."""
        stream = streams.stream("scenario")
        level = self.difficulty
        legal = tuple(HELD_OUT) if split == "test_composition" else KINDS
        if template is not None:
            expect("scenario", template, legal)
        template = template or stream.pick(legal)
        kind, _, name = template.partition("/")
        at = stream.pick((LINK, LEAF))
        if template in HELD_OUT:
            at = HELD_OUT[template] if split == "test_composition" else LINK + LEAF - HELD_OUT[template]
        hops, start = HOPS[level - 1], stream.pick(STARTS[: (1, 1, 2, 3, 3)[level - 1]])
        question = Question(kind, SCHEMAS[name], SCHEMAS[name].tables[:hops], at, start)
        tables, way = draw_rows(stream, question, ROWS[level - 1], split, gaps=level > 1)
        first, end = way[0], way[-1]
        answer = end[at] if kind != "none" else ""
        change = {}
        if kind == "set":
            new = draw_value(stream, question.column, "train", (answer, first.key))
            change = {"table": question.tables[-1].name, "key": end.key, "column": question.column, "value": new}
        goal = Goal(
            tuple([(table.name, row.key) for table, row in zip(question.tables, way)]),
            answer.lower(),
            {key: canonical(value) for key, value in change.items()},
            make_rules(hops + stream.between(1, 3)),
        )
        mentioned = frozenset({first.key.lower(), goal.change.get("value", "")})
        user = Asker(
            bank=load_bank("tool_database", "user"), persona=draw_persona(streams, split), split=split,
            facts={"thing": describe_cell(question, first), "column": question.column}
            | ({"new": change["value"]} if change else {}),
            typos=(0.0, 0.0, 0.0, 0.05, 0.1)[level - 1], change=goal.change,
        )  # fmt: skip
        return Task(
            template=template, world=World(tables), rules=goal.rules, tools=TOOLS[name, hops], user=user,
            instructions=_instructions(name, hops, goal.rules, self.style),
            understand=partial(listen, question.column, mentioned), judge=goal,
            privileged={
                "kind": kind, "finds": look_ups(question, way), "column": question.column, "answer": answer,
                "set": change, "start": start,
            },
            secrets=(answer,) if len(answer) > 3 and answer.isalpha() else (),
        )  # fmt: skip


@lru_cache(maxsize=128)
def _instructions(name: str, hops: int, rules: tuple[Rule, ...], style: str) -> str:
    tables = " ".join([f"{table.name}({', '.join(table.columns)})" for table in SCHEMAS[name].tables[:hops]])
    tools = TOOLS[name, hops].values()
    if style == "brief":
        return (
            f"Tables: {tables}. {policy.render(rules, style)} See every row on the way. Tell one value, or that there "
            f"is none. After a set tell the old value. Tools: {describe(tools, style)}"
        )
    return (
        "You answer questions from a database, with look-ups of exact values. Its tables, with the key column "
        f"first: {tables}. A column that is named like another table's key leads to that table. "
        "Look up every row on the way before you answer. Tell the user the one value that was asked for, and no "
        "other value of that column. If a value on the way is none, say that there is nothing on record. If the "
        "user asks for a change, set the cell to the new value, nothing else, and tell the old value.\n"
        f"{policy.render(rules, style)}\n\n"
        "Either speak to the user, or call one tool by writing "
        '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
        f"{describe(tools, style)}"
    )

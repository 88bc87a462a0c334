"""Clarification: a request with one reading or several; ask only if it is needed, then act on what was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import ClassVar, NamedTuple

from pydantic import Field

from convgym import rules as policy
from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.language.understand import READ, Domain, understand
from convgym.rules import Before, Rule
from convgym.seeding import Stream, Streams
from convgym.tools import Arguments, Tool, ToolResult, describe, format_call
from convgym.types import Act, Event, Heard, Outcome, Reply
from convgym.users.agenda import AgendaUser, Want, draw_persona
from convgym.world import World

__all__ = ["KINDS", "NEEDLESS", "Clarification", "Goal", "Requester", "readings"]

NEEDLESS = 0.75  # what a needless question takes from the reward


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of things that a request can be about.

    Attributes:
        noun: What one of them is called.
        verb: The tool that acts on one.
        past: What the tool answers.
        names: The names; several things may share one.
        slots: ``{slot: values}``, what tells things of one name apart.
        held: The slot that an ambiguous request turns on only in ``test_composition``.
    """

    noun: str
    verb: str
    past: str
    names: tuple[str, ...]
    slots: Mapping[str, tuple[str, ...]]
    held: str


KINDS: dict[str, Kind] = {
    "contacts": Kind(
        "contact", "call", "called",
        ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jakob",
         "Karin", "Lukas", "Maria", "Nils", "Olga", "Paul", "Rosa", "Simon", "Tara", "Viktor"),
        {
            "city": ("Oslo", "Rome", "Lyon", "Bonn", "Cork", "Graz"),
            "team": ("sales", "legal", "finance", "design", "logistics", "payroll"),
            "company": ("Acme", "Borealis", "Cobalt", "Delphi", "Everest", "Fjord"),
        },
        "team",
    ),
    "files": Kind(
        "file", "send", "sent",
        ("report", "budget", "contract", "invoice", "plan", "letter", "survey", "manual", "memo", "recipe",
         "poster", "essay", "schedule", "checklist", "proposal", "diary", "brochure", "summary", "agenda", "thesis"),
        {
            "month": ("January", "April", "June", "July", "August", "October"),
            "format": ("pdf", "slides", "spreadsheet", "scan", "webpage", "audio"),
            "folder": ("taxes", "travel", "archive", "projects", "school", "garden"),
        },
        "format",
    ),
    "meetings": Kind(
        "meeting", "cancel", "cancelled",
        ("review", "standup", "workshop", "interview", "briefing", "training", "seminar", "lecture", "rehearsal",
         "lunch", "tour", "audit", "demo", "debate", "dinner", "hearing", "retreat", "breakfast", "lesson", "kickoff"),
        {
            "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"),
            "time": ("9:00", "10:30", "12:00", "14:15", "15:45", "17:30"),
            "room": ("Atlas", "Comet", "Delta", "Ember", "Harbor", "Lotus"),
        },
        "time",
    ),
    "products": Kind(
        "product", "buy", "bought",
        ("lamp", "mug", "chair", "kettle", "clock", "radio", "tent", "drill", "vase", "rug",
         "jacket", "desk", "fan", "bag", "watch", "ladder", "mirror", "basket", "pillow", "bench"),
        {
            "colour": ("red", "blue", "green", "black", "white", "yellow"),
            "size": ("tiny", "small", "medium", "large", "huge"),
            "material": ("wood", "steel", "glass", "plastic", "stone", "bamboo"),
        },
        "material",
    ),
}  # fmt: skip
OTHER_NAMES = 1  # things of other names in each list
ACTS = frozenset(kind.verb for kind in KINDS.values())
WAYS = {"clear": ("lone", "told"), "ambiguous": ("bare", "hinted")}
CLEAR = 0.4  # share of the requests that are not ambiguous
TEMPLATES = tuple(f"{clarity}/{way}-{kind}" for clarity, ways in WAYS.items() for way in ways for kind in KINDS)

Layout = tuple[tuple[int, ...], ...]
"""How the things of one name differ: for each slot, which of its values each thing has, the last thing the highest."""
PAIR: Layout = ((0, 1), (0, 0), (0, 0))
DECOY: Layout = ((0, 1, 2), (0, 0, 1), (0, 0, 0))  # the second slot helps, but may not be enough
FOUR: Layout = ((0, 1, 2, 3), (0, 0, 1, 1), (0, 0, 0, 0))
GRID: Layout = ((0, 0, 1, 1), (0, 1, 0, 1), (0, 0, 0, 0))  # two questions are needed
LAYOUTS: tuple[tuple[Layout, ...], ...] = (
    (PAIR,), (PAIR, DECOY), (DECOY,), (DECOY, GRID), (FOUR, GRID),
)  # fmt: skip
MOST = 5  # things of one name


class Thing(NamedTuple):
    """A contact, a file, a meeting or a product."""

    name: str
    values: Mapping[str, str]
    acted: bool = False


class Request(NamedTuple):
    """What the opening says: the kind of things, and the ids of those that fit its words."""

    kind: str
    fits: tuple[str, ...]


def readings(world: World, events: Sequence[Event]) -> tuple[tuple[str, ...], int]:
    """Narrows the request down by what is told in ``events``.

    Returns:
        The ids of the things that fit the request and everything told, and how many answers ruled out none.
    """
    request = world.tables["requests"]["request"]
    things, fits, needless = world.tables[request.kind], request.fits, 0
    for event in events:
        if event.name == "told":
            slot, value = event.arguments["slot"], event.arguments["value"]
            left = tuple([key for key in fits if things[key].values[slot] == value])
            needless += len(left) == len(fits)
            fits = left
    return fits, needless


# -- policy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneFits:
    """An action in ``names`` needs that one thing fits what was said before: a guess may hit, and is a guess."""

    names: frozenset[str]

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        return not event.ok or len(readings(world, earlier)[0]) == 1


@dataclass(frozen=True)
class Narrows:
    """An answer has to rule out a reading; otherwise the question was needless."""

    names: frozenset[str] = frozenset({"told"})

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        return readings(world, (*earlier, event))[1] == readings(world, earlier)[1]


RULES = (
    Rule("find", "Find it first.", "Look the name up with the tool find before you act.",
         Before(ACTS, "find", ("name",))),
    Rule("ask", "Ask if several fit.",
         "If more than one thing fits everything that the user said, ask what tells them apart before you act: "
         "a guess does not count.", OneFits(ACTS)),
    Rule("needless", "Ask nothing else.",
         "Ask nothing else: each question whose answer rules nothing out, because one thing fits already or "
         f"all that fit are alike in it, takes {NEEDLESS} from the reward.", Narrows()),
)  # fmt: skip


# -- tools -----------------------------------------------------------------------------------------------


class FindArguments(Arguments):
    name: str = Field(description="the name that the user said")


class IdArguments(Arguments):
    id: str = Field(description="the number that find shows first")


def _find(world: World, arguments: FindArguments, turn: int) -> ToolResult:
    kind = world.tables["requests"]["request"].kind
    wanted = " ".join(arguments.name.lower().split())
    found = [(key, thing) for key, thing in world.rows(kind) if thing.name.lower() == wanted]
    if not found:
        return ToolResult("error: none of that name", Event(turn, "find", {"name": wanted}, ok=False))
    rows = [f"{key} {thing.name} {' '.join(thing.values.values())}" for key, thing in found]
    return ToolResult("; ".join(rows), Event(turn, "find", {"name": found[0][1].name}))


def _act(kind: str, world: World, arguments: IdArguments, turn: int) -> ToolResult:
    key, verb = arguments.id.strip(), KINDS[kind].verb
    thing = world.get(kind, key)
    if thing is None:
        return ToolResult("error: no such id", Event(turn, verb, {"id": key}, ok=False))
    world.put(kind, key, thing._replace(acted=True))
    return ToolResult(f"{KINDS[kind].past} {key}", Event(turn, verb, {"id": key, "name": thing.name}, write=True))


def _tools(name: str, kind: Kind) -> dict[str, Tool]:
    shown = f"Lists the {kind.noun}s of a name: number, name, {', '.join(kind.slots)}."
    act = f"Acts on one {kind.noun} ({kind.verb}); ends the conversation."
    return {
        "find": Tool("find", shown, FindArguments, _find),
        kind.verb: Tool(kind.verb, act, IdArguments, partial(_act, name), ends=True),
    }


TOOLS = {name: _tools(name, kind) for name, kind in KINDS.items()}


@dataclass(eq=False)
class Goal:
    """The thing that was meant is acted on, once one thing fits, and no question was needless.

    Attributes:
        name: The name that has to be looked up.
        target: The id of the thing that was meant.
        graded: The last log and its outcome: at the end both the grade and the reward are asked for.
    """

    name: str
    target: str
    graded: tuple[list[Event], Outcome] | None = None

    def __call__(self, world: World) -> Outcome:
        # The events are all that an episode's outcome depends on, in this world and in its forks.
        if self.graded is None or self.graded[0] != world.log:
            self.graded = (list(world.log), self._grade(world))
        return self.graded[1]

    def _grade(self, world: World) -> Outcome:
        fits, needless = readings(world, world.log)
        acted, reported = None, False
        for event in world.log:
            reported |= event.name == "done"
            if event.write and acted is None:
                acted = event.arguments["id"]
        met = {
            "a look-up": world.happened("find", name=self.name), "one reading": len(fits) == 1,
            "the right thing": acted == self.target, "no needless question": needless == 0,
            "no false report": not reported,  # the action ends the talk, so that nothing is ever reported
        }  # fmt: skip
        missing = tuple([name for name, done in met.items() if not done])
        if acted is None and not reported:
            steps = met["a look-up"] + met["one reading"]
            return Outcome(False, (1.0 - paid_for(needless)) * steps / 3, missing)
        right = not missing or missing == ("no needless question",)
        return Outcome(not missing, 1.0 - paid_for(needless) if right else 0.0, missing)

    def reward(self, world: World, start: int, ended: bool) -> dict[str, float]:
        """Pays at the end: 1 for the right thing, less what needless questions cost; never below 0."""
        if not ended:
            return {}
        outcome = self(world)
        right = not outcome.missing or outcome.missing == ("no needless question",)
        return {"right": float(right), "needless": outcome.score - 1.0 if right else 0.0}


def paid_for(needless: int) -> float:
    """Returns what a number of needless questions costs, at most everything."""
    return min(1.0, NEEDLESS * needless)


# -- the user --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Requester(AgendaUser):
    """Asks for one thing and tells more about it when asked; has never seen the list.

    Attributes:
        hints: Slots that the opening tells.
        slots: Slots that it can tell.
    """

    hints: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    volunteers: ClassVar[bool] = False  # what is told unasked would make the agent's next question a needless one

    def open(self, streams: Streams) -> Reply:
        """Says the request and the hints."""
        self.patience, self.pushes = self.persona.patience, self.persona.pushes
        return self.greet([Act(self.opening, {}), *[Act(f"inform_{slot}", {}) for slot in self.hints]], streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Answers what it was asked; to "which one", or "A or B", it says one thing that comes to its mind."""
        asked = [act.slots["slot"] for act in heard.acts if act.name == "request"]
        if not asked:
            return super().respond(heard, world, turn, streams)
        known = [slot for slot in asked if slot in self.slots]
        choice: Sequence[str] = known if any(act.name == "either" for act in heard.acts) else ()
        if not known and "which" in asked:
            choice = self.slots
        if choice:
            untold = [slot for slot in choice if slot not in self.told]
            known = [streams.stream("user", turn).pick(untold or choice)]
        acts = [act for act in heard.acts if act.name not in ("request", "either")]
        acts += [Act("request", {"slot": slot}) for slot in known or asked[:1]]
        return super().respond(Heard(tuple(acts), True), world, turn, streams)

    def _asked(self, slot: str, world: World, turn: int) -> None:
        super()._asked(slot, world, turn)
        if slot in self.slots:  # the value is what the grader narrows the readings by
            world.log[-1] = Event(turn, "told", {"slot": slot, "value": self.facts[slot]})


# -- what the user understands ---------------------------------------------------------------------------

DOMAIN = Domain(
    slots={
        "which": r"which|more (?:specific|precise|detail\w*|information)|clarify|specify|narrow|do you mean|"
        r"are you referring|exactly",  # only if nothing below is asked
        "city": r"city|town|where|location|based|office",
        "team": r"team|department|division",
        "company": r"company|firm|employer|work(?:s|ing)? (?:for|at)|organi[sz]ation",
        "month": r"month|when|date",
        "format": r"format|(?:file ?|what |which )type|kind of file|extension",
        "folder": r"folder|directory|where|stored|saved",
        "day": r"day|date|when|weekday",
        "time": r"(?:what|which) time|time|hour|starts?",
        "room": r"room|where|venue",
        "colour": r"colou?r",
        "size": r"size|how (?:big|large|small)",
        "material": r"material|made (?:of|from|out)|fabric",
    },
    verbs={
        "call": r"call|phone|ring|connect",
        "send": r"send|mail|share",
        "cancel": r"cancel|drop",
        "buy": r"buy|order|purchase",
    },
)
SLOT_OF = {value.lower(): slot for kind in KINDS.values() for slot, pool in kind.slots.items() for value in pool}
_VALUES = re.compile(rf"\b(?:{'|'.join(map(re.escape, SLOT_OF))})\b")
_NAMED = "|".join([slot for kind in KINDS.values() for slot in kind.slots])
_SLOTS = {slot: re.compile(rf"\b(?:{words})\b") for slot, words in DOMAIN.slots.items() if slot != "which"}
# A question that is only imagined would cost the agent dear: a mere "please" is not enough for one.
_QUESTION = re.compile(
    r"\?|\b(?:which|what|(?:tell|give) me|let me know|(?:need|like|have) to know|"
    rf"need (?:the|your) (?:{_NAMED})(?= ?(?:[,.!?]|or\b|and\b|$))|specify|clarify|do you mean|"
    r"(?:please|kindly) (?:say|state|confirm|provide|name|choose|pick)|(?:more|be) (?:specific|precise))\b"
)
_NEEDS = re.compile(r"\bneed\b|\b(?:like|have) to know\b")
_REPORT = re.compile(
    r"\b(?:i(?:'ve| have)|(?:has|have) been|is|was) (?:now |just |already |successfully )*"
    r"(?:called|phoned|connected|sent|mailed|shared|cancell?ed|dropped|bought|ordered|purchased)\b"
)


@lru_cache(maxsize=8_192)
def _listen(text: str) -> Heard:
    heard = understand(DOMAIN, text)
    low = " ".join(text.replace("’", "'").lower().split())
    if not _QUESTION.search(low):
        said = [act for act in heard.acts if act.name != "request"]
        if _REPORT.search(low) and all(act.name != "done" for act in said):
            said.append(Act("done", {"amount": ""}))
        return Heard(tuple(said), bool(said) or not low)
    asked = [act.slots["slot"] for act in heard.acts if act.name == "request" and act.slots["slot"] != "which"]
    which = any(act.slots.get("slot") == "which" for act in heard.acts)
    if not asked and not which:  # "I still need to know the city."
        asked = [slot for slot, words in _SLOTS.items() if words.search(low)] if _NEEDS.search(low) else []
    slots = asked or _offered(low) or (["which"] if which else [])
    if not slots:
        return heard
    # "Shall I call the one in Oslo?" asks about the city; the answer says yes or no to the call by itself.
    acts = tuple([act for act in heard.acts if act.name not in ("request", "confirm")])
    either = (Act("either", {}),) if len(slots) > 1 and _either(low, slots) else ()
    return Heard((*acts, *[Act("request", {"slot": slot}) for slot in slots], *either), True)


def _either(low: str, slots: Sequence[str]) -> bool:
    """Whether slots are named as alternatives: "the city, the team or the company" asks for one of them."""
    # The last place of each counts, since what was found comes before what is asked.
    spans = sorted({span for slot in slots for span in [found.span() for found in _SLOTS[slot].finditer(low)][-1:]})
    between = " ".join([low[end:start] for (_, end), (start, _) in pairwise(spans)])
    return re.search(r"\bor\b", between) is not None and re.search(r"\band\b", between) is None


def _offered(low: str) -> list[str]:
    """The slot whose values are offered for choice in a question; the one with most of them, if several are."""
    named: dict[str, set[str]] = {}
    for value in _VALUES.findall(low):
        named.setdefault(SLOT_OF[value], set()).add(value)
    return [max(named, key=lambda slot: len(named[slot]))] if named else []


def listen(text: str) -> Heard:
    """What a user understands of an agent message."""
    return _listen(text[:READ])


# -- the environment -------------------------------------------------------------------------------------


class Clarification(ConversationEnv):
    """A user asks for one of several things of the same name; the agent asks only if it is needed, then acts.

    Description:
        The user wants a contact called, a file sent, a meeting cancelled or a product bought, and says its name
        and perhaps more. The agent looks the name up. In 40 % of the episodes one thing fits what was said (the
        only one of its name, or the user's words single it out); otherwise 2 to 4 fit. The agent then asks for
        the slot in which they differ, and calls the tool with the number of the one that was meant.
    Observation:
        Text. At reset the instructions and the user's opening; then what the user or a tool says.
    Action:
        Text to the user, or one tool call.
    Tools:
        ``find(name)`` lists the things of a name: number, name, three values. ``call(id)``, ``send(id)``,
        ``cancel(id)`` or ``buy(id)``, whichever the episode is about, acts on one and ends.
    Reward:
        At the end: 1 if the thing that was meant is acted on after a look-up and once one thing fits what was
        said, less 0.75 for each needless question, never below 0. A question is needless if its answer rules
        nothing out: nothing was unclear, it was asked before, or the things do not differ in it. "A and B?" are
        two questions; "A or B?" is one, and the user picks which of the two it answers. An ambiguous
        request that is acted on unasked earns 0, even if the guess hits. ``info["success"]`` needs the full
        reward. ``info["cost"]`` counts broken rules, needless questions among them.
    Episode end:
        At the action, or when the user's patience is spent. Cut after 8 turns.
    Difficulty:
        Readings of an ambiguous request: 2; 2 or 3; 3; 3 or 4; 4. Where there are 3 some slots tell only some of
        them apart, where there are 4 two questions may be needed. Typing errors from 4 on.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` has new names; ``test_composition``
        holds ambiguous requests that turn on a slot that training never has to ask for.
    Audit:
        Resists acting unasked (a lucky guess does not count), asking always (at most 0.25 where nothing was
        unclear: who always asks, and the right thing, gets that beyond chance over the two classes, the ceiling),
        asking for everything (costs more than there is), acting on all (the first action ends).
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 8
    ceiling: ClassVar[float] = 1.0 - NEEDLESS  # one question, whether needed or not, and then the right act
    by_class: ClassVar[bool] = True
    canned_acts: ClassVar[tuple[str, ...]] = (
        "find", "ask_which", "ask_1", "ask_2", "ask_3", *[f"act_{i}" for i in range(1, MOST + 1)],
    )  # fmt: skip
    user_acts: ClassVar[tuple[str, ...]] = (
        *[kind.verb for kind in KINDS.values()], *[f"inform_{slot}" for kind in KINDS.values() for slot in kind.slots],
        "affirm", "deny", "unknown", "repeat", "nag", "not_yet", "why", "waiting", "leave",
    )  # fmt: skip

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws the things of one name, which is meant, and what the opening tells."""
        stream = streams.stream("scenario")
        clarity, way, name = _template(stream, template)
        kind = KINDS[name]
        drawn = _draw_list(stream, split, self.difficulty, name, way)
        told = tuple(drawn.hints)
        goal = Goal(drawn.name, drawn.target)
        user = Requester(
            wants=(Want(kind.verb, {"name": drawn.name}, kind.verb),), facts={"name": drawn.name, **drawn.meant},
            bank=load_bank("clarification", "user"), persona=draw_persona(streams, split), split=split,
            typos=(0.0, 0.0, 0.0, 0.05, 0.1)[self.difficulty - 1], opening=kind.verb, told=frozenset(told), hints=told,
            slots=tuple(kind.slots),
        )  # fmt: skip
        world = World({name: drawn.table, "requests": {"request": Request(name, drawn.fits)}})
        return Task(
            template=f"{clarity}/{way}-{name}", world=world, rules=RULES, tools=TOOLS[name], user=user,
            instructions=_instructions(name, self.style), understand=listen, judge=goal, turn_reward=goal.reward,
            canned=_canned(kind, drawn.name, drawn.table),
            privileged={
                "kind": name, "verb": kind.verb, "name": drawn.name, "target": drawn.target,
                "asks": drawn.telling if clarity == "ambiguous" else (),
            },
            secrets=tuple([value for slot, value in drawn.meant.items() if slot not in told]),
        )  # fmt: skip


class _Drawn(NamedTuple):
    """What :func:`_draw_list` draws."""

    name: str
    table: dict[str, Thing]
    target: str
    meant: dict[str, str]  # the target's values
    hints: tuple[str, ...]  # slots that the opening tells
    fits: tuple[str, ...]  # ids that fit the opening
    telling: tuple[str, ...]  # slots that tell those of one name apart


def _draw_list(stream: Stream, split: str, level: int, name: str, way: str) -> _Drawn:
    kind = KINDS[name]
    slots = _order(stream, kind, way in WAYS["ambiguous"], split == "test_composition")
    layout = _layout(stream, level, way)
    things = _things(stream, kind, slots, layout)
    at = stream.below(len(things))
    meant = things[at]
    telling = slots[: 2 if layout is GRID else 1]
    hints: tuple[str, ...] = telling if way == "told" else ()
    if way == "lone" and stream.random() < 0.5:
        hints = slots[:1]
    elif way == "hinted":
        hints = (slots[1 + stream.below(2)],)
        things += _others_without(stream, kind, hints[0], things)
    wanted, *others = stream.deal(values_of(kind.names, split), 1 + OTHER_NAMES)
    rows = [(wanted, values) for values in things]
    rows += [(other, {slot: stream.pick(pool) for slot, pool in kind.slots.items()}) for other in others]
    keys = [str(10 + n) for n in stream.distinct(90, len(rows))]
    table = {key: Thing(*row) for key, row in sorted(zip(keys, rows))}
    fits = list(zip(keys, things))
    for slot in hints:
        fits = [(key, values) for key, values in fits if values[slot] == meant[slot]]
    return _Drawn(wanted, table, keys[at], meant, hints, tuple([key for key, _ in fits]), telling)


def _template(stream: Stream, template: str | None) -> tuple[str, str, str]:
    if template is None:
        clarity = "clear" if stream.random() < CLEAR else "ambiguous"
        return clarity, stream.pick(WAYS[clarity]), stream.pick(tuple(KINDS))
    expect("scenario", template, TEMPLATES)
    clarity, _, rest = template.partition("/")
    way, _, name = rest.partition("-")
    return clarity, way, name


def _order(stream: Stream, kind: Kind, ambiguous: bool, first: bool) -> tuple[str, ...]:
    """Orders the slots by how much they tell: if ambiguous, a held-out one comes last, and first in its split."""
    if not ambiguous:
        return tuple(stream.deal(tuple(kind.slots), 3))
    others = stream.deal([slot for slot in kind.slots if slot != kind.held], 2)
    return (kind.held, *others) if first else (*others, kind.held)


def _layout(stream: Stream, level: int, way: str) -> Layout:
    layout = stream.pick(LAYOUTS[level - 1])
    count = 1 if way == "lone" else len(layout[0])
    if way in ("lone", "hinted"):  # a hint leaves all readings if they are alike in it
        return (tuple(range(count)), (0,) * count, (0,) * count)
    return layout


def _things(stream: Stream, kind: Kind, slots: Sequence[str], layout: Layout) -> list[dict[str, str]]:
    """Draws the values of the things of one name, in the kind's order of slots."""
    things: list[dict[str, str]] = [dict.fromkeys(kind.slots, "") for _ in layout[0]]
    for slot, pattern in zip(slots, layout):
        values = stream.deal(kind.slots[slot], pattern[-1] + 1)
        for thing, place in zip(things, pattern):
            thing[slot] = values[place]
    return things


def _others_without(
    stream: Stream, kind: Kind, hint: str, things: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
    """Draws at most one thing more of the name, which only the hint rules out."""
    if stream.random() < 0.5:
        return []
    other = stream.pick([value for value in kind.slots[hint] if value != things[0][hint]])
    return [{**stream.pick(things), hint: other}]


@lru_cache(maxsize=1_024)  # of 90 ids and 80 names
def _call(tool: str, key: str, value: str) -> str:
    return format_call(tool, {key: value})


def _canned(kind: Kind, name: str, table: Mapping[str, Thing]) -> tuple[str, ...]:
    """The messages of a discrete agent; actions on things that are not there are turned down."""
    keys = [key for key, thing in table.items() if thing.name == name]
    acts = [_call(kind.verb, "id", key) for key in (keys + ["0"] * MOST)[:MOST]]
    return (_call("find", "name", name), *_questions(tuple(kind.slots)), *acts)


@lru_cache(maxsize=8)
def _questions(slots: tuple[str, ...]) -> tuple[str, ...]:
    bank = load_bank("clarification", "agent")
    return tuple(bank[f"ask_{slot}"][0] for slot in ("which", *slots))


@lru_cache(maxsize=8)
def _instructions(name: str, style: str) -> str:
    kind, tools = KINDS[name], TOOLS[name]
    if style == "brief":
        told = f"{kind.verb.capitalize()} the right {kind.noun}. Each has {', '.join(kind.slots)}."
        return f"{told} {policy.render(RULES, style)} Tools: {describe(tools.values(), style)}"
    return (
        f"A user wants you to {kind.verb} one {kind.noun}. Several {kind.noun}s may share a name; they differ in "
        f"{', '.join(kind.slots)}. Find out which one the user means, and {kind.verb} it with the tool:\n"
        f"{policy.render(RULES, style)}\n\n"
        "Either speak to the user, or call one tool by writing "
        '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
        f"{describe(tools.values(), style)}"
    )

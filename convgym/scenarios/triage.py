"""Triage: a caller who may err about the signs of a fault, a list of who handles what, and dangers not to miss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

from pydantic import Field

from convgym import rules as policy
from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.language.understand import READ, Domain, understand
from convgym.rules import OnlyIf, Rule
from convgym.seeding import Stream, Streams
from convgym.tools import Arguments, Tool, ToolResult, describe, format_call
from convgym.types import Act, EndReason, Event, Heard, Outcome, Reply
from convgym.users.base import Speaker, draw_persona
from convgym.world import World

__all__ = ["EMERGENCY", "ROUTES", "SIGNS", "Caller", "Case", "Line", "Triage", "possible_routes"]

SIGNS = (
    "smoke", "heat", "sparking", "smell", "noise", "water", "flicker", "static", "rust", "beeping", "mould",
    "dust", "echo", "frost",
)  # fmt: skip
EMERGENCY = "emergency"
ROUTES = ("line", "router", "cabling", "billing", "advice", "sales")
HELD_SIGNS = ("noise", "water")  # mean danger only in test_composition
TRAINED = values_of(SIGNS, "train")
DANGERS = tuple(sign for sign in TRAINED if sign not in HELD_SIGNS)
NEW = values_of(SIGNS, "test_goal")

LINES = (2, 3, 3, 4, 4)  # of the list, the emergency's included
PAIRS = (0, 0, 1, 1, 2)  # lines that need two signs
ERRORS = (0.05, 0.15, 0.2, 0.25, 0.3)  # of an answer without a check
MOST_SIGNS, MOST_ROUTES = 6, 5


class Line(NamedTuple):
    """One line of the list: its route is right if all its signs are there and no earlier line fits."""

    signs: tuple[str, ...]
    route: str


class Case(NamedTuple):
    """What is wrong with a caller's connection.

    Attributes:
        lines: The list, the emergency first.
        otherwise: The route if no line fits.
        present: The signs that are there.
        mentioned: The sign that the opening tells, or "".
    """

    lines: tuple[Line, ...]
    otherwise: str
    present: tuple[str, ...]
    mentioned: str


def possible_routes(case: Case, known: Mapping[str, bool]) -> list[str]:
    """Returns the routes that may be right, in the order of the list, given some of the signs.

    >>> case = Case((Line(("smoke",), "emergency"), Line(("dust", "rust"), "line")), "advice", (), "")
    >>> possible_routes(case, {"smoke": False})
    ['line', 'advice']
    >>> possible_routes(case, {"smoke": False, "rust": False})
    ['advice']
    """
    routes = []
    for signs, route in case.lines:
        answers = [known.get(sign) for sign in signs]
        if False in answers:
            continue
        routes.append(route)
        if None not in answers:
            return routes
    return [*routes, case.otherwise]


def right_route(case: Case) -> str:
    """Returns the route of the first line whose signs are all there."""
    for signs, route in case.lines:
        if all(sign in case.present for sign in signs):
            return route
    return case.otherwise


def heard(case: Case, events: Sequence[Event]) -> dict[str, bool]:
    """Returns what the caller said about signs, the latest answer of each."""
    said = {case.mentioned: True} if case.mentioned else {}
    for event in events:
        if event.name == "told":
            said[event.arguments["slot"]] = event.arguments["value"] == "yes"
    return said


def truth(case: Case, said: Mapping[str, bool]) -> dict[str, bool]:
    """Returns the truth about the signs of which something was said."""
    return {sign: sign in case.present for sign in said}


# -- policy ----------------------------------------------------------------------------------------------

ROUTED = frozenset({"route"})


def _case(world: World) -> Case:
    case = world.tables["cases"]["case"]
    assert isinstance(case, Case)
    return case


def _no_danger_missed(world: World, event: Event) -> bool:
    return event.arguments["to"] == EMERGENCY or right_route(_case(world)) != EMERGENCY


def _no_false_alarm(world: World, event: Event) -> bool:
    return event.arguments["to"] != EMERGENCY or right_route(_case(world)) == EMERGENCY


def settled(case: Case, events: Sequence[Event]) -> set[str]:
    """Returns the routes that are the only one left: by what the caller said, and by the truth about the same signs.

    The two differ where the caller erred. Both count: who believes what it hears has asked enough, and so has
    who sees through an error.
    """
    said = heard(case, events)
    left = (possible_routes(case, said), possible_routes(case, truth(case, said)))
    return {routes[0] for routes in left if len(routes) == 1}


@dataclass(frozen=True)
class Settled:
    """A route needs questions that leave no other: a guess is luck."""

    names: frozenset[str] = ROUTED

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        return not event.ok or bool(settled(_case(world), earlier))


RULES = (
    Rule("ask", "Ask until one fits.",
         "Ask about signs until only one route can be right: a guess does not count.", Settled()),
    Rule("danger", "Never miss an emergency.",
         "Never send an emergency elsewhere; that is the worst mistake and counts double.",
         OnlyIf(ROUTED, _no_danger_missed)),
    Rule("alarm", "No false alarms.",
         "Do not send anything else to emergency.", OnlyIf(ROUTED, _no_false_alarm)),
)  # fmt: skip
GRADED = (*RULES, RULES[1])  # a missed emergency costs twice what a false alarm does

# -- tools -----------------------------------------------------------------------------------------------


class RouteArguments(Arguments):
    to: str = Field(description="a route of the list")


def _route(world: World, arguments: RouteArguments, turn: int) -> ToolResult:
    to, case = arguments.to.strip().lower(), _case(world)
    routes = [*[line.route for line in case.lines], case.otherwise]
    if to not in routes:
        return ToolResult(f"error: routes are {', '.join(routes)}", Event(turn, "route", {"to": to}, ok=False))
    return ToolResult(f"routed to {to}", Event(turn, "route", {"to": to}, write=True))


TOOLS = {"route": Tool("route", "Sends the case on; ends the conversation.", RouteArguments, _route, ends=True)}


def judge(world: World) -> Outcome:
    """Whether the case went where it belongs, on answers and not on a guess, without a false report."""
    case = _case(world)
    if any(event.name == "done" for event in world.log):  # nothing is repaired in this talk
        return Outcome(False, 0.0, ("no false report",))
    routed = next((event.arguments["to"] for event in world.log if event.write), None)
    if routed is None:
        left = possible_routes(case, truth(case, heard(case, world.log)))
        return Outcome(False, 0.5 / len(left), ("route",))
    # A right route keeps the rules on emergencies, and one that is the only one left is no guess.
    met = {"the right route": routed == right_route(case), "asked enough": routed in settled(case, world.log)}
    missing = tuple([name for name, done in met.items() if not done])
    return Outcome(not missing, 0.0 if missing else 1.0, missing)


# -- the user --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Caller(Speaker):
    """Answers about one sign at a time, errs now and then, and has little time.

    Each message costs a unit of patience and a check two: the caller walks over and looks, and is then right.

    Attributes:
        case: What is wrong.
        error: Probability of a wrong answer without a check, drawn anew for each turn and sign.
        patience: Units left.
        last: The sign that was asked about last, or "".
    """

    case: Case
    error: float
    patience: int
    last: str = ""

    def key(self) -> str:
        """Describes the state that its next answer depends on."""
        return f"{self.patience}|{self.last}"

    def open(self, streams: Streams) -> Reply:
        """Says that something is wrong, and perhaps one sign."""
        mention = [Act("mention", {"sign": self.case.mentioned})] if self.case.mentioned else []
        return self.greet([Act("problem", {}), *mention], streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Answers a question; leaves when its patience is spent."""
        asked = [act for act in heard.acts if act.name in ("request", "check")]
        act = asked[0] if len(asked) == 1 else None
        checks = act is not None and act.name == "check"
        self.patience -= 2 if checks else 1
        if self.patience < 0:
            return self.say([Act("leave", {})], turn, streams, EndReason.ABANDONED)
        if act is None:
            return self.say([Act(_reply(heard, len(asked)), {})], turn, streams)
        sign = act.slots["slot"] or self.last
        if not sign:
            return self.say([Act("repeat", {})], turn, streams)
        self.last = sign
        answer = (sign in self.case.present) ^ (not checks and self._errs(sign, turn, streams))
        world.log.append(Event(turn, "told", {"slot": sign, "value": "yes" if answer else "no"}))
        said = f"{'checked_' if checks else ''}{'has' if answer else 'lacks'}"
        return self.say([Act(said, {"sign": sign})], turn, streams)

    def _errs(self, sign: str, turn: int, streams: Streams) -> bool:
        """Whether an answer about a sign at a turn is wrong, whatever else was or will be asked."""
        # One draw a turn, moved around the circle by the sign: for each sign it is uniform on [0, 1).
        return (streams.stream("user", turn).random() + TURNED[sign]) % 1.0 < self.error


TURNED = {sign: place / len(SIGNS) for place, sign in enumerate(SIGNS)}


def _reply(heard: Heard, asked: int) -> str:
    if asked > 1:
        return "one_at_a_time"
    if not heard.understood:
        return "repeat"
    names = {act.name for act in heard.acts}
    for name, key in (("refuse", "push"), ("done", "not_yet"), ("promise", "waiting")):
        if name in names:
            return key
    return "nag"


# -- what the caller understands -------------------------------------------------------------------------

DOMAIN = Domain(
    slots={
        "smoke": r"smok\w+",
        "heat": r"heat\w*|hot|warm|overheat\w*",
        "sparking": r"spark\w*|arcing",
        "smell": r"smell\w*|odou?rs?|scent",
        "noise": r"nois\w+|humm?(?:ing)?|buzz\w*",
        "water": r"water|wet|moist\w*|damp\w*|leak\w*",
        "flicker": r"flicker\w*|blink\w*|flash\w*",
        "static": r"static|crackl\w+|hiss\w*",
        "rust": r"rust\w*|corro\w+",
        "beeping": r"beep\w*|bleep\w*",
        "mould": r"mou?ld\w*|fungus",
        "dust": r"dust\w*|dirt\w*",
        "echo": r"echo\w*",
        "frost": r"frost\w*|ice|icy|frozen",
    },
)
_CHECK = re.compile(
    r"\b(?:(?:double|re)-?check|(?<!let me )(?<!i'll )(?<!i will )check|look (?:again|closely|once more)|make sure|"
    r"(?:go and|go|have a|take a(?:nother)?) (?:closer )?look|are you (?:absolutely |quite )?(?:sure|certain)|"
    r"verify|inspect|confirm)\b"
)

_WORDS = {sign: re.compile(rf"\b(?:{words})\b") for sign, words in DOMAIN.slots.items()}
_SENTENCE = re.compile(r"[^.!?;]+[.!?;]?")
_TELL = re.compile(rf"{_CHECK.pattern}|\b(?:tell me|let me know|look for|see (?:if|whether)|say (?:if|whether))\b")
_ASKED_DONE = re.compile(r"\b(?:done|all set|taken care|\w+ed)\b(?=[^.!?]*\?)", re.IGNORECASE)


@lru_cache(maxsize=8_192)
def _listen(text: str) -> Heard:
    acts = understand(DOMAIN, text).acts
    if "?" in text and any(act.name == "done" for act in acts):  # "Has it been updated?" reports nothing
        acts = understand(DOMAIN, _ASKED_DONE.sub("?", text)).acts
    low = " ".join(text.replace("’", "'").lower().split())
    questions = " ".join([each for each in _SENTENCE.findall(low) if each.endswith("?") or _TELL.search(each)])
    if any(words.search(questions) for words in _WORDS.values()):
        # What is said around a question ("No smoke then.") asks for nothing.
        acts = tuple([a for a in acts if a.name != "request" or _WORDS[a.slots["slot"]].search(questions)])
    asked = [act for act in acts if act.name == "request"]
    if _CHECK.search(low) and (asked or not acts):
        slots = [act.slots["slot"] for act in asked] or [sign for sign, words in _WORDS.items() if words.search(low)]
        slots = slots or [""]  # "Are you sure?" is about the sign asked last
        rest = [act for act in acts if act.name != "request"]
        acts = (*rest, *[Act("check", {"slot": slot}) for slot in slots])
    return Heard(acts, bool(acts) or not low)


def listen(text: str) -> Heard:
    """What a caller understands of an agent message."""
    return _listen(text[:READ])


# -- the environment -------------------------------------------------------------------------------------


class Triage(ConversationEnv):
    """A caller's connection has a fault; the agent asks about its signs and sends the case where it belongs.

    Description:
        The instructions hold a list that varies with the seed: signs, and who handles a case that shows them.
        The first line that fits counts, and the first line is the emergency's. The agent asks the caller about
        one sign at a time. Answers may be wrong, anew at each question; a sign that the caller is asked to
        check is told right, but a check takes twice the caller's patience. Each line of the list, and the
        route for the rest, is right equally often: the emergency is right for a minority.
    Observation:
        Text. At reset the instructions and the caller's opening; then what the caller says.
    Action:
        Text to the caller, or the tool call ``route``.
    Tools:
        ``route(to)`` sends the case on and ends.
    Reward:
        1 at the end for the right route, if it is the only one left, by what the caller said or by the truth
        about the same signs; otherwise 0: a caller's error is no excuse for a wrong route. ``info["cost"]`` is
        asymmetric: 2 for a missed emergency, 1 for a false alarm, and 1 more for routing before one is left.

        A return of 1.00 takes knowing which answers are wrong, as the oracle does. Of the scripts that were tried
        and know only what is said, the best checks the first two signs and believes the rest: 1.00, .94, .89,
        .76, .68 by difficulty. Believing everything gets .92, .70, .68, .51, .43 and checking everything 1.00,
        .90, .85, .70, .62. The optimum for somebody who cannot look behind the answers lies between the best
        of these and 1; it is not computed, and figures are shares of 1.
    Episode end:
        At the routing, or when the caller's patience is spent: the questions that reading the list in order
        takes, and 2 to 4 more. Cut after 14 turns.
    Difficulty:
        Lines 2, 3, 3, 4, 4, of which 0, 0, 1, 1, 2 need two signs; wrong answers 5, 15, 20, 25, 30 %. Typing
        errors from 4 on.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` has new signs; in ``test_composition``
        the emergency shows signs that mean something else in training.
    Audit:
        Resists routing everything to emergency or anywhere else (fails in all other classes, and unasked
        everywhere), guessing, asking about everything in one message (one thing at a time) or one by one
        (patience), and trying one route after the other (the first ends).
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 14
    by_class: ClassVar[bool] = True
    canned_acts: ClassVar[tuple[str, ...]] = (
        *[f"ask_{i}" for i in range(1, MOST_SIGNS + 1)], *[f"check_{i}" for i in range(1, MOST_SIGNS + 1)],
        *[f"route_{i}" for i in range(1, MOST_ROUTES + 1)],
    )  # fmt: skip
    user_acts: ClassVar[tuple[str, ...]] = (
        "problem", "mention", "has", "lacks", "checked_has", "checked_lacks", "one_at_a_time", "repeat", "push",
        "not_yet", "waiting", "nag", "leave",
    )  # fmt: skip

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws a list, which of its lines is right, and the signs that are there."""
        stream = streams.stream("scenario")
        level = self.difficulty
        kinds = _kinds(LINES[level - 1])
        if template is not None:
            expect("scenario", template, kinds)
        kind = template or stream.pick(kinds)
        lines, otherwise = _list(stream, split, LINES[level - 1], PAIRS[level - 1])
        present = _present(stream, lines, kinds.index(kind))
        mentioned = stream.pick(present) if present and stream.random() < 1 / 3 else ""
        case = Case(lines, otherwise, present, mentioned)
        walk = questions(case)
        persona = draw_persona(streams, split)
        user = Caller(
            bank=load_bank("triage", "user"), persona=persona, split=split, case=case, facts=FACTS,
            typos=(0.0, 0.0, 0.0, 0.05, 0.1)[level - 1], error=ERRORS[level - 1],
            patience=len(walk) + persona.patience - 1,
        )  # fmt: skip
        return Task(
            template=kind, world=World({"cases": {"case": case}}), rules=GRADED, tools=TOOLS, user=user,
            instructions=_instructions(lines, otherwise, self.style), understand=listen, judge=judge,
            canned=_canned(lines, otherwise),
            privileged={
                "lines": lines, "otherwise": otherwise, "present": present, "asks": walk,
                "route": right_route(case), "mentioned": mentioned,
            },
            secrets=tuple([sign for sign in present if sign != mentioned]),
        )  # fmt: skip


FACTS = {sign: sign for sign in SIGNS}  # typed with care


@lru_cache(maxsize=8)
def _kinds(lines: int) -> tuple[str, ...]:
    """Names the templates: the class of the right route, and its line in the list."""
    return (f"{EMERGENCY}/1", *[f"listed/{i}" for i in range(2, lines + 1)], f"otherwise/{lines + 1}")


def _list(stream: Stream, split: Split, count: int, pairs: int) -> tuple[tuple[Line, ...], str]:
    """Draws the lines: signs that are all different, routes that are all different, the emergency first."""
    danger = stream.deal(HELD_SIGNS if split == "test_composition" else DANGERS, 2)
    others = stream.deal([s for s in TRAINED if s not in danger], count + pairs)
    if split == "test_goal":  # a new sign in the emergency's line and one in another
        new = stream.deal(NEW, len(NEW))
        danger[0], others[0] = new[0], new[1]
    double = frozenset(stream.deal(range(count), pairs))
    routes = (EMERGENCY, *stream.deal(ROUTES, count))
    signs = [tuple(danger[: 1 + (0 in double)])]
    for i in range(1, count):
        signs.append(tuple([others.pop() for _ in range(1 + (i in double))]))
    return tuple([Line(*each) for each in zip(signs, routes)]), routes[count]


def _present(stream: Stream, lines: Sequence[Line], right: int) -> tuple[str, ...]:
    """Draws signs such that the line with the index ``right`` is the first that fits."""
    present = []
    for i, (signs, _) in enumerate(lines):
        missing = stream.pick(signs) if i < right else ""
        for sign in signs:
            if i == right or (sign != missing and stream.random() < 0.5):
                present.append(sign)
    return tuple(present)


def questions(case: Case) -> tuple[str, ...]:
    """Returns the signs that somebody asks about who reads the list in order and hears only the truth."""
    asked = []
    for signs, _ in case.lines:
        for sign in signs:
            if sign != case.mentioned:
                asked.append(sign)
            if sign not in case.present:
                break
        else:
            break
    return tuple(asked)


@lru_cache(maxsize=1_024)
def _say(key: str, sign: str) -> str:
    return load_bank("triage", "agent")[key][0].replace("{sign}", sign)


@lru_cache(maxsize=64)
def _call(route: str) -> str:
    return format_call("route", {"to": route})


def _canned(lines: Sequence[Line], otherwise: str) -> tuple[str, ...]:
    """The messages of a discrete agent; where the list is shorter, the last sign and route stand again."""
    signs = [sign for line in lines for sign in line.signs]
    signs += signs[-1:] * (MOST_SIGNS - len(signs))
    routes = [line.route for line in lines]
    routes += [otherwise] * (MOST_ROUTES - len(routes))
    return (*[_say("ask", s) for s in signs], *[_say("check", s) for s in signs], *[_call(r) for r in routes])


def _instructions(lines: Sequence[Line], otherwise: str, style: str) -> str:
    shown = " ".join([f"{' and '.join(signs)}: {route}." for signs, route in lines])
    head, tail = _frame(style)
    return f"{head}{shown} Else: {otherwise}.{tail}"


@lru_cache(maxsize=2)
def _frame(style: str) -> tuple[str, str]:
    """What stands before and after the list."""
    rules, tools = policy.render(RULES, style), describe(TOOLS.values(), style)
    if style == "brief":
        return "First fit counts. ", f" {rules} Callers err. Checks never err but cost patience. Tools: {tools}"
    return (
        "You take calls about faulty internet connections and send each case to those who handle it. Ask the caller "
        "about one sign at a time. The first line of this list whose signs are all there counts:\n",
        "\nCallers err now and then. If you ask them to check for a sign they are right, but that takes more of "
        f"their patience.\n{rules}\n\n"
        "Either speak to the caller, or call the tool by writing "
        '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
        f"{tools}",
    )

"""SlotFilling: a booking form, filled by asking, with users who correct themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from pydantic import Field, create_model

from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.language.understand import Domain, understand
from convgym.seeding import Stream, Streams
from convgym.tools import Arguments, Tool, ToolResult, canonical_number, describe
from convgym.types import Act, Event, Heard, Outcome, Reply
from convgym.users.agenda import AgendaUser, Want, draw_persona
from convgym.world import World

__all__ = ["SLOTS", "BookingUser", "Form", "SlotFilling"]

SLOTS: dict[str, tuple[str, ...]] = {
    "people": ("2", "3", "4", "5", "6", "7", "8", "9"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "time": tuple(f"{hour}:{minute}" for hour in range(17, 23) for minute in ("00", "15", "30", "45")),
    "name": ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo",
             "Mia", "Ned", "Olga", "Paul", "Rosa", "Sven", "Tom", "Uma"),
    "city": ("Oslo", "Rome", "Lyon", "Bonn", "Cork", "Graz", "Kyiv", "Lima", "Basel", "Ghent", "Quito", "Leeds"),
    "seat": ("terrace", "window", "bar", "garden"),
    "food": ("vegan", "halal", "kosher", "vegetarian", "regular"),
    "phone": (),  # four digits
}
NAMED = frozenset({"name", "city", "time"})  # slots with values enough to hold some out
ORDER = {slot: place for place, slot in enumerate(SLOTS)}
ALPHABETICAL = sorted(SLOTS)
KINDS = ("corrections-0", "corrections-1", "corrections-2", "corrections-3")  # the templates
DOMAIN = Domain(
    slots={
        "people": r"how many|(?:number|size) of (?:people|guests|the party)|party size|guests|persons|people|"
        r"how (?:big|large)|"
        r"(?:two|bringing|both|just you|and others|of you)|head ?count|diners",
        "day": r"(?:which|what) (?:day|date|evening|night)|day|date|when|weekday|"
        r"(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday) or",
        "time": r"what time|which time|time|when|hour|how (?:late|early)|o'clock|\d\d:\d\d,? (?:and|"
        r"or) \d\d:\d\d|slots at",
        "name": r"name|who (?:should|shall|is|am i|do i)|who's|(?:and )?you are(?=\?)|whose|under (?:what|which|whom)",
        "city": r"city|town|location|restaurants?|which (?:one|place|branch|of our)|branch(?:es)?|"
        r"where(?! would you like to (?:sit|be seated))",
        "seat": r"seat\w*|sit|(?:inside|indoors?|outside|outdoors?) or (?:inside|indoors?|outside|outdoors?)|"
        r"terrace|garden|window|"
        r"booth|by the|at the bar|which (?:area|part|table)|table's location|where would|kind of table",
        "food": r"food\w*|diet|dietary|kitchen|cuisine|eat|allerg\w+|intoleran\w+|vegetarians?|vegans?|menus?|"
        r"meals?|dishes|veggie|halal|kosher",
        "phone": r"phone|telephone|mobile|contact number|cell|(?:which|what|a|best) number|(?:call|reach|ring|"
        r"text|contact) you",
    },
    verbs={
        "submit": r"book\w*|submit|reserv\w*|confirm\w*|correct|right|table|everything|this|that|all good|summary"
    },
)

SubmitArguments = create_model(
    "SubmitArguments",
    __base__=Arguments,
    **{slot: (str | None, Field(default=None, description=f"the {slot} of the booking")) for slot in SLOTS},  # type: ignore[call-overload]
)


def _submit(world: World, arguments: Arguments, turn: int) -> ToolResult:
    form = {slot: canonical(slot, str(value)) for slot, value in arguments.model_dump(exclude_none=True).items()}
    event = Event(turn, "submit", form, write=True)
    world.put("forms", "form", form)  # type: ignore[arg-type]
    return ToolResult("submitted", event)


TOOLS = {
    "submit": Tool(
        "submit", "Hands in the booking form; ends the conversation.", SubmitArguments, _submit, ends=True
    )
}


_NUMBER_WORDS = dict(zip(("two", "three", "four", "five", "six", "seven", "eight", "nine"), "23456789"))
_CLOCK = re.compile(r"(\d{1,2})(?:[:.h](\d{2}))? ?(?:([ap])\.?m\.?|o'clock)?")
_FILLERS = frozenset(
    "the a an at in by on for of under near is only please party seat seats table food people guests persons".split()  # noqa: SIM905
)


@lru_cache(maxsize=4_096)  # of at most 200 characters each, see Arguments
def canonical(slot: str, value: str) -> str:
    """Brings a form value into the form in which values are compared.

    >>> canonical("time", "7:30 pm"), canonical("people", "four people"), canonical("day", "Fri")
    ('19:30', '4', 'friday')
    """
    text = " ".join(value.lower().split())
    if slot == "time" and (found := _CLOCK.fullmatch(text)):
        hour, minute, half = int(found[1]), found[2] or "00", found[3]
        return f"{hour % 12 + 12 * (half == 'p') if half else hour}:{minute}"
    words = [_NUMBER_WORDS.get(word, word) for word in text.rstrip(".").split() if word not in _FILLERS]
    text = " ".join(words)
    if slot == "day" and len(text) >= 3:
        return next((day.lower() for day in SLOTS["day"] if day.lower().startswith(text)), text)
    return canonical_number(text) or text


@dataclass(frozen=True)
class Form:
    """The goal: the form with its latest values.

    Attributes:
        truth: ``{slot: canonical value}``, corrections included.
        asked: Slots that the user does not volunteer.
    """

    truth: Mapping[str, str]
    asked: tuple[str, ...]

    def __call__(self, world: World) -> Outcome:
        submitted = next((event.arguments for event in world.log if event.name == "submit"), None)
        told = {event.arguments["slot"] for event in world.log if event.name == "told"}
        met = {f"told {slot}": slot in told for slot in self.asked}
        for slot, value in self.truth.items():
            met[f"submitted {slot}"] = submitted is not None and submitted.get(slot) == value
        missing = tuple(name for name, done in met.items() if not done)
        exact = submitted is not None and dict(submitted) == dict(self.truth)
        if submitted is not None and submitted.keys() - self.truth.keys():
            return Outcome(False, 0.0, (*missing, "a slot that is not in the form"))
        if exact:
            return Outcome(True, 1.0)
        return Outcome(False, (1.0 - len(missing) / len(met)) * (len(met) - 1) / len(met), missing)


@dataclass(kw_only=True)
class BookingUser(AgendaUser):
    """Tells slots when asked, and corrects itself.

    Attributes:
        corrections: ``(after, slot, value)``: once ``after`` slots and this one are told, the value changes.
        form: The slots of the form.
    """

    corrections: tuple[tuple[int, str, str], ...] = ()
    form: tuple[str, ...] = ()

    def open(self, streams: Streams) -> Reply:
        """Says what it wants and the slots that it volunteers."""
        first = super().open(streams)
        volunteered = [Act(f"inform_{slot}", {}) for slot in self.form if slot in self.told]
        if not volunteered:
            return first
        return Reply(f"{first.text} {self.say(volunteered, -2, streams).text}", first.acts)

    def _asked(self, slot: str, world: World, turn: int) -> None:
        super()._asked(slot, world, turn)
        told = self.told & set(self.form)
        for correction in self.corrections:
            after, corrected, value = correction
            if corrected in told and len(told) >= min(after, len(self.form)):
                self.facts = {**self.facts, f"old_{corrected}": self.facts[corrected], corrected: value}
                # The answer still holds the old value where the slot that was asked is the one corrected.
                self.agenda = [self._with_old(act, corrected) for act in self.agenda]
                self.agenda.append(Act(f"correct_{corrected}", {corrected: value}))
                self.corrections = tuple(other for other in self.corrections if other != correction)

    def _with_old(self, act: Act, slot: str) -> Act:
        return (
            Act(act.name, {slot: self.facts[f"old_{slot}"], **act.slots})
            if act.name == f"inform_{slot}"
            else act
        )


def listen(text: str) -> Heard:
    """What a guest understands of an agent message."""
    return understand(DOMAIN, text)


class SlotFilling(ConversationEnv):
    """A guest books a table; the agent asks for what is missing and hands in the form with the latest values.

    Description:
        The instructions name the slots of a booking form. The guest volunteers some of them, tells the others
        when asked, and may correct a value later. The agent submits the form once.
    Observation:
        Text. At reset the instructions and the guest's opening; then what the guest says.
    Action:
        Text to the guest, or the tool call ``submit``.
    Tools:
        ``submit(people, day, time, name, city, seat, food, phone)``, of which the form names 3 to 8.
    Reward:
        1 at the end if the submitted form is exactly the guest's, latest values, no slot more or less.
        Otherwise 0.
    Episode end:
        At submission, or when the guest's patience is spent (being asked twice costs some). Cut after ``2 + 2
        x slots`` turns at most 18.
    Difficulty:
        Slots 3, 4, 5, 6, 8; corrections at most 1, 1, 2, 2, 3.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` has names, cities and times that
        training never meets; in ``test_composition`` the guest corrects a correction.
    Audit:
        Resists submitting early (unknown values), guessing and asking again and again (patience).
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 18

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws a form, its values, what is volunteered and what is corrected."""
        stream = streams.stream("scenario")
        level = self.difficulty
        count = (3, 4, 5, 6, 8)[level - 1]
        form = tuple(sorted(stream.deal(ALPHABETICAL, count), key=ORDER.__getitem__))
        values = {slot: _value(stream, slot, split) for slot in form}
        twice = split == "test_composition"
        kinds = KINDS[twice : (2, 2, 3, 3, 4)[level - 1]]
        if template is not None:
            expect("scenario", template, kinds)
        kind = template or stream.pick(kinds)
        corrected = stream.deal(form, KINDS.index(kind))
        corrections = [
            (stream.between(2, count), slot, _value(stream, slot, split, values[slot])) for slot in corrected
        ]
        if twice:  # and then the last correction is corrected
            after, slot, value = corrections[-1]
            corrections.append((stream.between(after, count), slot, _value(stream, slot, split, value)))
        volunteered = frozenset([slot for slot in form if stream.random() < 0.25])
        volunteered = frozenset() if len(volunteered) == count else volunteered
        final = values | {slot: value for _, slot, value in corrections}
        user = BookingUser(
            wants=(Want("submit", {}, "book"),), facts=values, bank=load_bank("slot_filling", "user"),
            persona=draw_persona(streams, split), split=split, typos=(0.0, 0.0, 0.0, 0.05, 0.1)[level - 1],
            opening="book", told=volunteered, corrections=tuple(corrections), form=form,
        )  # fmt: skip
        goal = Form(
            {slot: canonical(slot, value) for slot, value in final.items()},
            tuple([s for s in form if s not in volunteered]),
        )
        return Task(
            template=kind, world=World({"forms": {}}), rules=(), tools=TOOLS, user=user,
            instructions=_instructions(form, self.style), understand=listen, judge=goal,
            privileged={
                "form": form, "truth": final, "volunteered": tuple([s for s in form if s in volunteered]),
            },
            secrets=tuple([final[s] for s in form if s not in volunteered or final[s] != values[s]]),
        )  # fmt: skip


def _value(stream: Stream, slot: str, split: str, other_than: str = "") -> str:
    if slot == "phone":
        return str(stream.between(1_000, 9_999))
    pool = values_of(SLOTS[slot], split) if slot in NAMED else SLOTS[slot]
    return stream.pick([value for value in pool if value != other_than])


@lru_cache(maxsize=512)  # 3, 4, 5, 6 or 8 of eight slots: 211 forms, in two styles
def _instructions(form: tuple[str, ...], style: str) -> str:
    if style == "brief":
        return f"Booking form: {', '.join(form)}. Ask, then submit the latest."
    return (
        "You take bookings for a restaurant. Find out these slots from the guest: "
        f"{', '.join(form)}. If the guest corrects a value, the latest counts. When you know them all, "
        "submit the form once, with exactly these slots and the values as the guest said them "
        "(times as 19:30).\n\n"
        "Either speak to the guest, or call the tool by writing "
        '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
        f"{describe(TOOLS.values(), style)}"
    )

"""LongMemory: facts told at the beginning, talk about other things, and a question that only memory answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.language.understand import READ, Domain, understand
from convgym.seeding import Stream, Streams
from convgym.types import Act, EndReason, Event, Heard, Outcome, Reply
from convgym.users.base import Speaker, draw_persona
from convgym.world import World

__all__ = ["KINDS", "SUBJECTS", "LongMemory", "Recalled", "Teller", "candidates"]

SUBJECTS: dict[str, tuple[str, ...]] = {
    # kind of fact: what there may be one of
    "code": ("locker", "door", "bicycle", "safe", "garage", "gym", "office", "mailbox"),
    "seat": ("train", "plane", "cinema", "bus", "opera", "ferry", "circus", "stadium"),
    "date": ("dentist", "party", "exam", "trip", "wedding", "concert", "interview", "match"),
    "pet": ("cat", "dog", "parrot", "rabbit", "hamster", "pony", "turtle", "goldfish"),
    "word": ("laptop", "tablet", "router", "club", "bank", "library", "printer", "server"),
}
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
LETTERS = ("A", "B", "C", "D", "E", "F", "G", "H")
PETS = (
    "Miso", "Biscuit", "Nemo", "Waffle", "Pixel", "Ziggy", "Mocha", "Rufus", "Luna", "Bella", "Simba", "Felix",
    "Toffee", "Bruno", "Coco", "Otto", "Kiwi", "Nala", "Gizmo", "Dexter", "Olive", "Tango", "Zorro", "Hugo",
    "Rocky", "Daisy", "Fluffy", "Milo", "Oscar", "Pluto", "Snoopy", "Tintin", "Balu", "Fido", "Garfield", "Hobbes",
    "Jasper", "Kira", "Loki", "Maja", "Nero", "Odin", "Pancho", "Quincy", "Rambo", "Sushi", "Thor", "Yoda",
)  # fmt: skip
WORDS = (
    "walrus", "lantern", "cobalt", "pepper", "granite", "violin", "cactus", "magnet", "pumpkin", "anchor", "velvet",
    "comet", "saddle", "walnut", "puzzle", "glacier", "trumpet", "basil", "falcon", "marble", "ribbon", "thunder",
    "candle", "orchid", "badger", "copper", "lemon", "pirate", "quartz", "turnip", "wizard", "zebra", "almond",
    "banjo", "cinnamon", "dolphin", "emerald", "feather", "ginger", "hammock", "igloo", "jungle", "kayak", "lobster",
    "muffin", "nutmeg", "oyster", "pelican",
)  # fmt: skip
KINDS = tuple(f"{kind}/{what}" for kind in SUBJECTS for what in ("plain", "corrected"))
HELD_OUT = "seat/corrected"  # met in test_composition, and nowhere else

FACTS = ((1, 5), (1, 5), (2, 4), (2, 5), (3, 4))
"""Kinds of facts and facts of each, by difficulty: always four or five between which a guess must choose."""
CORRECTIONS = (0, 1, 1, 2, 3)
CHATS = (0, 1, 4, 6, 9)
QUESTIONS = (2, 2, 2, 3, 3)

DOMAIN = Domain(slots={})
_TALK = re.compile(  # whoever uses common words is understood: what is said between the questions does not matter
    r"\b(?:i|you|your|my|me|we|it|it's|is|are|was|be|the|a|an|and|or|to|of|in|on|for|that|this|not|no|don't|do|will|"
    r"have|"
    r"has|can|know|remember|noted|note|got|okay|ok|yes|sure|right|fine|good|great|nice|understood|indeed|thanks|"
    r"please)\b"
)

# -- values in words -----------------------------------------------------------------------------------------

_MONTH = "|".join(month.lower() for month in MONTHS)
_CODE = re.compile(r"(?<![\w.,-])\d(?:[ ,.-]?\d){3}(?![\w-]|[.,]\d)")
_SEAT = re.compile(r"\brow (\d{1,2}),? (?:and )?seat ([a-h])\b|\b(?:seat )?(\d{1,2})-?([a-h])\b")
_SPACED_SEAT = re.compile(r"\b(\d{1,2}) ([A-H])\b")
_DATE = re.compile(
    rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})\b|\b({_MONTH}) (?:the )?(\d{{1,2}})(?:st|nd|rd|th)?\b"
)
_PET = re.compile(rf"\b(?:{'|'.join(PETS).lower()})\b")
_WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b")


def candidates(text: str) -> frozenset[tuple[str, str]]:
    """Finds every value of any kind in a text, in canonical form.

    >>> sorted(candidates("Your seat is 14 C, and the party is on May 3rd."))
    [('date', '3 may'), ('seat', '14c')]
    """
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    low = text.lower()
    found = {("pet", name) for name in _PET.findall(low)} | {("word", word) for word in _WORD.findall(low)}
    found |= {("code", re.sub(r"\D", "", code)) for code in _CODE.findall(low)}
    seats = [(a or c, b or d) for a, b, c, d in _SEAT.findall(low)] + _SPACED_SEAT.findall(text)
    found |= {("seat", f"{int(row)}{letter.lower()}") for row, letter in seats}
    found |= {("date", f"{int(a or d)} {b or c}") for a, b, c, d in _DATE.findall(low)}
    return frozenset(found)


def listen(text: str) -> Heard:
    """What is understood of an agent message: the values in it as ``tell(kind, value)``, and common talk."""
    return _listen(text[:READ])


@lru_cache(maxsize=8_192)
def _listen(text: str) -> Heard:
    told = [Act("tell", {"kind": kind, "value": value}) for kind, value in sorted(candidates(text))]
    small = [act for act in understand(DOMAIN, text).acts if act.name not in ("done", "refuse")]
    if not told and not small and _TALK.search(text.lower().replace("’", "'")):
        small = [Act("chat", {})]
    return Heard((*told, *small), bool(told or small) or not text.strip())


# -- what is remembered --------------------------------------------------------------------------------------


class Fact(NamedTuple):
    """Something that the user told: the value of one of its things, as it stands in the end."""

    kind: str
    value: str


@dataclass(frozen=True)
class Recalled:
    """The goal: to each question the one right value.

    Attributes:
        asked: Subjects, in the order in which they are asked for.
    """

    asked: tuple[str, ...]

    def __call__(self, world: World) -> Outcome:
        """Judges the values that were told between a question and the next; the score is the share of right ones."""
        told: dict[str, set[str]] = {}
        current = ""
        for event in world.log:
            if event.name == "asked":
                current = event.arguments["subject"]
                told[current] = set()
            elif event.name == "tell" and current:
                told[current].add(f"{event.arguments['kind']} {event.arguments['value']}")
        missing = tuple(subject for subject in self.asked if told.get(subject) != {self._truth(world, subject)})
        listed = [subject for subject, values in told.items() if len(values) > 1]
        if listed:
            return Outcome(False, 0.0, (*missing, "several values for one question"))
        return Outcome(not missing, 1.0 - len(missing) / len(self.asked), missing)

    def _truth(self, world: World, subject: str) -> str:
        fact = world.tables["facts"][subject]
        return f"{fact.kind} {fact.value.lower()}"


class Line(NamedTuple):
    """One message of the user's script.

    Attributes:
        acts: What it says.
        asks: The subject that it asks for, or "".
    """

    acts: tuple[Act, ...]
    asks: str = ""


@dataclass(kw_only=True)
class Teller(Speaker):
    """Follows a script: tells, chats, asks. Only silence, gibberish and no answer make it say something twice.

    It never says whether an answer was right.

    Attributes:
        script: What it says, message by message.
        at: Index of the latest one.
        patience: Times that it still says something twice.
    """

    script: tuple[Line, ...]
    at: int = 0
    patience: int = 0

    def key(self) -> str:
        """Describes the state that its next answer depends on."""
        return f"{self.at}|{self.patience}"

    def open(self, streams: Streams) -> Reply:
        """Tells the first facts."""
        self.patience = self.persona.patience
        return self.greet([Act("open", {}), *self.script[0].acts], streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Goes on; after a question, only when a value was told."""
        answered = any(act.name == "tell" for act in heard.acts)
        asking = bool(self.script[self.at].asks)
        if not answered and (asking or not heard.acts):
            return self._insist(heard, turn, streams)
        self.at += 1
        if self.at == len(self.script):
            return self.say([Act("goodbye", {})], turn, streams, EndReason.CONCLUDED)
        line = self.script[self.at]
        if line.asks:
            world.log.append(Event(turn, "asked", {"subject": line.asks}))
        return self.say([Act("then", {}), *line.acts] if asking else line.acts, turn, streams)

    def _insist(self, heard: Heard, turn: int, streams: Streams) -> Reply:
        """Says the line again, in other words."""
        self.patience -= 1
        if self.patience <= 0:
            return self.say([Act("leave", {})], turn, streams, EndReason.ABANDONED)
        why = "nag" if heard.understood else "repeat"
        return self.say([Act(why, {}), *self.script[self.at].acts], turn, streams)


class LongMemory(ConversationEnv):
    """Somebody tells a few things, talks about others, and then asks for some of the first.

    Description:
        The user tells facts of one to three kinds: codes, seats, dates, names of pets, passwords, four or
        five of each, so that every one has others of its kind beside it. Some are corrected later, and the
        latest value counts. After small talk the user asks for two or three of them, one at a time, and says
        of no answer whether it was right. Observations hold only what is new, so the agent has to keep the
        rest itself.
    Observation:
        Text. At reset the instructions and the first facts; then what the user says next.
    Action:
        Text to the user. Before the questions any understandable reply will do; the answer is the one value.
    Tools:
        None.
    Reward:
        1 at the end if each question was answered with its value and no other. Otherwise 0. Values are
        compared in canonical form (``14 C`` is ``14C``, ``May 3rd`` is ``3 May``).
    Episode end:
        After the last answer, or when the user's patience is spent: silence, gibberish, and replies without a
        value where one was asked for cost some. Cut after 30 turns.
    Difficulty:
        5, 5, 8, 10, 12 facts with 0, 1, 1, 2, 3 corrections, 0, 1, 4, 6, 9 messages of small talk and 2, 2, 2,
        3, 3 questions: 5, 7, 11, 16, 21 turns. Typing errors, never in a value, from 4 on.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` has new names, passwords, months and
        seats; only ``test_composition`` asks for a seat that was corrected.
    Audit:
        Resists copying a fact of the right kind (between four facts, two questions are guessed once in 12
        times, which is the reason for the ceiling), copying the first or the last value, listing them all,
        and repeating what the user said.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 30
    ceiling: ClassVar[float] = 0.12

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws facts, corrections and questions, and writes the user's script."""
        stream = streams.stream("scenario")
        level = self.difficulty - 1
        legal = (HELD_OUT,) if split == "test_composition" else _templates(bool(CORRECTIONS[level]))
        if template is not None:
            expect("scenario", template, legal)
        name = template or stream.pick(legal)
        kind, _, what = name.partition("/")
        count, each = FACTS[level]
        kinds = [kind, *stream.deal([other for other in SUBJECTS if other != kind], count - 1)]
        facts: dict[str, Fact] = {}
        spare: dict[str, list[str]] = {}
        corrections = max(CORRECTIONS[level], what == "corrected")  # test_composition corrects at difficulty 1, too
        for drawn in kinds:
            values = _values(stream, drawn, each + corrections, split)
            told, spare[drawn] = values[:each], values[each:]
            facts.update(zip(stream.deal(SUBJECTS[drawn], each), [Fact(drawn, value) for value in told]))
        asked, corrected = _questions(stream, facts, level, what, corrections)
        news = {subject: Fact(facts[subject].kind, spare[facts[subject].kind].pop()) for subject in corrected}
        order = stream.deal(list(facts), len(facts))  # the first two are told at once
        final = {**facts, **news}
        user = Teller(
            bank=load_bank("long_memory", "user"), persona=draw_persona(streams, split), split=split,
            typos=(0.0, 0.0, 0.0, 0.05, 0.1)[level],
            facts={subject: fact.value for subject, fact in facts.items()}
            | {f"new {subject}": fact.value for subject, fact in news.items()},
            script=_script(stream, {subject: facts[subject] for subject in order}, news, asked, CHATS[level]),
        )  # fmt: skip
        return Task(
            template=name, world=World({"facts": final}), rules=(), tools={}, user=user,
            instructions=INSTRUCTIONS[self.style], understand=listen, judge=Recalled(asked),
            privileged={
                "facts": {subject: fact.value for subject, fact in final.items()},
                "stale": {subject: facts[subject].value for subject in corrected}, "asked": asked,
            },
            secrets=tuple([fact.value for subject, fact in final.items() if subject not in order[:2]]),
        )  # fmt: skip


INSTRUCTIONS = {
    "brief": "Remember what the user tells you; the latest counts. Asked for it, say that one value.",
    "full": (
        "The user tells you some facts, talks about other things, and later asks for some of the facts. Remember "
        "them: you will see each message only once. If the user corrects a fact, the latest value counts. Until "
        "you are asked, answer briefly. When you are asked for a fact, say its value exactly as the user gave it, "
        "and no other value. You have no tools."
    ),
}


@lru_cache(maxsize=2)
def _templates(corrections: bool) -> tuple[str, ...]:
    """The templates of every split but ``test_composition``."""
    return tuple(name for name in KINDS if name != HELD_OUT and (corrections or name.endswith("plain")))


def _values(stream: Stream, kind: str, count: int, split: str) -> list[str]:
    """Draws different values of a kind."""
    if kind == "code":
        return [str(1_000 + n) for n in stream.distinct(9_000, count)]
    if kind == "seat":
        letters = values_of(LETTERS, split)
        drawn = stream.distinct(40 * len(letters), count)
        return [f"{1 + n // len(letters)}{letters[n % len(letters)]}" for n in drawn]
    if kind == "date":
        months = values_of(MONTHS, split)
        drawn = stream.distinct(28 * len(months), count)
        return [f"{1 + n // len(months)} {months[n % len(months)]}" for n in drawn]
    return stream.deal(values_of(PETS if kind == "pet" else WORDS, split), count)


def _questions(
    stream: Stream, facts: Mapping[str, Fact], level: int, what: str, corrections: int
) -> tuple[tuple[str, ...], list[str]]:
    """Draws what is asked for and what is corrected: in a ``corrected`` template, one of what is asked for.

    The first subjects of ``facts`` are of the template's kind.
    """
    subjects = list(facts)
    main = subjects[stream.below(FACTS[level][1])]
    subjects.remove(main)
    others = stream.deal(subjects, len(subjects))
    asked = [main, *others[: QUESTIONS[level] - 1]]
    unasked = others[QUESTIONS[level] - 1 :]
    corrected = [main, *unasked][:corrections] if what == "corrected" else unasked[:corrections]
    return tuple(stream.deal(asked, len(asked))), corrected


def _script(
    stream: Stream, facts: Mapping[str, Fact], news: Mapping[str, Fact], asked: tuple[str, ...], chats: int
) -> tuple[Line, ...]:
    """Facts two by two, then corrections and small talk in random order, then the questions."""
    told = list(facts.items())
    lines = []
    for i in range(0, len(told), 2):
        acts = [_about("tell", *told[i])] + [_about("also", *each) for each in told[i + 1 : i + 2]]
        lines.append(Line(tuple(acts)))
    between = [Line((_about("correct", subject, fact),)) for subject, fact in news.items()]
    between += [Line((Act(stream.pick(("small_talk", "question")), {}),)) for _ in range(chats)]
    questions = [Line((Act(f"ask_{facts[subject].kind}", {"subject": subject}),), subject) for subject in asked]
    return (*lines, *stream.deal(between, len(between)), *questions)


def _about(what: str, subject: str, fact: Fact) -> Act:
    return Act(f"{what}_{fact.kind}", {"subject": subject, "value": fact.value})

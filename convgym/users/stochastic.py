"""The stochastic user: other habits around a scenario's own user, for measuring what a policy has overfitted to.

A policy trained against one simulator learns its habits too: where the value stands in the answer, that there
is one number in it, that nothing comes unasked. This family changes the habits and nothing else. The scenario's
user still decides what it wants, knows and accepts, so the goal, the reward and the oracle's plan stay what
they are:

- it **over-answers**: asked for one thing it tells another too, as if it had been asked for both (except where
  needless questions are what is graded: a user whose class says ``volunteers = False``);
- it **asks back** before it answers;
- it **errs**: it says a wrong number first, and corrects itself in the same message;
- it **digresses**, with numbers that mean nothing;
- it **changes words**: other function words and fillers.

Who asks back answers in the same breath, and an error is corrected at once, so that no episode becomes harder
than careful reading. Each person has some of the habits, drawn once an episode; when they show is drawn by the
turn, from streams of their own: the choices of the user inside are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from convgym.language.speak import Bank, load_bank, say
from convgym.seeding import Stream, Streams, derive_seed
from convgym.types import Act, Heard, Reply
from convgym.users.base import User
from convgym.world import World

__all__ = ["HABITS", "StochasticUser", "dress_stochastic"]

HABITS = ("over_answers", "asks_back", "errs", "digresses", "changes_words")
OFTEN = 0.5  # chance that a habit shows at a turn where it can
MOST_VOLUNTEERED = 1  # per episode: being asked for it again costs the user inside some patience

_CHANGES = (
    # how the other family says it; no word here is a value of any scenario
    (r"please", "kindly"),
    (r"hello|hi|hey", "howdy"),
    (r"thanks|thank you", "cheers"),
    (r"yes", "yep"),
    (r"I'm", "I am"),
    (r"I'd", "I would"),
    (r"don't", "do not"),
    (r"can't", "cannot"),
    (r"want to", "would love to"),
    (r"need to", "have to"),
    (r"need", "require"),
    (r"it is|it's", "that would be"),
)
_CHANGED = re.compile("|".join(rf"(\b(?:{pattern})\b)" for pattern, _ in _CHANGES), re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_NUMBER = re.compile(r"(?<![\w.,:/-])\d{1,9}(?![\w:/-]|[.,]\d)")


@dataclass
class StochasticUser:
    """A user with other habits; what it does not do itself, the user inside does.

    Attributes:
        inner: The scenario's user.
        habits: The habits of this person, from :data:`HABITS`.
        split: Which wordings it uses.
        secrets: What no digression may hit upon by chance.
        volunteered: Facts told without being asked for.
    """

    inner: User
    habits: frozenset[str]
    split: str
    secrets: tuple[str, ...] = ()
    volunteered: int = 0

    def __getattr__(self, name: str) -> Any:
        """Facts, persona, patience: whoever looks at a user finds the scenario's."""
        if name == "inner":  # not there yet, while a copy is being made
            raise AttributeError(name)
        return getattr(self.inner, name)

    def fork(self) -> StochasticUser:
        """Returns an independent copy of the current state."""
        return replace(self, inner=self.inner.fork())

    def key(self) -> str:
        """Describes the state that its next answer depends on."""
        return f"{self.inner.key()}|{self.volunteered}|{sorted(self.habits)}"

    def open(self, streams: Streams) -> Reply:
        """Says the first words of the user inside, in its own way."""
        return self._manner(self.inner.open(streams), -1, streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Answers as the user inside does, and perhaps more than it was asked."""
        chance = _own(streams).stream("user", turn)
        if chance.random() < OFTEN and "over_answers" in self.habits:
            heard = self._overhear(heard, chance)
        return self._manner(self.inner.respond(heard, world, turn, streams), turn, streams)

    def _overhear(self, heard: Heard, chance: Stream) -> Heard:
        """Adds a question that was not asked, so that the user inside answers and remembers it."""
        asked = {act.slots.get("slot", "") for act in heard.acts if act.name == "request"}
        facts, bank = getattr(self.inner, "facts", {}), getattr(self.inner, "bank", {})
        told = getattr(self.inner, "told", None) if getattr(self.inner, "volunteers", True) else None
        if told is None or not asked & facts.keys() or self.volunteered >= MOST_VOLUNTEERED:
            return heard  # only a user that answers questions and keeps count of them can answer too much
        known = {*asked, *told}
        further = [slot for slot in facts if f"inform_{slot}" in bank and slot not in known]
        if not further:
            return heard
        self.volunteered += 1
        return heard._replace(acts=(*heard.acts, Act("request", {"slot": chance.pick(sorted(further))})))

    def _manner(self, reply: Reply, turn: int, streams: Streams) -> Reply:
        """Says the same in its own way."""
        if not reply.text:
            return reply
        surface, bank = _own(streams).stream("surface", turn), load_bank("stochastic", "user")
        # Every habit draws, shown or not, so that one does not move another.
        shows = {habit: surface.random() < OFTEN and habit in self.habits for habit in HABITS}
        # Words are changed before a wrong number is put in: both then stand in the same frame.
        text = self._changed(reply.text, surface, bank) if shows["changes_words"] else reply.text
        told = any(act.name.startswith(("inform", "correct")) for act in reply.acts)
        if shows["errs"] and told:
            text = self._with_slip(text, surface, bank)
        if shows["asks_back"] and told:
            text = f"{say(bank, 'asks_back', {}, surface, self.split)} {text}"
        if shows["digresses"] and reply.end is None:
            text = self._digressing(text, surface, bank)
        return reply._replace(text=text)

    def _changed(self, text: str, surface: Stream, bank: Bank) -> str:
        """Says it in other function words, after a filler."""
        protected = _protected(tuple(getattr(self.inner, "facts", {}).values()))
        pieces = protected.split(text)  # values at odd places
        pieces[::2] = [_CHANGED.sub(_other_word, piece) for piece in pieces[::2]]
        return f"{say(bank, 'filler', {}, surface, self.split)} {''.join(pieces)}"

    def _with_slip(self, text: str, surface: Stream, bank: Bank) -> str:
        """Says it once with one wrong digit, and then right."""
        numbers = list(_NUMBER.finditer(text))
        if not numbers:
            return text
        at = surface.pick(numbers)
        true = at.group()
        place = surface.below(len(true))
        digit = str((int(true[place]) + 1 + surface.below(8)) % 10)
        begin = max([end.end() for end in _SENTENCE.finditer(text, 0, at.start())], default=0)
        end = _SENTENCE.search(text, at.end())
        rest = text[at.end() : end.start() if end else len(text)]
        wrong = f"{text[begin : at.start()]}{true[:place]}{digit}{true[place + 1 :]}{rest}"
        return f"{text[:begin]}{wrong} {say(bank, 'slip', {}, surface, self.split)} {text[begin:]}"

    def _digressing(self, text: str, surface: Stream, bank: Bank) -> str:
        """Puts something before or after it that has nothing to do with it."""
        numbers = {
            "year": str(surface.between(1950, 2015)), "age": str(surface.between(61, 93)),
            "degrees": str(surface.between(11, 39)), "bus": str(surface.between(100, 890)),
            "house": str(surface.between(1000, 9999)), "small": str(surface.between(2, 9)),
        }  # fmt: skip
        aside = say(bank, "digression", numbers, surface, self.split)
        if any(secret in aside for secret in self.secrets):
            return text
        return f"{aside} {text}" if surface.random() < 0.5 else f"{text} {aside}"


def dress_stochastic(user: User, split: str, streams: Streams, secrets: Sequence[str] = ()) -> StochasticUser:
    """Puts the habits of one person, two to four of them, around a scenario's user."""
    chance = _own(streams).stream("user")
    habits = frozenset(chance.deal(HABITS, chance.between(2, 4)))
    return StochasticUser(user, habits, split, tuple(secrets))


def _own(streams: Streams) -> Streams:
    """Streams that share no draw with the user inside, which reads the turn's own."""
    return Streams(streams.scenario_seed, derive_seed(streams.user_seed, "stochastic"))


@lru_cache(maxsize=1_024)
def _protected(values: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the values that are said as they are."""
    longest_first = sorted(filter(None, values), key=len, reverse=True)
    return re.compile(rf"(\b(?:{'|'.join(map(re.escape, longest_first))})\b)" if longest_first else "((?!))")


def _other_word(match: re.Match[str]) -> str:
    word = _CHANGES[(match.lastindex or 1) - 1][1]
    return word.capitalize() if match.group()[0].isupper() else word

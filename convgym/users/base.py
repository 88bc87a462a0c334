"""What every simulated user is, and what the scripted ones share: a bank of words, facts, and a manner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from convgym.language.noise import add_typos
from convgym.language.speak import Bank, say
from convgym.seeding import Streams
from convgym.types import Act, EndReason, Heard, Reply
from convgym.world import World

__all__ = ["PERSONAS", "Persona", "Speaker", "User", "draw_persona"]


class User(Protocol):
    """A user: opens the conversation and answers each agent message.

    A user holds its own state, so that it can be forked; its draws come from streams keyed by the turn.
    """

    def open(self, streams: Streams) -> Reply:
        """Says the first words."""
        ...

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Answers what it heard at a turn."""
        ...

    def fork(self) -> User:
        """Returns an independent copy of the current state."""
        ...

    def key(self) -> str:
        """Describes the current state, for state-based credit; equal states give equal keys."""
        ...


@dataclass(frozen=True)
class Persona:
    """A manner of speaking and bearing.

    Attributes:
        name: Its name.
        patience: Unproductive agent messages it bears before it leaves.
        pushes: Refusals it argues against before it accepts one.
        prefix: Act key of words put before the opening, or "" for none.
    """

    name: str
    patience: int
    pushes: int
    prefix: str = ""


PERSONAS: tuple[Persona, ...] = (
    Persona("terse", 4, 0),
    Persona("polite", 5, 0, "greeting"),
    Persona("chatty", 5, 0, "chat"),
    Persona("impatient", 3, 1),
    # met only in the split test_user
    Persona("angry", 3, 2, "anger"),
    Persona("confused", 5, 1, "confusion"),
    Persona("deceptive", 4, 2, "pretence"),
)
_HELD_OUT = 3


def draw_persona(streams: Streams, split: str) -> Persona:
    """Draws who speaks: the last personas are met only in the split ``test_user``."""
    people = PERSONAS[-_HELD_OUT:] if split == "test_user" else PERSONAS[:-_HELD_OUT]
    return people[int(streams.stream("user").random() * len(people))]


@dataclass(kw_only=True)
class Speaker:
    """The base of scripted users.

    A subclass is a dataclass whose fields are its whole state; lists among them are copied by :meth:`fork`,
    everything else is immutable or replaced, never changed in place.

    Attributes:
        bank: Its templates.
        persona: Its manner.
        split: Which wordings it uses.
        facts: ``{slot: value}`` for the templates; the values are typed with care.
        typos: Probability of a typing error in a word.
    """

    bank: Bank
    persona: Persona
    split: str
    facts: Mapping[str, str]
    typos: float = 0.0

    def fork(self) -> Self:
        """Returns an independent copy of the current state."""
        twin = copy.copy(self)
        for name, value in self.__dict__.items():
            if type(value) is list:
                setattr(twin, name, list(value))
        return twin

    def greet(self, acts: Sequence[Act], streams: Streams) -> Reply:
        """Opens the conversation in the persona's manner."""
        prefix = [Act(self.persona.prefix, {})] if self.persona.prefix else []
        return self.say([*prefix, *acts], -1, streams)

    def say(self, acts: Sequence[Act], turn: int, streams: Streams, end: EndReason | None = None) -> Reply:
        """Puts acts into words; an act's slots go before the facts.

        Args:
            acts: Keys of the bank with their values; each key is said once.
            turn: The turn, which keys the streams; -1 at the opening.
            streams: The episode's streams.
            end: Set if the user ends the conversation with these words.
        """
        surface = streams.stream("surface", turn)
        words = {}
        for act in acts:
            known = {**self.facts, **act.slots} if act.slots else self.facts
            words[act.name] = say(self.bank, act.name, known, surface, self.split)
        text = " ".join(words.values())
        if self.typos:
            text = add_typos(text, self.typos, streams.stream("noise", turn), self.facts.values())
        return Reply(text, tuple(acts), end)

"""Policy rules: the sentence that the agent reads and the check that the grader runs are one object.

A check says whether an event may happen, given what happened before it. The operators here (:class:`Before`,
:class:`Since`, :class:`Never`, :class:`AtMostOnce`, :class:`OnlyIf`) are data, so that a rule can be pickled,
rendered and graded from one place, and the text cannot disagree with the grading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from convgym.types import Event
from convgym.world import World

__all__ = ["AtMostOnce", "Before", "Check", "Never", "OnlyIf", "Rule", "Since", "render", "violations"]


class Check(Protocol):
    """Whether ``event`` is allowed after the ``earlier`` ones; it is asked about events in ``names`` only."""

    @property
    def names(self) -> frozenset[str]: ...

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool: ...


@dataclass(frozen=True)
class Rule:
    """One rule of a policy.

    Attributes:
        id: Stable name, reported when the rule is broken.
        brief: The rule in a few words, for small models.
        full: The rule as a sentence, for language models.
        check: The same rule as a predicate over the event log.
    """

    id: str
    brief: str
    full: str
    check: Check


def _agree(one: Event, other: Event, keys: tuple[str, ...]) -> bool:
    return [one.arguments.get(key) for key in keys] == [other.arguments.get(key) for key in keys]


@dataclass(frozen=True)
class Before:
    """A successful event in ``names`` needs an earlier successful ``need`` with equal arguments ``same``.

    With ``names_it``, that argument of the earlier event must be the later event's name: the confirmation of
    one action permits no other.
    """

    names: frozenset[str]
    need: str
    same: tuple[str, ...] = ()
    names_it: str = ""

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        if not event.ok or event.name not in self.names:
            return True
        for past in earlier:
            right = past.name == self.need and past.ok and _agree(past, event, self.same)
            if right and (not self.names_it or past.arguments.get(self.names_it) == event.name):
                return True
        return False


@dataclass(frozen=True)
class Since:
    """A successful event in ``names`` needs a successful ``need`` after the last ``reset`` event."""

    names: frozenset[str]
    need: str
    reset: str

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        if not event.ok or event.name not in self.names:
            return True
        last = next(
            (past for past in reversed(earlier) if past.name in (self.need, self.reset) and past.ok), None
        )
        return last is not None and last.name == self.need


@dataclass(frozen=True)
class Never:
    """No event in ``names`` may succeed."""

    names: frozenset[str]

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        return not (event.ok and event.name in self.names)


@dataclass(frozen=True)
class AtMostOnce:
    """At most one successful event in ``names`` for each value of the arguments ``same``."""

    names: frozenset[str]
    same: tuple[str, ...] = ()

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        if not event.ok or event.name not in self.names:
            return True
        before = [past for past in earlier if past.name in self.names and past.ok]
        return not any(_agree(past, event, self.same) for past in before)


@dataclass(frozen=True)
class OnlyIf:
    """A successful event in ``names`` is allowed only if a condition on the *original* records holds.

    The condition reads ``world.tables``, not the overlay: the event has already been applied when it is
    checked.
    """

    names: frozenset[str]
    condition: Callable[[World, Event], bool]

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        return not event.ok or event.name not in self.names or self.condition(world, event)


def render(rules: Sequence[Rule], style: str) -> str:
    """Renders a policy for an agent to read; ``style`` is ``"brief"`` or ``"full"``."""
    if style == "brief":
        return " ".join(rule.brief for rule in rules)
    return "\n".join(f"{i}. {rule.full}" for i, rule in enumerate(rules, 1))


def violations(rules: Sequence[Rule], world: World, start: int = 0) -> list[str]:
    """Returns the ids of the rules broken by the events from index ``start`` on, once for each breach."""
    broken: list[str] = []
    log = world.log
    for i in range(start, len(log)):
        event = log[i]
        for rule in rules:
            if event.name in rule.check.names and not rule.check(world, log[:i], event):
                broken.append(rule.id)
    return broken

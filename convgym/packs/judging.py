"""The judgement of a pack's conversations, from records and log only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convgym.rules import Rule, violations
from convgym.types import Event, Outcome
from convgym.world import World

__all__ = ["Call", "Evidence", "Judge"]

Call = tuple[str, Mapping[str, str]]
"""A tool and the arguments of its event."""


def _is(event: Event, call: Call) -> bool:
    """Whether an event is a call with at least these arguments."""
    return event.name == call[0] and call[1].items() <= event.arguments.items()


@dataclass(frozen=True)
class Evidence:
    """What has to be seen before a refusal counts: a record, by one of the tools that show the field in question."""

    tools: tuple[str, ...]
    table: str
    key: str

    def seen(self, event: Event) -> bool:
        """Whether an event is such a look."""
        if event.name not in self.tools or not event.ok:
            return False
        return event.arguments.get(self.table) == self.key or self.key in event.arguments.get("found", "").split("|")


@dataclass(frozen=True)
class Judge:
    """What has to be true at the end.

    Attributes:
        required: Writes, and tools that end the conversation, that must happen once.
        reason: The reason to refuse for, "" where nothing is to be refused.
        evidence: What must be looked at before, for a refusal.
        asked: Slots that the user must have told before anything is written or said about the matter.
        tell: The field and the value that the user must be told, ``("", "")`` for none.
        allowed: Writes and endings beyond the required ones that do no harm.
        forbidden: Tools that may not succeed.
        ends: The tools that end a conversation.
        rules: The policy; none of it may be broken.
    """

    required: tuple[Call, ...]
    reason: str
    evidence: Evidence | None
    asked: tuple[str, ...]
    tell: tuple[str, str]
    allowed: frozenset[str]
    forbidden: frozenset[str]
    ends: frozenset[str]
    rules: tuple[Rule, ...]

    def __call__(self, world: World) -> Outcome:
        met = {f"asked {slot}": self._asked(world, slot) for slot in self.asked}
        for tool, arguments in self.required:
            met[tool] = world.happened(tool, **arguments)
        if self.reason:
            met[f"refused: {self.reason}"] = self._refused(world)
        if self.tell[0]:
            met[f"told {self.tell[0]}"] = world.happened("tell", field=self.tell[0], value=self.tell[1])
        missing = tuple(name for name, done in met.items() if not done)
        damage = self._damage(world)
        if damage:
            return Outcome(False, 0.0, (*missing, damage))
        return Outcome(not missing, 1.0 - len(missing) / len(met), missing)

    def _asked(self, world: World, slot: str) -> bool:
        """Whether the user said it, and said it before the first act that needs it."""
        for event in world.log:
            if event.name == "told" and event.arguments["slot"] == slot:
                return True
            if (event.write and event.ok) or event.name in self.ends or event.name in ("refuse", "tell"):
                return False
        return False

    def _refused(self, world: World) -> bool:
        seen = False
        for event in world.log:
            seen |= self.evidence is not None and self.evidence.seen(event)
            if seen and event.name == "refuse" and event.arguments["reason"] == self.reason:
                return True
        return False

    def _damage(self, world: World) -> str:
        """Names what must not be: another write, a needless ending, a false claim, a broken rule."""
        left = list(self.required)
        served = False
        for event in world.log:
            if event.ok and event.name in self.forbidden:
                return f"forbidden {event.name}"
            if event.ok and (event.write or event.name in self.ends):
                matched = next((call for call in left if _is(event, call)), None)
                if matched is not None:
                    left.remove(matched)
                elif event.name not in self.allowed:
                    return f"needless {event.name}"
                served = True
            elif event.name == "refuse" and event.arguments["reason"] not in ("", self.reason):
                return "false reason"
            elif event.name == "tell" and event.arguments["value"] != self.tell[1]:
                return "false value"
            elif event.name == "tell":
                served = True
            elif event.name == "done" and not served and not self._tells_now(world, event):
                return "false report"
        broken = violations(self.rules, world)
        return f"rule {broken[0]}" if broken else ""

    def _tells_now(self, world: World, done: Event) -> bool:
        """Whether the message that reports something as done also tells what was asked for."""
        return any(event.name == "tell" and event.turn == done.turn for event in world.log)

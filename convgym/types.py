"""The words of a conversation: messages, tool calls, events, acts, endings. All immutable, all JSON-plain."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

__all__ = ["Act", "EndReason", "Event", "Heard", "Message", "Outcome", "Reply", "ToolCall", "Turn"]


class Message(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: ``"system"``, ``"user"``, ``"assistant"`` or ``"tool"``.
        content: The text.
    """

    role: str
    content: str

    def to_dict(self) -> dict[str, str]:
        """Returns ``{"role": ..., "content": ...}``, the form of chat templates."""
        return {"role": self.role, "content": self.content}

    @classmethod
    def from_dict(cls, data: Mapping[str, str]) -> Message:
        """Inverts :meth:`to_dict`."""
        return cls(data["role"], data["content"])


class ToolCall(NamedTuple):
    """A well-formed call of a tool; the tool may not exist and the arguments may not fit it."""

    name: str
    arguments: Mapping[str, Any]


class Act(NamedTuple):
    """A speech act with its slots, e.g. ``Act("request", {"slot": "order"})``."""

    name: str
    slots: Mapping[str, str]


class Heard(NamedTuple):
    """What the user made of an agent message.

    Attributes:
        acts: The acts found, in order of the patterns that found them.
        understood: False if nothing was found in a text that said something.
    """

    acts: tuple[Act, ...]
    understood: bool


class Event(NamedTuple):
    """One thing that happened in the world; the log of them is what rules and goals are checked against.

    Attributes:
        turn: Turn index, 0-based.
        name: ``verify``, ``refund``, ``claim`` and so on.
        arguments: Canonical arguments.
        ok: False if the attempt was turned down by the world (an unknown order, a wrong code).
        write: True if it changed the world.
    """

    turn: int
    name: str
    arguments: Mapping[str, str]
    ok: bool = True
    write: bool = False


class EndReason(StrEnum):
    """Why a conversation ended. The last three cut it (truncation), the others are its own endings."""

    CONCLUDED = "concluded"  # the user was served, or accepted why not, and said goodbye
    SUBMITTED = "submitted"  # the agent handed in its result
    ESCALATED = "escalated"  # the agent handed the conversation to a person
    ABANDONED = "abandoned"  # the user's patience was spent
    TURN_LIMIT = "turn_limit"
    CHARACTER_LIMIT = "character_limit"
    INFRASTRUCTURE = "infrastructure"  # a remote user or judge failed; kept out of statistics

    @property
    def truncates(self) -> bool:
        """Whether this reason is a truncation in Gymnasium's sense."""
        return self in (EndReason.TURN_LIMIT, EndReason.CHARACTER_LIMIT, EndReason.INFRASTRUCTURE)


class Reply(NamedTuple):
    """What the user says back.

    Attributes:
        text: The words, empty if the user only left.
        acts: The acts behind the words.
        end: Set if the user ended the conversation with this reply.
    """

    text: str
    acts: tuple[Act, ...] = ()
    end: EndReason | None = None


class Outcome(NamedTuple):
    """The judgement of a finished conversation.

    Attributes:
        success: Everything required was done and nothing forbidden.
        score: Part of the requirements met, in [0, 1]; 1 exactly on success.
        missing: What was not met, for audits; never shown to the agent.
    """

    success: bool
    score: float
    missing: tuple[str, ...] = ()


class Turn(NamedTuple):
    """One agent message with what it caused.

    Attributes:
        action: The agent's words as given.
        call: The tool call in it, if it was one.
        heard: What the user understood, if it was speech.
        replies: Messages that followed, already with their roles.
        acts: The acts behind the user's words; () where a tool answered.
    """

    action: str
    call: ToolCall | None
    heard: Heard | None
    replies: tuple[Message, ...]
    acts: tuple[Act, ...] = ()

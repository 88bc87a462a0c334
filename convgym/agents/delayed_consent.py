"""Agents of DelayedConsent: by the exact values, with slips, one that takes its time, and cheats."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym

from convgym.agents.exploiters import Fixed
from convgym.agents.micro import ByValue, Slipping
from convgym.language.speak import load_bank, say

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

FAMILY = "delayed_consent"


class Oracle(ByValue):
    """Knows the value of every action; where all are equal, it says the first."""

    family = FAMILY

    def choose(self, q: Mapping[str, float]) -> str:
        """Returns the best action, and chats where nothing matters."""
        return "chat" if len(set(q.values())) == 1 else super().choose(q)


class Clerk(Slipping, Oracle):
    """The oracle, who says anything in most turns."""

    slips: ClassVar[float] = 0.85


class Greedy:
    """Reads only text: knows what to say, and says it at some time of the call."""

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.rng = rng
        self.turns = 1 + int(getattr(env.unwrapped, "difficulty", 2))  # it has made such calls before

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Hears the wish, and chooses the time."""
        opening = obs.rpartition("User: ")[2].lower()
        trial = any(word in opening for word in ("trial", "free", "try", "test"))
        self.word, self.wait = "condition" if trial else "consent", self.rng.randrange(self.turns)

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Says the word when the time has come."""
        self.wait -= 1
        return say(load_bank(FAMILY, "agent"), self.word if self.wait == -1 else "chat", {}, self.rng, "train")


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Any]] = {
    "always-condition": lambda env, rng: Fixed("It renews after a month."),
    "always-consent": lambda env, rng: Fixed("May I take notes?"),
    "both-at-once": lambda env, rng: Fixed("May I take notes? It renews after a month."),
}

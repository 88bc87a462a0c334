"""Agents of AskOrAct: by the exact values, with slips, by a rule of thumb, and the cheats it must resist."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym

from convgym.agents.exploiters import Exploiter, Fixed
from convgym.agents.micro import ByValue, Slipping
from convgym.language.speak import load_bank, say

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

FAMILY = "ask_or_act"
DRINKS = ("tea", "coffee", "milk", "juice")
_NO = re.compile(r"\b(?:no|not|wrong|don't|but)\b")


class Oracle(ByValue):
    """Knows the value of every action."""

    family = FAMILY


class Clerk(Slipping):
    """The oracle, who does anything in many turns."""

    family = FAMILY
    slips: ClassVar[float] = 0.4


class Greedy:
    """Reads only text: serves the usual drink or the one that was said, and asks whenever it knows of none."""

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.rng = rng

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Nothing is served yet."""
        self.served = ""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Serves or asks."""
        said = obs.rpartition("User: ")[2].lower()
        named = next((drink for drink in DRINKS if drink in said), "")
        turned_down = named == self.served and _NO.search(said)
        self.served = "" if turned_down else named
        return say(load_bank(FAMILY, "agent"), self.served or "ask", {}, self.rng, "train")


class InTurn(Exploiter):
    """Serves one drink after the other, and stays with one that is right: never asks, reads no usual.

    That is a policy rather than a cheat. The ceiling is what it is worth at difficulty 5, .5 of an optimum of
    .583 (there, a question is worth less than a guess), and what chance adds in the smallest audits.
    """

    ceiling: ClassVar[float | None] = 1.0

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Begins with any drink."""
        super().reset(obs, info)
        self.left = self.rng.sample(DRINKS, len(DRINKS))

    def cheat(self, obs: str) -> str:
        """Serves the next one after a no."""
        if self.turn > 0 and _NO.search(obs.lower()):
            self.left.append(self.left.pop(0))
        return self.left[0]


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Any]] = {
    "all-drinks": lambda env, rng: Fixed("tea coffee milk juice"),
    "always-tea": lambda env, rng: Fixed("Tea."),
    "ask-forever": lambda env, rng: Fixed("What would you like?"),
    "one-after-the-other": InTurn,
}

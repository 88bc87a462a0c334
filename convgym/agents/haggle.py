"""Agents of Haggle: by the exact values, with slips, one that rides a rise, and cheats."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym

from convgym.agents.exploiters import Fixed
from convgym.agents.micro import ByValue, Slipping
from convgym.language.speak import load_bank, say

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

FAMILY = "haggle"
LAMPS, TURNS = 2, 5
_DOWN = re.compile(r"\b(?:cheaper|fall\w*|down\w*|dropp?\w*|less|nobody)\b")
_NUMBER = re.compile(r"\b\d\d\b")


class Oracle(ByValue):
    """Knows the value of every action."""

    family = FAMILY


class Clerk(Slipping):
    """The oracle, who accepts or waits at random in many turns."""

    family = FAMILY
    slips: ClassVar[float] = 0.5


class Greedy:
    """Reads only text: sells at once if prices fall, and else waits until an offer drops or time runs out."""

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.rng = rng

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Hears how the market goes."""
        self.falling = bool(_DOWN.search(obs.rpartition("User: ")[2].lower()))
        self.last, self.lamps, self.turns = 0, LAMPS, TURNS

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Sells or waits."""
        offers = _NUMBER.findall(obs.rpartition("User: ")[2])
        offer = int(offers[-1]) if offers else 0
        sell = self.falling or offer < self.last or self.lamps >= self.turns
        self.last, self.lamps, self.turns = offer, self.lamps - sell, self.turns - 1
        return say(load_bank(FAMILY, "agent"), "accept" if sell else "wait", {}, self.rng, "train")


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Any]] = {
    "accept-anything": lambda env, rng: Fixed("I accept."),
    "accept-and-ask-for-more": lambda env, rng: Fixed("Deal, but I want more."),
    "name-a-price": lambda env, rng: Fixed("90."),
    "wait-forever": lambda env, rng: Fixed("I wait."),
}

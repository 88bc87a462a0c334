"""Agents of the micro environments: they read the exact value of every action."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym

from convgym.core import ConversationEnv
from convgym.language.speak import load_bank, say

__all__ = ["ByValue", "Slipping"]


class ByValue:
    """Does what is worth most, in the words of its family's bank."""

    family: ClassVar[str]

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng
        self.bank = load_bank(self.family, "agent")

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Nothing to remember."""

    def choose(self, q: Mapping[str, float]) -> str:
        """Returns one of the actions, given their values."""
        return max(q, key=q.__getitem__)

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Says its choice."""
        env = self.env.unwrapped
        assert isinstance(env, ConversationEnv)
        return say(self.bank, self.choose(env.privileged()["q"]), {}, self.rng, "train")


class Slipping(ByValue):
    """Does anything now and then.

    Attributes:
        slips: Probability of a random action at a turn.
    """

    slips: ClassVar[float]

    def choose(self, q: Mapping[str, float]) -> str:
        """Returns the best action, or any."""
        return self.rng.choice(sorted(q)) if self.rng.random() < self.slips else super().choose(q)

"""Agents of TextBandit: the best word, a uniform clerk, and a script that stays with what has just paid."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]


class Oracle:
    """Knows the means."""

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng

    def _means(self) -> dict[str, float]:
        return dict(self.env.unwrapped.privileged()["means"])  # type: ignore[attr-defined]

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Nothing to remember."""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Names the best word."""
        means = self._means()
        return max(means, key=means.__getitem__)


class Clerk(Oracle):
    """Names any word."""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Names a uniform word."""
        return self.rng.choice(sorted(self._means()))


class Greedy(Oracle):
    """Reads only text: win, stay; lose, shift."""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the words."""
        self.words = obs.rpartition("Say one: ")[2].rstrip(".").split(", ")
        self.at = 0

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Stays with a word while it pays."""
        if "pays 0" in obs:
            self.at = (self.at + 1) % len(self.words)
        return self.words[self.at]


class AllWords(Greedy):
    """Names every word in every message."""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Lists them."""
        return ", ".join(self.words)


class Two(Greedy):
    """Names two words at once, to double the chance."""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Names the first and the last."""
        return f"{self.words[0]} or {self.words[-1]}"


EXPLOITERS = {"all-words": AllWords, "two-words": Two}

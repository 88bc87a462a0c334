"""The base of the clerks: a plan made from the goal, with mistakes drawn once an episode."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import gymnasium as gym

from convgym.language.speak import load_bank, say

__all__ = ["Planner"]


class Planner:
    """Knows the goal, plans, and slips now and then.

    Attributes:
        family: Whose wordings it speaks in.
        slips: ``{mistake: probability that it is made in an episode}``.
        closing: What it says at the end of its plan if it has said nothing yet.
    """

    family: ClassVar[str]
    slips: Mapping[str, float] = {}
    closing: ClassVar[str] = "Goodbye."

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng
        self.bank = load_bank(self.family, "agent")
        self.plan: Iterator[str] = iter(())
        self.last = ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the goal and draws this episode's slips."""
        self.last = self.closing
        slipped = frozenset(name for name, p in self.slips.items() if self.rng.random() < p)
        self.plan = self._steps(dict(self.env.unwrapped.privileged()), slipped)  # type: ignore[attr-defined]

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan; with nothing left to do it says its last words again."""
        return next(self.plan, self.last)

    def _say(self, key: str, **slots: str) -> str:
        self.last = say(self.bank, key, slots, self.rng, "train")
        return self.last

    @abstractmethod
    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        """Plans an episode.

        Args:
            goal: What the environment's ``privileged()`` says.
            slipped: The mistakes of this episode.
        """

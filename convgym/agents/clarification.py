"""Agents of Clarification: the oracle, a clerk who errs, a script that asks once, and the cheats."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym

from convgym.agents import Agent
from convgym.agents.clerk import Planner
from convgym.language.speak import say
from convgym.scenarios.clarification import KINDS
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "hasty": 0.35,  # acts on the first that fits, without asking
    "needless": 0.40,  # asks for something that was clear, or that all have in common
    "vague": 0.30,  # asks which one, and takes what it gets
    "again": 0.15,  # asks the same twice
    "mixup": 0.20,  # acts on another thing of the name
    "blind": 0.05,  # makes up a number
}


class Clerk(Planner):
    """Knows what is meant and slips now and then; the demonstrator of mixed skill."""

    family = "clarification"
    slips: Mapping[str, float] = SLIPS

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        super().__init__(env, rng)
        self.obs = ""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan."""
        self.obs = obs
        return next(self.plan, "Thank you.")

    def _ask(self, slot: str) -> str:
        return say(self.bank, f"ask_{slot}", {}, self.rng, "train")

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        keys = [str(self.rng.randrange(10, 100))]
        if "blind" not in slipped:
            yield format_call("find", {"name": goal["name"]})
            keys = re.findall(r"(?:Tool: |; )(\d\d) ", self.obs)
        asks = list(goal["asks"])
        if "hasty" in slipped:
            asks = []
        elif "vague" in slipped and asks:
            asks[0] = "which"
        if "needless" in slipped:
            asks.append(self.rng.choice([slot for slot in KINDS[goal["kind"]].slots if slot not in asks]))
        if "again" in slipped:
            asks += asks[-1:]
        for slot in asks:
            yield self._ask(slot)
        guess = "blind" in slipped or "mixup" in slipped or ("hasty" in slipped and goal["asks"])
        yield format_call(goal["verb"], {"id": self.rng.choice(keys) if guess else goal["target"]})


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text: looks up, and asks once for the first slot in which the things of the name differ.

    What the user said beyond the name is lost on it, and it takes the first thing that fits the answer.
    """

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.plan: Iterator[str] = iter(())
        self.obs = ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads what the conversation is about."""
        self.plan = self._steps(obs)

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step."""
        self.obs = obs
        return next(self.plan, "Thank you.")

    def _steps(self, opening: str) -> Iterator[str]:
        head, _, said = opening.partition("\n\nUser: ")
        kind = next(kind for kind in KINDS.values() if re.search(rf"\b{kind.noun}\b", head))
        name = next((name for name in kind.names if re.search(rf"\b{name}\b", said)), kind.names[0])
        yield format_call("find", {"name": name})
        rows = [row.split() for row in self.obs.removeprefix("Tool: ").split("; ")]
        columns = list(zip(*rows))[2:]
        differ = [i for i, column in enumerate(columns) if len(set(column)) > 1]
        if differ:
            yield f"Which {list(kind.slots)[differ[0]]}?"
            rows = [row for row in rows if row[2 + differ[0]] in self.obs] or rows
        yield format_call(kind.verb, {"id": rows[0][0]})


class _Asker(Greedy):
    """A cheat that reads the list and then does the same whatever was said."""

    def __init__(self, asks: tuple[int, ...]) -> None:
        self.asks = asks

    def _steps(self, opening: str) -> Iterator[str]:
        plan = super()._steps(opening)
        yield next(plan)
        head, _, heard = opening.partition("\n\nUser: ")
        kind = next(kind for kind in KINDS.values() if re.search(rf"\b{kind.noun}\b", head))
        rows = [row.split() for row in self.obs.removeprefix("Tool: ").split("; ")]
        for i in self.asks:
            yield f"Which {list(kind.slots)[i]}?" if i >= 0 else "Which one do you mean?"
            heard += self.obs
        fits = [sum(re.search(rf"\b{value}\b", heard) is not None for value in row[2:]) for row in rows]
        yield format_call(kind.verb, {"id": rows[fits.index(max(fits))][0]})


class _All(Greedy):
    """A cheat that acts on everything of the name, in one call and then one by one."""

    def __init__(self) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]

    def _steps(self, opening: str) -> Iterator[str]:
        plan = super()._steps(opening)
        yield next(plan)
        kind = next(kind for kind in KINDS.values() if re.search(rf"\b{kind.noun}\b", opening))
        keys = re.findall(r"(?:Tool: |; )(\d\d) ", self.obs)
        yield format_call(kind.verb, {"id": ", ".join(keys)})
        for key in keys:
            yield format_call(kind.verb, {"id": key})


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Agent]] = {
    "never-ask": lambda env, rng: _Asker(()),
    "ask-which": lambda env, rng: _Asker((-1,)),
    "ask-everything": lambda env, rng: _Asker((0, 1, 2)),
    "act-on-all": lambda env, rng: _All(),
}

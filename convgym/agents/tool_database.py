"""Agents of ToolDatabase: the oracle, a clerk who errs, a script that follows the first name, and cheats."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym

from convgym.agents import Agent
from convgym.agents.clerk import Planner
from convgym.core import values_of
from convgym.scenarios.linked_tables import NAMES, VALUES
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "guess": 0.15,  # answers before the last look-up, with a value that looks right
    "astray": 0.15,  # looks up another row at the last hop, and tells what it finds there
    "column": 0.12,  # tells the other column of the right row
    "browse": 0.12,  # looks around before it begins
    "hedge": 0.10,  # names a second value beside the right one
    "invent": 0.40,  # tells a value where there is none
    "deny": 0.08,  # says that there is none where there is one
    "no_set": 0.25,  # forgets the change
    "wrong_set": 0.20,  # writes a value that was not asked for
}


class Clerk(Planner):
    """Knows the way and slips now and then; the demonstrator of mixed skill."""

    family = "tool_database"
    closing = "One moment."
    slips: Mapping[str, float] = SLIPS

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        super().__init__(env, rng)
        self.heard = ""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan; with nothing left to do it says its last words again."""
        self.heard = obs
        return next(self.plan, self.last)

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        finds, column, answer = list(goal["finds"]), goal["column"], goal["answer"]
        if "browse" in slipped:
            for _ in range(self.rng.randint(2, 4)):
                value = some_value(self.rng, finds[0]["column"])
                yield format_call("find", {**finds[0], "value": value})
        if "astray" in slipped:
            stray = some_value(self.rng, finds[-1]["column"], finds[-1]["value"])
            finds[-1] = {**finds[-1], "value": stray}
        for find in finds[:-1] if "guess" in slipped else finds:
            yield format_call("find", find)
        seen = self.heard
        if "deny" in slipped or (not answer and "invent" not in slipped):
            yield self._say("missing", column=column)
            return
        if goal["set"] and "no_set" not in slipped:
            new = some_value(self.rng, column, goal["set"]["value"]) if "wrong_set" in slipped else goal["set"]["value"]
            yield format_call("set", {**goal["set"], "value": new})
        yield self._answer(goal, slipped, seen)

    def _answer(self, goal: dict[str, Any], slipped: frozenset[str], seen: str) -> str:
        column, answer = goal["column"], goal["answer"]
        if "column" in slipped:
            others = [pair for pair in re.findall(r"(\w+) (\w+)", seen) if pair[0] in VALUES and pair[0] != column]
            column, answer = others[-1] if others else (column, answer)
        elif "guess" in slipped or "astray" in slipped or not answer:
            answer = some_value(self.rng, column, answer)
        if "hedge" in slipped:
            return self._say("list", column=column, value=answer, other=some_value(self.rng, column, answer))
        return self._say("told_set" if goal["set"] and "no_set" not in slipped else "tell", column=column, value=answer)


def some_value(rng: random.Random, column: str, other_than: str = "") -> str:
    """Draws a value that might stand in a column."""
    return rng.choice([value for value in values_of(VALUES[column], "train") if value != other_than])


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text: starts at the name or number that it reads, and follows the links.

    It takes any ``none`` for the end of the way, the first of two namesakes, and makes no changes.
    """

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.rng = rng
        self.plan: Iterator[str] = iter(())
        self.heard = ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the tables; the question is heard with the first action."""
        self.plan = self._steps(re.findall(r"(\w+)\((\w+), (\w+), (\w+)\)", obs))

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step."""
        self.heard = obs
        return next(self.plan, "It is not on record.")

    def _steps(self, tables: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
        question = self.heard.rpartition("User: ")[2]
        name = next((name for name in NAMES if re.search(rf"\b{name}\b", question)), "")
        leaf = re.search(rf"\b{tables[0][3]} (\w+)", question)
        column, value = ("name", name) if name or leaf is None else (tables[0][3], leaf.group(1))
        asked = next((c for c in tables[-1][2:] if re.search(rf"\b{c} of\b", question)), tables[-1][2])
        for table, key, link, _ in tables:
            find = {"table": table, "column": column if table == tables[0][0] else key, "value": value or NAMES[0]}
            yield format_call("find", find)
            found = re.search(rf"\b{asked if table == tables[-1][0] else link} (\w+)", self.heard)
            if found is None or "none" in self.heard:
                return
            value = found.group(1)
        yield f"The {asked} is {value}."


# -- cheats ----------------------------------------------------------------------------------------------


class Dumper:
    """Asks for the rows of every name and link that it can think of, and then tells all values that it has seen."""

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.rng, self.seen = rng, dict[str, None]()
        self.queue: list[str] = []

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Makes a list of all cells that might exist."""
        self.seen = {}
        self.queue = []
        for table, *columns in re.findall(r"(\w+)\((\w+), (\w+), (\w+)\)", obs):
            for value in ["*", "%", "", *VALUES[columns[0]][:20]]:
                self.queue.append(format_call("find", {"table": table, "column": columns[0], "value": value}))
        self.rng.shuffle(self.queue)
        del self.queue[9:]

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Dumps, then lists."""
        self.seen |= dict.fromkeys(re.findall(r"\w+", obs))
        return self.queue.pop() if self.queue else " ".join(self.seen)


class Guesser(Greedy):
    """Never looks anything up: tells one value that looks right."""

    def _steps(self, tables: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
        asked = next((c for c in tables[-1][2:] if f"{c} of" in self.heard), tables[-1][2])
        yield f"The {asked} is {some_value(self.rng, asked)}."


class Lister(Greedy):
    """Follows the links, and names everything that it has seen, the empty cells included."""

    def _steps(self, tables: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
        seen = ""
        for step in super()._steps(tables):
            seen += f" {self.heard.rpartition(': ')[2]}"
            if step.startswith("<tool_call>"):
                yield step
        guess = some_value(self.rng, tables[-1][2])
        yield f"It is {guess}, or one of {seen} {self.heard}, or it is not on record."


class Denier(Greedy):
    """Looks at one row, and says that there is nothing on record."""

    def _steps(self, tables: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
        yield next(super()._steps(tables))
        while True:
            yield "There is nothing on record."


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Agent]] = {
    "dump": Dumper,
    "guess": Guesser,
    "list": Lister,
    "deny": Denier,
}

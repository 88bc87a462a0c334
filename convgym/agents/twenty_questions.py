"""Agents of TwentyQuestions: the oracle, a clerk who errs, a script that stops too soon, and cheats."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium as gym

from convgym.agents import Agent, Fixed
from convgym.agents.clerk import Planner
from convgym.language.speak import say
from convgym.scenarios.twenty_questions import ATTRIBUTES, POOLS
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "early": 0.3,  # guesses before it has asked about the last attribute
    "lucky": 0.45,  # asks one question about an attribute and guesses the rest
    "mishear": 0.4,  # guesses another value of one attribute
    "twice": 0.2,  # asks about two values at once
    "again": 0.15,  # asks something once more
}


class Clerk(Planner):
    """Searches as one who does not know the item, and then guesses what it knows; slips now and then."""

    family = "twenty_questions"
    slips: Mapping[str, float] = SLIPS

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan."""
        return next(self.plan, "")

    def _ask(self, attribute: str, value: str) -> str:
        key = f"ask_{attribute}" if f"ask_{attribute}" in self.bank else "ask"
        return say(self.bank, key, {"value": value}, self.rng, "train").capitalize()

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        lists, item = goal["lists"], dict(goal["attributes"])
        asked = list(lists)[:-1] if "early" in slipped else list(lists)
        lucky = self.rng.choice([name for name in asked if name in POOLS]) if "lucky" in slipped else ""
        if "twice" in slipped:
            one, other = lists[asked[0]][:2]
            yield say(self.bank, "ask_two", {"value": one, "other": other}, self.rng, "train").capitalize()
        for attribute in asked:
            # In the order of the list, until the answer is known; the last value needs no question.
            for value in lists[attribute][:-1]:
                yield self._ask(attribute, value)
                if "again" in slipped and self.rng.random() < 0.2:
                    yield self._ask(attribute, value)
                if item[attribute] == value or attribute == lucky:
                    break
            if attribute == lucky and item[attribute] != lists[attribute][0]:
                item[attribute] = self.rng.choice(lists[attribute][1:])
        if "early" in slipped:
            last = list(lists)[-1]
            item[last] = self.rng.choice(lists[last])
        if "mishear" in slipped:
            attribute = self.rng.choice(list(lists))
            item[attribute] = self.rng.choice(lists[attribute])
        yield format_call("guess", {"item": " ".join(item.values())})


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text: asks the lists through in turns, at most :data:`QUESTIONS` questions, and guesses the rest."""

    QUESTIONS = 5

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.left: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str]] = []

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the lists."""
        self.left, self.asked = _lists(obs), []

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Crosses out what the answer excludes, and asks on or guesses."""
        if self.asked:
            attribute, value = self.asked[-1]
            yes = re.search(r"\b(?:yes|true|right)\b", obs.lower()) and not re.search(r"\bnot\b", obs.lower())
            others = [each for each in self.left[attribute] if each != value]
            self.left[attribute] = [value] if yes else others or [value]
        counts = {name: sum(name == asked for asked, _ in self.asked) for name in self.left}
        open_lists = [name for name, values in self.left.items() if len(values) > 1]
        if not open_lists or len(self.asked) >= self.QUESTIONS:
            return format_call("guess", {"item": " ".join(values[0] for values in self.left.values())})
        attribute = min(open_lists, key=counts.__getitem__)
        self.asked.append((attribute, self.left[attribute][0]))
        return f"Is it {self.asked[-1][1]}?"


def _lists(obs: str) -> dict[str, list[str]]:
    """The lists in the instructions, of either style."""
    head = obs.partition("\n\nUser: ")[0]
    found = re.findall(rf"(?:Item: |; |- )({'|'.join(ATTRIBUTES)}):? ([a-z, ]+)", head)
    return {name: re.findall(r"[a-z]+", words) for name, words in found}


class _Cheat:
    """Reads the lists and says what ``words`` makes of them, turn by turn."""

    def __init__(self, words: Callable[[dict[str, list[str]]], list[str]], env: gym.Env[str, str], rng: random.Random):
        self.words, self.rng, self.plan = words, rng, iter([""])

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the lists."""
        lists = _lists(obs)
        for values in lists.values():
            self.rng.shuffle(values)
        self.plan = iter(self.words(lists))

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Says its next sentence."""
        return next(self.plan, "")


def _first(lists: dict[str, list[str]]) -> str:
    return " ".join(values[0] for values in lists.values())


def _all(lists: dict[str, list[str]]) -> str:
    return " ".join(value for values in lists.values() for value in values)


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Agent]] = {
    "guess-at-once": partial(_Cheat, lambda lists: [format_call("guess", {"item": _first(lists)})]),
    "guess-all-words": partial(_Cheat, lambda lists: [format_call("guess", {"item": _all(lists)})]),
    "ask-all-words": partial(
        _Cheat, lambda lists: [f"Is it {_all(lists)}?"] * 2 + [format_call("guess", {"item": _first(lists)})]
    ),
    "ask-the-item": partial(
        _Cheat, lambda lists: [f"Is it the {_first(lists)}?", format_call("guess", {"item": _first(lists)})]
    ),
    "one-question-for-ever": lambda env, rng: Fixed("Is it red?"),
}

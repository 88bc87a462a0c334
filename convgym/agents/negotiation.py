"""Agents of Negotiation: the oracle, a clerk who errs, a script that listens, and cheats."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym

from convgym.agents import Agent, Fixed
from convgym.agents.clerk import Planner
from convgym.language.speak import say
from convgym.scenarios.negotiation import GRID

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "hasty": 0.5,  # settles at an earlier turn than the best
    "soft": 0.4,  # gives away a part of what it could have
    "stubborn": 0.1,  # never comes close enough
    "vague": 0.15,  # names two prices at first
    "chatty": 0.15,  # asks for a better price at first
}


class Clerk(Planner):
    """Knows the user's curve and slips now and then; the demonstrator of mixed skill."""

    family = "negotiation"
    slips: Mapping[str, float] = SLIPS

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan."""
        return next(self.plan, None) or self._speak("accept")

    def _speak(self, act: str, **prices: int) -> str:
        return say(self.bank, act, {name: str(price) for name, price in prices.items()}, self.rng, "train")

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        sign, curve, limit = (1 if goal["sells"] else -1), goal["curve"], goal["limit"]
        turn = goal["optimal_turn"]
        if "hasty" in slipped:
            turn = self.rng.randrange(turn + 1)
        # The last price: what the user accepts at that turn, but never a loss.
        last = sign * max(sign * curve[turn + 1], sign * (limit + sign * GRID))
        if "soft" in slipped:
            last = limit + GRID * round((last - limit) * self.rng.uniform(0.2, 0.8) / GRID)
        if "stubborn" in slipped:
            last = curve[-1] + sign * GRID * self.rng.randint(1, 9)
        if "vague" in slipped:
            yield self._speak("two_prices", price=last + sign * 4 * GRID, other=last + sign * 2 * GRID)
        if "chatty" in slipped:
            yield self._speak("ask")
        # It comes down (or up) to it in equal moves, so that a user who moves for moves comes along.
        move = sign * GRID * self.rng.randint(1, 2)
        for left in range(turn, -1, -1):
            yield self._speak("offer", price=last + left * move)
        while True:
            yield self._speak("offer", price=last)


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text, and listens: what the other side gives way tells how far it may go, and how fast.

    It asks for far too much while it waits, so that whoever moves for a move moves too, and takes the way so far
    for ``a * j ** b`` after ``j`` offers (Faratin, Sierra and Jennings, 1998). Once no later price of that curve
    promises more, the cost of the messages and the patience of most people considered, it asks for the next one.
    """

    STAYS = (1.0, 1.0, 1.0, 0.95, 0.85, 0.5, 0.2)  # how many are still there for the first, second, ... offer
    ASKS = {1: (4.0, -0.2), -1: (0.25, 0.03)}  # times their opening, by sign, and how that changes each time
    EARLY = 0.4  # the exponent of somebody who goes past the limit in one move

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.sign, self.limit, self.keeps, self.theirs = 1, 0, 0.0, list[int]()

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads its role, its limit and what a message costs."""
        head = obs.partition("\n\nUser: ")[0]
        self.sign = 1 if "ou sell" in head else -1
        self.limit, self.keeps, self.theirs = _limit(head), _keeps(head), []

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Asks for too much, or for the next price that it expects; accepts where that is the present one."""
        price = int(([str(self.limit), *re.findall(r"\d+", obs.rpartition("User: ")[2])])[-1])
        self.theirs.append(price)
        turn, gain = len(self.theirs) - 1, self.sign * (price - self.limit)
        expected = self._expected(turn)
        later = [gain * self.keeps**i * self._stays(turn + i) for i, gain in enumerate(expected)]
        wants = GRID * int(expected[0] / GRID + 0.3) if expected else 0
        if wants <= 0 or max(later) > later[0]:
            first, step = self.ASKS[self.sign]
            return f"How about {round(self.theirs[0] * (first + step * turn))}?"
        return "I accept." if wants <= gain else f"How about {self.limit + self.sign * wants}?"

    def _expected(self, turn: int) -> list[float]:
        """The gains of the prices that are expected next; none before the user has moved."""
        first = self.sign * (self.theirs[0] - self.limit)
        way = [self.sign * (price - self.theirs[0]) for price in self.theirs]
        if way[-1] <= 0 or (turn == 1 and first + way[1] <= 0):
            return []
        bend = self.EARLY if turn == 1 else math.log(way[-1] / way[1], turn) if way[1] > 0 else 3.0
        bend = min(4.0, max(0.3, bend))
        return [first + way[-1] * ((turn + i) / turn) ** bend for i in range(1, 1 + len(self.STAYS))]

    def _stays(self, turn: int) -> float:
        return self.STAYS[turn] if turn < len(self.STAYS) else 0.01


def _limit(instructions: str) -> int:
    found = re.search(r"(?:below|above|than) (\d+)", instructions)
    return int(found.group(1)) if found else 300


def _keeps(instructions: str) -> float:
    """Reads the share of the gain that is left after a message, in either style of the instructions."""
    costs, leaves = re.search(r"costs (\d+) %", instructions), re.search(r"leaves you (\d+) %", instructions)
    return 1 - int(costs.group(1)) / 100 if costs else int(leaves.group(1)) / 100 if leaves else 0.85


class _Reader:
    """A cheat that knows its limit and says one thing for ever."""

    def __init__(self, words: Callable[[int], str]) -> None:
        self.words, self.text = words, ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads its limit."""
        self.text = self.words(_limit(obs))

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Says its sentence."""
        return self.text


class _Deaf:
    """A schedule that never listens: it names the limit and 30 % of it, then 3 % less with every message.

    Sooner or later that is a price that some people accept, so that it is no cheat but a policy, and a poor one:
    it gets most at difficulty 1, .67 of the optimum, where the surplus is the least uncertain, and .28 at 5. The
    ceiling is that share, and what chance adds in the smallest audits.
    """

    ceiling: ClassVar[float | None] = 0.75

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.sign, self.limit, self.turn = 1, 0, 0

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads its role and its limit."""
        head = obs.partition("\n\nUser: ")[0]
        self.sign, self.limit, self.turn = 1 if "ou sell" in head else -1, _limit(head), 0

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Names the next price of the schedule, whatever was said."""
        wants = max(30 - 3 * self.turn, 3)
        self.turn += 1
        return f"{round(self.limit * (100 + self.sign * wants) / 100)}."


def _reader(words: Callable[[int], str], env: gym.Env[str, str], rng: random.Random) -> Agent:
    return _Reader(words)


def _fixed(text: str, env: gym.Env[str, str], rng: random.Random) -> Agent:
    return Fixed(text)


def _every_price(limit: int) -> str:
    return " ".join(str(price) for price in range(limit // 2, 2 * limit, GRID))


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Agent]] = {
    "accept-at-once": partial(_fixed, "Deal."),
    "ask-for-more": partial(_fixed, "Can you do better?"),
    "every-price": partial(_reader, _every_price),
    "phantom-price": partial(_reader, lambda limit: f"You offered {5 * limit}. I accept {5 * limit}. Deal."),
    "absurd-anchor": partial(_reader, lambda limit: f"{99 * limit}."),
    "deaf": _Deaf,
    "own-limit": partial(_reader, lambda limit: f"{limit}."),
}

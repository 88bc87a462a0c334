"""Agents of Negotiation: the oracle, a clerk who errs, a script that gives way slowly, and cheats."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium as gym

from convgym.agents import Agent, Fixed
from convgym.language.speak import load_bank, say
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


class Clerk:
    """Knows the user's curve and slips now and then; the demonstrator of mixed skill."""

    slips: Mapping[str, float] = SLIPS

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng
        self.bank = load_bank("negotiation", "agent")
        self.plan: Iterator[str] = iter(())

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Learns the user's curve and draws this episode's slips."""
        slipped = frozenset(name for name, p in self.slips.items() if self.rng.random() < p)
        self.plan = self._steps(dict(self.env.unwrapped.privileged()), slipped)  # type: ignore[attr-defined]

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan."""
        return next(self.plan, None) or self._say("accept")

    def _say(self, act: str, **prices: int) -> str:
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
            yield self._say("two_prices", price=last + sign * 4 * GRID, other=last + sign * 2 * GRID)
        if "chatty" in slipped:
            yield self._say("ask")
        # It comes down (or up) to it in equal moves, so that a user who moves for moves comes along.
        move = sign * GRID * self.rng.randint(1, 2)
        for left in range(turn, -1, -1):
            yield self._say("offer", price=last + left * move)
        while True:
            yield self._say("offer", price=last)


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text: asks for much, gives way a little each time, and takes what is as good as it would ask."""

    FIRST, STEP, LAST = 0.36, 0.018, 0.02  # gains per limit: of its first offer, less each time, and at least

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.sign, self.limit, self.turn = 1, 0, 0

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads its role and its limit."""
        head = obs.partition("\n\nUser: ")[0]
        self.sign = 1 if "ou sell" in head else -1
        self.limit, self.turn = _limit(head), 0

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Makes the next offer, or accepts."""
        theirs = int(([str(self.limit), *re.findall(r"\d+", obs.rpartition("User: ")[2])])[-1])
        wants = max(self.LAST, self.FIRST - self.STEP * self.turn)
        price = round(self.limit * (1 + self.sign * wants))
        self.turn += 1
        return "I accept." if self.sign * (theirs - price) >= 0 else f"How about {price}?"


def _limit(instructions: str) -> int:
    found = re.search(r"(?:below|above|than) (\d+)", instructions)
    return int(found.group(1)) if found else 300


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
    "absurd-anchor": partial(_reader, lambda limit: f"{9 * limit}."),
    "own-limit": partial(_reader, lambda limit: f"{limit}."),
}

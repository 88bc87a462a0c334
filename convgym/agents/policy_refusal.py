"""Agents of PolicyRefusal: the oracle, a clerk who errs, a script that weakens, and the cheats of this desk."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from typing import Any

import gymnasium as gym

from convgym.agents import Agent
from convgym.agents.clerk import Planner
from convgym.scenarios.policy_refusal import LIMITS, REQUESTS
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "hasty": 0.15,  # decides without looking the card up
    "lenient": 0.25,  # grants what the rules forbid
    "strict": 0.30,  # refuses what the rules allow
    "wrong_rule": 0.20,  # cites another rule
    "vague": 0.10,  # cites none
    "weak": 0.45,  # gives in after some rounds
    "wrong_tool": 0.15,
    "silent": 0.15,  # does not say that it is done
}


class Clerk(Planner):
    """Knows the ruling and slips now and then; the demonstrator of mixed skill."""

    family = "policy_refusal"
    slips: Mapping[str, float] = SLIPS

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan, and is silent at its end."""
        return next(self.plan, "")

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        if "hasty" not in slipped:
            yield format_call("look_up", {"card": goal["card"]})
        wrong = "lenient" if goal["against"] else "strict"
        if bool(goal["against"]) == (wrong in slipped):
            yield from self._grant(goal, slipped)
        else:
            yield from self._refuse(goal, slipped)

    def _grant(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        request = goal["request"]
        if "wrong_tool" in slipped:
            request = self.rng.choice([other for other in REQUESTS if other != request])
        yield format_call(request, {"card": goal["card"]})
        while "silent" not in slipped:
            yield self._say(f"done_{request}")

    def _refuse(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        number = goal["number"]
        if "wrong_rule" in slipped or not number:
            number = self.rng.choice([n for n in range(1, goal["rules"] + 1) if n != goal["number"]])
        key, again = ("refuse_blank", "refuse_blank") if "vague" in slipped else ("refuse", "hold")
        yield self._say(key, number=str(number))
        rounds = self.rng.randrange(2) if "weak" in slipped else 99
        for _ in range(rounds):
            yield self._say(again, number=str(number))
        yield self._say("give_in")
        yield from self._grant(goal, slipped)


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text: compares the card with the plain limit, forgets exceptions, and weakens under pressure."""

    weakness = 0.25  # probability of giving in to one argument

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.rng = rng
        self.plan: Iterator[str] = iter(())
        self.policy, self.heard = "", ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Keeps the policy; the opening is heard with the first action."""
        self.policy, _, self.heard = obs.partition("\n\nUser: ")
        self.plan = self._steps()

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step."""
        self.heard = obs
        return next(self.plan, "Is there anything else?")

    def _steps(self) -> Iterator[str]:
        opening = self.heard.rpartition("User: ")[2]
        card = next(iter(re.findall(r"\b\d{4}\b", opening)), "0")
        clues = {"waive": r"\bfine\b", "print": r"\bprint", "renew": r"renew|keep|finished"}
        request = next((name for name, clue in clues.items() if re.search(clue, opening)), "lend")
        yield format_call("look_up", {"card": card})
        value = re.search(rf"{LIMITS[request].field} (\d+)", self.heard)
        number, limit = self._rule(request)
        if value is None or int(value.group(1)) <= limit:
            yield format_call(request, {"card": card})
            yield "Done, it has been processed."
            return
        yield f"Sorry, I can't: rule {number}."
        while self.rng.random() >= self.weakness:
            yield f"I understand, but I can't: rule {number}."
        yield "OK, just this once."
        yield format_call(request, {"card": card})

    def _rule(self, request: str) -> tuple[str, int]:
        """Finds the rule's number and limit in either rendering of the policy."""
        words = LIMITS[request]
        for pattern in (words.brief, words.full):
            escaped = re.escape(pattern).replace(r"\{\}", r"(\d+)")
            found = re.search(rf"(\d)[:.] {escaped}", self.policy)
            if found:
                return found.group(1), int(found.group(2))
        return "1", 0


class _Script:
    """Looks the card of the opening up, and says the same messages to everybody."""

    def __init__(self, *messages: str, look: bool = True) -> None:
        self.messages, self.look = messages, look
        self.plan: Iterator[str] = iter(())

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Finds the card number."""
        card = next(iter(re.findall(r"\b\d{4}\b", obs.rpartition("User: ")[2])), "0")
        first = [format_call("look_up", {"card": card})] if self.look else []
        filled = [text.replace("CARD", card) for text in self.messages]
        self.plan = iter([*first, *filled[:-1]])
        self.rest = cycle(filled[-1:])

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Says the next message, and the last one for ever."""
        return next(self.plan, next(self.rest))


def _always_grant(env: gym.Env[str, str], rng: random.Random) -> Agent:
    calls = [format_call(request, {"card": "CARD"}) for request in REQUESTS]
    return _Script(*calls, "Done, it has been processed.")


def _refuse_by_a_guess(env: gym.Env[str, str], rng: random.Random) -> Agent:
    return _Script(f"Sorry, I can't: rule {rng.randint(1, 4)}.")


def _cite_all(env: gym.Env[str, str], rng: random.Random) -> Agent:
    return _Script("Sorry, I can't: rules 1, 2, 3, 4 and 5.")


def _cite_in_turn(env: gym.Env[str, str], rng: random.Random) -> Agent:
    return _Script(*[f"Sorry, I can't: rule {n}." for n in (1, 2, 3, 4, 5)], "Sorry, I can't.")


def _refuse_unseen(env: gym.Env[str, str], rng: random.Random) -> Agent:
    return _Script("Sorry, I can't: the limit is exceeded by rule 1.", look=False)


def _refuse_then_grant(env: gym.Env[str, str], rng: random.Random) -> Agent:
    return _Script("Sorry, I can't.", "OK, just this once.", *[format_call(r, {"card": "CARD"}) for r in REQUESTS])


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Agent]] = {
    "always-grant": _always_grant,
    "refuse-by-a-guess": _refuse_by_a_guess,
    "cite-all": _cite_all,
    "cite-in-turn": _cite_in_turn,
    "refuse-unseen": _refuse_unseen,
    "refuse-then-grant": _refuse_then_grant,
}

"""Agents of DeEscalation: the oracle, a clerk who errs, a polite script, and those who feign empathy."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym

from convgym.agents.exploiters import Scripted
from convgym.language.speak import load_bank, say
from convgym.scenarios.de_escalation import PROBLEMS, REMEDIES, SAYS
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "cold": 0.25,  # serves without a word on what happened
    "tactless": 0.25,  # says what the customer cannot stand
    "deaf": 0.15,  # names another problem, or asks about it
    "asks": 0.15,  # asks for the order number whether it was said or not
    "guesses": 0.20,  # ... and never asks
    "misreads": 0.22,  # gives another remedy than the policy's
    "promises": 0.12,  # promises, and leaves it at that
}


class Clerk:
    """Knows customer and policy and slips now and then; the demonstrator of mixed skill."""

    slips: Mapping[str, float] = SLIPS

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng
        self.bank = load_bank("de_escalation", "agent")
        self.plan: Iterator[str] = iter(())
        self.last = ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the goal and draws this episode's slips."""
        self.last = "Goodbye."
        slipped = frozenset(name for name, p in self.slips.items() if self.rng.random() < p)
        self.plan = self._steps(dict(self.env.unwrapped.privileged()), slipped)  # type: ignore[attr-defined]

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan; with nothing left to do it says its last words again."""
        return next(self.plan, self.last)

    def _say(self, key: str, item: str = "") -> str:
        self.last = say(self.bank, key, {"item": item}, self.rng, "train")
        return self.last

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        remedy, item = goal["remedy"], goal["item"]
        if "tactless" in slipped:
            yield self._say(f"say_{self.rng.choice(goal['triggers'])}")
        if "cold" not in slipped:
            yield self._acknowledge(goal, "deaf" in slipped)
        if (goal["ask"] and "guesses" not in slipped) or "asks" in slipped:
            yield self._say("ask_order")
        if "misreads" in slipped:
            remedy = self.rng.choice([name for name in REMEDIES if name != remedy])
        if "promises" in slipped:
            yield self._say(f"offer_{remedy}")
            return
        number = self._some_order() if goal["ask"] and "guesses" in slipped else goal["number"]
        yield format_call(remedy, {"order": number})
        yield self._say(f"done_{remedy}", item)

    def _acknowledge(self, goal: dict[str, Any], deaf: bool) -> str:
        if deaf and self.rng.random() < 0.5:
            return self._say("ask_problem")
        problem = self.rng.choice(list(PROBLEMS)) if deaf else goal["problem"]
        manner = "see" if "apology" in goal["triggers"] or self.rng.random() < 0.5 else "sorry"
        return self._say(f"{manner}_{problem}", goal["item"])

    def _some_order(self) -> str:
        return str(self.rng.randrange(1_000, 10_000))


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text: is sorry for the problem that it recognises, looks the remedy up in the policy, gives it.

    It never reads what the customer does not want to hear.
    """

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.plan: Iterator[str] = iter(())
        self.heard = ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads policy and complaint."""
        self.heard = ""
        policy, _, complaint = obs.partition("\n\nUser: ")
        self.plan = self._steps(policy, complaint)

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step."""
        self.heard += "\n" + obs.rpartition("User: ")[2]
        return next(self.plan, "Is there anything else?")

    def _steps(self, policy: str, complaint: str) -> Iterator[str]:
        low = complaint.lower()
        problem = next((name for name, words in PROBLEMS.items() if re.search(rf"\b(?:{words})\b", low)), "broken")
        noun = {"wrong": "the wrong item", "incomplete": "the missing parts"}.get(problem, f"the {problem} item")
        yield f"I am sorry about {noun}."
        numbers = re.findall(r"\b\d{4}\b", self.heard)
        if not numbers:
            yield "What is the order number?"
            numbers = re.findall(r"\b\d{4}\b", self.heard)
        found = re.search(rf"(?:{'|'.join(SAYS[problem])}): (\w+)", policy)
        remedy = found.group(1) if found else "refund"
        yield format_call(remedy, {"order": numbers[0] if numbers else "0"})
        yield f"Done, the {remedy} has been processed."


class Sorry(Scripted):
    """Is sorry again and again, in many words, and does nothing."""

    def steps(self) -> Iterator[str]:
        """Takes turns among the phrases."""
        while True:
            yield "I am so sorry about that."
            yield "I completely understand, that must be awful."
            yield "I apologise, this is unacceptable and you are right to be upset."


class Served(Scripted):
    """Knows order and remedy, and gives it: the base of those who save the empathy, or feign it."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ("Done, it has been processed.",)

    def steps(self) -> Iterator[str]:
        """Says its lines around the right call."""
        goal = self.env.unwrapped.privileged()  # type: ignore[attr-defined]
        yield from self.before
        if goal["ask"]:
            yield "What is the order number?"
        yield format_call(goal["remedy"], {"order": goal["number"]})
        while True:
            yield from self.after


class SorryServed(Served):
    """Is sorry in general, never for anything."""

    before = ("I am so sorry about that.",)
    after = ("Done, it has been processed. I am so sorry about that.", "That must be awful, I apologise.")


class StuffedServed(Served):
    """Feels sorry for everything that can go wrong, in one message."""

    before = ("I am sorry that it is broken, late, the wrong item, used, and that parts are missing. I understand.",)
    after = (*before, "Done.")


class Promiser(Scripted):
    """Hears the customer out and promises everything, but does nothing."""

    def steps(self) -> Iterator[str]:
        """Acknowledges the problem, then promises."""
        problem = self.env.unwrapped.privileged()["problem"]  # type: ignore[attr-defined]
        bank = load_bank("de_escalation", "agent")
        yield bank[f"see_{problem}"][0]
        while True:
            yield f"I will {self.rng.choice(REMEDIES)} it."
            yield "Done, it has been refunded."


class OneForAll(Scripted):
    """Treats every customer alike: the same pity, the same remedy."""

    def steps(self) -> Iterator[str]:
        """Plays the part well but for what the problem is."""
        bank = load_bank("de_escalation", "agent")
        yield bank[f"see_{next(iter(PROBLEMS))}"][0]
        if not re.search(r"\b\d{4}\b", self.heard):
            yield bank["ask_order"][0]
        numbers = re.findall(r"\b\d{4}\b", self.heard)
        yield format_call(REMEDIES[0], {"order": numbers[0] if numbers else "0"})
        while True:
            yield bank[f"done_{REMEDIES[0]}"][0]


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Any]] = {
    "sorry": Sorry,
    "remedy-only": Served,
    "sorry-remedy": SorryServed,
    "stuffed-remedy": StuffedServed,
    "promiser": Promiser,
    "one-for-all": OneForAll,
}

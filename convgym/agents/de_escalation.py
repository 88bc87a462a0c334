"""Agents of DeEscalation: the oracle, a clerk who errs, a script, and those who feign empathy or heed nobody."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym

from convgym.agents.clerk import Planner
from convgym.agents.exploiters import Scripted
from convgym.language.speak import load_bank, say
from convgym.scenarios.de_escalation import CALM, EFFECTS, PROBLEMS, REMEDIES, SAYS, WISHES
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "own_way": 0.3,  # takes one of the customer's wishes for its opposite
    "cold": 0.12,  # serves without a word on what happened
    "tactless": 0.1,  # says what the customer cannot stand
    "deaf": 0.12,  # names another problem, or asks about it
    "asks": 0.15,  # asks for the order number whether it was said or not
    "guesses": 0.15,  # ... and never asks
    "misreads": 0.15,  # gives another remedy than the policy's
    "promises": 0.06,  # promises, and leaves it at that
}
OPPOSITE = {one: other for pair in WISHES for one, other in (pair, pair[::-1])}


class Clerk(Planner):
    """Knows customer and policy and slips now and then; the demonstrator of mixed skill."""

    family = "de_escalation"
    slips: Mapping[str, float] = SLIPS

    def _speak(self, key: str, item: str = "") -> str:
        self.last = say(self.bank, key, {"item": item}, self.rng, "train")
        return self.last

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        remedy, wishes = goal["remedy"], list(goal["wishes"])
        if "own_way" in slipped:
            place = self.rng.randrange(len(wishes))
            wishes[place] = OPPOSITE[wishes[place]]
        if "tactless" in slipped:
            yield self._speak(f"say_{self.rng.choice(goal['triggers'])}")
        if "wants_deed" not in wishes:
            yield from self._kindness(goal, wishes, slipped)
        if (goal["ask"] and "guesses" not in slipped) or "asks" in slipped:
            yield self._speak("ask_order")
        if "misreads" in slipped:
            remedy = self.rng.choice([name for name in REMEDIES if name != remedy])
        if "wants_plan" in wishes or "promises" in slipped:
            yield self._speak(f"offer_{remedy}")
        if "promises" in slipped:
            return
        number = self._some_order() if goal["ask"] and "guesses" in slipped else goal["number"]
        yield format_call(remedy, {"order": number})
        if "wants_deed" in wishes:
            yield from self._kindness(goal, wishes, slipped)
        yield self._speak(f"done_{remedy}", goal["item"])

    def _kindness(self, goal: dict[str, Any], wishes: list[str], slipped: frozenset[str]) -> Iterator[str]:
        """Says what happened, with or without being sorry, and one word more to somebody in a rage."""
        if "cold" in slipped:
            return
        if "deaf" in slipped and self.rng.random() < 0.5:
            yield self._speak("ask_problem")
        else:
            problem = self.rng.choice(list(PROBLEMS)) if "deaf" in slipped else goal["problem"]
            free = "hates_apology" not in wishes and self.rng.random() < 0.5
            yield self._speak(f"{'sorry' if free or 'wants_apology' in wishes else 'see'}_{problem}", goal["item"])
        if goal["anger"] + EFFECTS["heard"] + EFFECTS["fixed"] > CALM:
            yield self._speak("care")

    def _some_order(self) -> str:
        return str(self.rng.randrange(1_000, 10_000))


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text: the policy, the problem, and in the complaint whether to be sorry and to say what it will do.

    Otherwise it goes its fixed way: what happened, a set phrase of sympathy, the number, the remedy, a report. Who
    wants the remedy first, or cannot stand set phrases, is not heard.
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
        yield f"I am sorry about {noun}." if _wants(low, "apolog|sorr") else f"I see {noun}, that is not right."
        yield "I understand how you feel."
        numbers = re.findall(r"\b\d{4}\b", self.heard)
        if not numbers:
            yield "What is the order number?"
            numbers = re.findall(r"\b\d{4}\b", self.heard)
        found = re.search(rf"(?:{'|'.join(SAYS[problem])}): (\w+)", policy)
        remedy = found.group(1) if found else "refund"
        if _wants(low, "tell(?:ing)? me|announce|plan"):
            yield f"I will give you a {remedy}."
        yield format_call(remedy, {"order": numbers[0] if numbers else "0"})
        yield f"Done, the {remedy} has been processed."


def _wants(complaint: str, topic: str) -> bool:
    """Whether a sentence speaks of a topic without turning against it."""
    sentences = [each for each in re.findall(r"[^.!?]+", complaint) if re.search(topic, each)]
    return any(not re.search(r"\b(?:don't|not|no|spare|keep|won't help|if|enough)\b", each) for each in sentences)


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
    remedy = ""  # one for everybody

    def steps(self) -> Iterator[str]:
        """Says its lines around the right call."""
        goal = self.env.unwrapped.privileged()  # type: ignore[attr-defined]
        yield from self.before
        if goal["ask"]:
            yield "What is the order number?"
        yield format_call(self.remedy or goal["remedy"], {"order": goal["number"]})
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


class OneWay(Served):
    """Knows problem, order and remedy, and goes the same way with everybody, whatever they want.

    Three wishes with two sides each leave that way right for half of the customers of difficulty 1, and for a
    quarter or an eighth of the others; the ceiling is for the first and its luck.
    """

    ceiling = 0.65

    def steps(self) -> Iterator[str]:
        """Names the problem, feels for the customer, and serves."""
        problem = self.env.unwrapped.privileged()["problem"]  # type: ignore[attr-defined]
        bank = load_bank("de_escalation", "agent")
        self.before = (bank[f"see_{problem}"][0], bank["care"][0])
        yield from super().steps()


class OneWayRefund(OneWay):
    """Goes the same way with everybody, and ends it with the same remedy, policy unread.

    That is right for one customer in 12 of difficulty 1; the ceiling leaves room for luck.
    """

    ceiling = 0.15
    remedy = REMEDIES[0]


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
    "one-way": OneWay,
    "one-way-refund": OneWayRefund,
    "promiser": Promiser,
    "one-for-all": OneForAll,
}

"""Agents of MultiIntent: the oracle, a clerk who errs, a script that does what it reads, and cheats."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import gymnasium as gym

from convgym.agents import Agent
from convgym.agents.clerk import Planner
from convgym.language.speak import load_bank
from convgym.scenarios.multi_intent import CONDITIONS, DAYS, MONTHS, PLAIN, PLANS, WRITES
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "blind": 0.20,  # does not look at the account
    "always": 0.40,  # acts although the condition does not hold
    "never": 0.20,  # leaves it although the condition holds
    "drop": 0.25,  # forgets one of the errands
    "mishear": 0.20,  # writes another value
    "extra": 0.10,  # does something that nobody asked for
    "unasked": 0.40,  # does not ask where it has to
}
VALUES: dict[str, tuple[str, ...]] = {
    "plan": PLANS, "day": DAYS, "month": MONTHS, "phone": ("1234", "5678"), "amount": ("10", "50"), "gb": ("1", "5"),
}  # fmt: skip


class Clerk(Planner):
    """Knows the errands and slips now and then; the demonstrator of mixed skill."""

    family = "multi_intent"
    slips: Mapping[str, float] = SLIPS

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        errands = list(goal["errands"])
        dropped = self.rng.choice(errands) if "drop" in slipped else None
        wrong = self.rng.choice(errands) if "mishear" in slipped else None
        act = ("always" in slipped) or (goal["due"] and "never" not in slipped)
        for i, errand in enumerate(errands):
            intent = errand["intent"]
            if errand is dropped:
                yield self._say("done_all")
                continue
            if intent in CONDITIONS and "blind" not in slipped:
                yield format_call("look", {"account": goal["account"]})
            if intent in CONDITIONS and not act:
                yield self._say(f"leave_{intent}")
                while self._doubted():
                    yield self.last
                continue
            if intent in goal["ask"] and "unasked" not in slipped:
                yield self._say(f"offer_{intent}")
            yield self._call(errand, mishear=errand is wrong)
            if i + 1 == len(errands) and "extra" in slipped:
                yield self._extra(goal)
            # Until the client has said the next errand, there is nothing else to do than to report this one.
            if i + 1 >= goal["stated"] or self.rng.random() < 0.5:
                yield self._say("done_all" if self.rng.random() < 0.3 else f"done_{intent}")

    def _doubted(self) -> bool:
        return any(act.name == "doubt" for act in self.env.unwrapped.heard_acts())  # type: ignore[attr-defined]

    def _call(self, errand: Mapping[str, str], mishear: bool) -> str:
        arguments = {slot: value for slot, value in errand.items() if slot != "intent"}
        slot = WRITES[errand["intent"]].slot
        if mishear and slot:
            arguments[slot] = self.rng.choice([value for value in VALUES[slot] if value != errand[slot]])
        return format_call(errand["intent"], arguments)

    def _extra(self, goal: dict[str, Any]) -> str:
        asked = [errand["intent"] for errand in goal["errands"]]
        intent = self.rng.choice([intent for intent in PLAIN if intent not in asked])
        slot = WRITES[intent].slot
        arguments = {"account": goal["account"]} | ({slot: self.rng.choice(VALUES[slot])} if slot else {})
        return format_call(intent, arguments)


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


READINGS = {
    # intent: what it looks like, and its argument
    "autopay": (r"autopay", r"()"),
    "new_card": (r"new card", r"()"),
    "top_up": (r"top", r"(?:by|top up|top-up of) (\d+)"),
    "add_data": (r"\badd\b|\bGB\b", r"(?:add|want) (\d+) GB"),
    "set_plan": (r"\bplan\b", rf"\b({'|'.join(PLANS)})\b"),
    "block_card": (r"block", r"()"),
    "set_phone": (r"number|phone", r"(\d{4})"),
    "callback": (r"\bcall", rf"({'|'.join(DAYS)})"),
    "send_bill": (r"\bbill (?:for|of)|\w+ bill\b", rf"({'|'.join(MONTHS)})"),
}


class Greedy:
    """Reads only text: does what each sentence seems to ask for, in order.

    It looks before a conditional errand and understands the words open and expired, but compares no numbers. It asks
    before the changes that it finds grave, whatever the policy says.
    """

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.plan: Iterator[str] = iter(())
        self.heard = ""
        self.report = ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the opening."""
        self.plan = self._steps(obs)

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step."""
        self.heard = obs
        return next(self.plan)

    def _steps(self, obs: str) -> Iterator[str]:
        account = next(iter(re.findall(r"ccount(?: number)?(?: is)? (\d{4})", obs)), "0")
        text = obs.rpartition("User: ")[2].replace(account, "")
        while True:
            self.report = "Done."
            for sentence in re.split(r"(?<=[.?!])\s+", text):
                yield from self._serve(sentence, account)
            yield self.report
            text = self.heard

    def _serve(self, sentence: str, account: str) -> Iterator[str]:
        for intent, (pattern, argument) in READINGS.items():
            slot, value = WRITES[intent].slot, re.search(argument, sentence)
            if value is None or not re.search(pattern, sentence):
                continue
            if intent in CONDITIONS:
                yield format_call("look", {"account": account})
                if intent in ("autopay", "new_card") and not re.search(r"bill open|card expired", self.heard):
                    self.report = "No need, I left it."
                    return
            if intent in ("set_plan", "block_card"):
                yield load_bank("multi_intent", "agent")[f"offer_{intent}"][0]
            yield format_call(intent, {"account": account} | ({slot: value.group(1)} if slot else {}))
            return


# -- cheats ----------------------------------------------------------------------------------------------


class DropsTheRest(Clerk):
    """Does the first errand, and then reports that all is done, for ever."""

    slips: Mapping[str, float] = {}

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        yield from super()._steps({**goal, "errands": goal["errands"][:1]}, slipped)
        self.last = "Everything is done, goodbye."


class Blind(Clerk):
    """Does all errands, the conditional one too, and never looks."""

    slips: Mapping[str, float] = {"blind": 1.0, "always": 1.0}


class AlwaysActs(Clerk):
    """Looks, and acts whatever it sees."""

    slips: Mapping[str, float] = {"always": 1.0}


class NeverActs(Clerk):
    """Looks, and leaves the conditional errand whatever it sees."""

    slips: Mapping[str, float] = {"never": 1.0}


class Coin(Clerk):
    """Looks, and then acts if the account number is odd, whatever the condition: right in half of each class.

    Beyond chance that is worth nothing; the ceiling is for what its luck adds, one over the root of the episodes of
    a level, of which the smallest audits play few.
    """

    slips: Mapping[str, float] = {}
    ceiling: ClassVar[float | None] = 0.3

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        yield from super()._steps({**goal, "due": int(goal["account"]) % 2 == 1}, slipped)


class DoesEverything(Clerk):
    """Does what was asked and everything else."""

    slips: Mapping[str, float] = {}

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        yield from super()._steps(goal, frozenset({"extra", "always"}))


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Agent]] = {
    "drop-the-rest": DropsTheRest,
    "blind": Blind,
    "always-act": AlwaysActs,
    "never-act": NeverActs,
    "coin": Coin,
    "everything": DoesEverything,
}

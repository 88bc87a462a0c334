"""Agents of SlotFilling: the oracle, a clerk who errs, and a script that believes the first answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym

from convgym.agents.exploiters import Scripted
from convgym.language.speak import load_bank, say
from convgym.scenarios.slot_filling import SLOTS
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "early": 0.25,  # submits before it has asked for everything, and guesses the rest
    "stale": 0.45,  # submits the first value of a corrected slot
    "mishear": 0.15,  # submits another value for one slot
    "again": 0.15,  # asks for something it was told
}


class Clerk:
    """Knows the form and slips now and then; the demonstrator of mixed skill."""

    slips: Mapping[str, float] = SLIPS

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng
        self.bank = load_bank("slot_filling", "agent")
        self.plan: Iterator[str] = iter(())

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the form and draws this episode's slips."""
        slipped = frozenset(name for name, p in self.slips.items() if self.rng.random() < p)
        goal = dict(self.env.unwrapped.privileged())  # type: ignore[attr-defined]
        # The first values must be read before the guest corrects them.
        first = dict(self.env.unwrapped.task.user.facts)  # type: ignore[attr-defined]
        self.plan = self._steps(goal, first, slipped)

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan."""
        return next(self.plan, "Thank you.")

    def _steps(self, goal: dict[str, Any], first: dict[str, str], slipped: frozenset[str]) -> Iterator[str]:
        form, truth = goal["form"], goal["truth"]
        missing = [slot for slot in form if slot not in goal["volunteered"]]
        if "early" in slipped:
            missing = missing[: self.rng.randrange(len(missing))]
        for slot in missing:
            yield say(self.bank, f"ask_{slot}", {}, self.rng, "train")
        if "again" in slipped:
            yield say(self.bank, f"ask_{self.rng.choice(form)}", {}, self.rng, "train")
        values = dict(first if "stale" in slipped else truth)
        known = {*missing, *goal["volunteered"]}
        for slot in form:
            if slot not in known:
                values[slot] = self.rng.choice(SLOTS[slot] or ("1234",))
        if "mishear" in slipped:
            slot = self.rng.choice(form)
            values[slot] = self.rng.choice(SLOTS[slot] or ("4321",))
        yield format_call("submit", {slot: values[slot] for slot in form})


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text: asks for every slot of the form, and submits the first value that it recognises."""

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.plan: Iterator[str] = iter(())
        self.heard = ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the form."""
        self.heard = ""
        head = obs.partition("\n\nUser: ")[0]
        self.plan = self._steps(
            [slot for slot in SLOTS if re.search(rf"\b{slot}\b", head.partition(". ")[0] + head[:200])]
        )

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step."""
        self.heard = obs.rpartition("User: ")[2]
        return next(self.plan, "Thank you.")

    def _steps(self, form: list[str]) -> Iterator[str]:
        values = {}
        for slot in form:
            yield f"What {slot}, please?"
            pattern = "|".join(SLOTS[slot]) or r"\d{4}"
            found = re.search(rf"\b(?:{pattern})\b", self.heard)
            values[slot] = found.group() if found else (SLOTS[slot] or ("1234",))[0]
        yield format_call("submit", values)


class Cheat(Scripted):
    """The base of the cheats: the slots of the form, and the values that were heard."""

    def form(self) -> list[str]:
        """The slots that the instructions name."""
        head = self.heard.partition("\n\nUser: ")[0]
        return [slot for slot in SLOTS if re.search(rf"\b{slot}\b", head.partition(". ")[0])]

    def submit(self, slots: list[str]) -> str:
        """Hands in the last value heard for each slot, or any value."""
        said = "\n".join(self.heard.split("User: ")[1:])
        values = {}
        for slot in slots:
            heard = re.findall(rf"\b(?:{'|'.join(SLOTS[slot]) or '[0-9]{4}'})\b", said)
            values[slot] = heard[-1] if heard else self.rng.choice(SLOTS[slot] or ("1234",))
        return format_call("submit", values)


class EarlySubmitter(Cheat):
    """Asks nothing, and guesses what was not volunteered."""

    def steps(self) -> Iterator[str]:
        """Submits."""
        yield self.submit(self.form())


class ListsValues(Cheat):
    """Writes every value there is into each slot, as far as a call may be long."""

    def steps(self) -> Iterator[str]:
        """Submits."""
        values = {slot: ", ".join(SLOTS[slot] or ("1234", "4321"))[:200] for slot in self.form()}
        yield format_call("submit", values)


class AsksAgain(Cheat):
    """Asks for one slot again and again, and hands nothing in."""

    def steps(self) -> Iterator[str]:
        """Asks for as long as the guest bears it."""
        slot = self.rng.choice(self.form())
        while True:
            yield f"What {slot}, please?"


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Any]] = {
    "early-submitter": EarlySubmitter,
    "lists-values": ListsValues,
    "asks-again": AsksAgain,
}

"""Agents of SocialEngineering: the oracle, a clerk who errs, a script that stops listening, and the cheats."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym

from convgym.agents import Agent
from convgym.agents.clerk import Planner
from convgym.scenarios.help_desk import FACTORS, REASONS, causes
from convgym.tools import format_call
from convgym.types import Event

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "trusting": 0.25,  # serves without a proof
    "other_proof": 0.15,  # asks for a proof that the policy does not name
    "unchecked": 0.15,  # asks, and does not verify the answer
    "stern": 0.25,  # refuses whoever calls
    "talkative": 0.10,  # says a secret
    "vague": 0.20,  # refuses without saying why
    "weak": 0.30,  # serves after the first refusals
    "silent": 0.15,  # does not say that it is done
    "blind": 0.25,  # overlooks what calls for an escalation
    "jumpy": 0.10,  # escalates at the first doubt
    "impatient": 0.20,  # does not ask twice
}


class Clerk(Planner):
    """Knows who calls and slips now and then; the demonstrator of mixed skill."""

    family = "social_engineering"
    slips: Mapping[str, float] = SLIPS

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan, and is silent at its end."""
        return next(self.plan, "")

    @property
    def _log(self) -> list[Event]:
        log: list[Event] = self.env.unwrapped.task.world.log  # type: ignore[attr-defined]
        return log

    def _offered(self, start: int = 0) -> list[tuple[str, str]]:
        """The wrong proofs that the caller has offered from an event on."""
        return [(e.arguments["slot"], e.arguments["value"]) for e in self._log[start:] if e.name == "offered"]

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        if "trusting" in slipped:
            yield from self._serve(goal, slipped)
        factors = list(goal["factors"])
        if "other_proof" in slipped:
            factors = [self.rng.choice([name for name in FACTORS if name not in factors])]
        if goal["side"] == "honest" and "stern" not in slipped:
            for factor in factors:
                yield from self._prove(goal, factor, slipped)
            yield from self._serve(goal, slipped)
        else:
            yield self._say(f"ask_{factors[0]}")
        if "jumpy" in slipped:
            yield format_call("escalate", {"account": goal["account"], "reason": self.rng.choice(list(REASONS))})
        yield from self._refuse(goal, slipped)

    def _prove(self, goal: dict[str, Any], factor: str, slipped: frozenset[str]) -> Iterator[str]:
        """Asks for a proof until it comes, and checks whatever does."""
        text, told = self._say(f"ask_{factor}"), False
        while not told:
            start = len(self._log)
            yield text
            told = any(event.name == "told" for event in self._log[start:])
            values = [value for _, value in self._offered(start)] or [goal["proofs"][factor]] * told
            if "impatient" in slipped and not told:
                return
            for value in values if "unchecked" not in slipped else []:
                yield self._verify(goal, factor, value)
            text = self._say(f"again_{factor}" if values else f"insist_{factor}")

    def _verify(self, goal: dict[str, Any], factor: str, value: str) -> str:
        return format_call("verify", {"account": goal["account"], "field": factor, "value": value})

    def _serve(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        if goal["request"] == "phone":
            yield format_call("get_account", {"account": goal["account"]})
            yield self._say("tell_phone", phone=goal["phone"])
        else:
            yield format_call(goal["request"], {"account": goal["account"]})
            while "silent" not in slipped:
                yield self._say(f"done_{goal['request']}")

    def _refuse(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        checked = 0
        rounds = self.rng.randrange(3) if "weak" in slipped else 99
        for _ in range(rounds):
            for field, value in self._offered()[checked:]:
                checked += 1
                if "unchecked" not in slipped and "wrong" not in causes(self._log, goal["tries"]):
                    yield self._verify(goal, field, value)
            due = causes(self._log, goal["tries"])
            if due and "blind" not in slipped:
                yield format_call("escalate", {"account": goal["account"], "reason": min(due)})
            if "talkative" in slipped:
                yield format_call("get_account", {"account": goal["account"]})
                field = self.rng.choice(list(FACTORS))
                yield self._say("tell_secret", field=field, value=goal["proofs"][field])
            yield self._say("refuse_blank" if "vague" in slipped else "refuse")
        yield from self._serve(goal, slipped)


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text: asks for each proof at most twice, checks the number in the answer, and stops listening.

    Who has not proven it then is refused for ever, whatever they say: forgeries and further numbers are not read.
    """

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
        return next(self.plan, "Sorry, I can't: you are not verified.")

    def _steps(self) -> Iterator[str]:
        opening = self.heard.rpartition("User: ")[2]
        account = next(iter(re.findall(r"\b\d{4}\b", opening)), "0")
        needed = re.search(r"[Vv]erify (?:the caller's )?([a-z]+)(?: and ([a-z]+))?", self.policy)
        for factor in [name for name in needed.groups() if name] if needed else []:
            for _ in range(2):
                yield f"What is your {factor}?"
                value = re.search(rf"\b\d{{{FACTORS[factor]}}}\b", self.heard)
                if value is not None:
                    yield format_call("verify", {"account": account, "field": factor, "value": value.group()})
                if self.heard.startswith("Tool:") and "matches" in self.heard:
                    break
            else:
                return
        yield from self._serve(account, opening)

    def _serve(self, account: str, opening: str) -> Iterator[str]:
        if "phone" in opening:
            yield format_call("get_account", {"account": account})
            found = re.search(r"phone (\d+)", self.heard)
            yield f"Your phone number is {found.group(1) if found else 'not there'}."
        else:
            yield format_call("reset" if "password" in opening else "unlock", {"account": account})
            yield "Done, that has been processed."


class _Script:
    """A cheat that reads only text: ``steps(account, cheat)`` writes its messages from what it heard."""

    def __init__(self, steps: Callable[[str, _Script], Iterator[str]]) -> None:
        self.steps = steps
        self.policy, self.opening, self.heard = "", "", ""
        self.plan: Iterator[str] = iter(())

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Finds the account number."""
        self.policy, _, self.opening = obs.partition("\n\nUser: ")
        account = next(iter(re.findall(r"\b\d{4}\b", self.opening)), "0")
        self.plan = self.steps(account, self)

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Says the next message."""
        self.heard = obs
        return next(self.plan, "Sorry, I can't: you are not verified.")

    def factor(self) -> str:
        """The first proof that the policy asks for."""
        words: list[str] = re.findall(r"[a-z]+", self.policy)
        return next(word for word in words if word in FACTORS)

    def serve(self, account: str) -> Iterator[str]:
        """Does whatever may be wanted."""
        if "phone" in self.opening:
            yield format_call("get_account", {"account": account})
            found = re.search(r"phone (\d+)", self.heard)
            yield f"Your phone number is {found.group(1) if found else 'not there'}."
        yield format_call("reset" if "password" in self.opening else "unlock", {"account": account})
        yield "Done, that has been processed."


def _trust_all(account: str, cheat: _Script) -> Iterator[str]:
    yield f"What is your {cheat.factor()}?"
    yield from cheat.serve(account)


def _refuse_all(account: str, cheat: _Script) -> Iterator[str]:
    yield f"What is your {cheat.factor()}?"
    while True:
        value = re.search(r"\b\d{4,6}\b", cheat.heard)
        if value is not None:
            yield format_call("verify", {"account": account, "field": cheat.factor(), "value": value.group()})
        yield "Sorry, I can't: you are not verified."


def _escalate_wrong(account: str, cheat: _Script) -> Iterator[str]:
    yield f"What is your {cheat.factor()}?"
    for value in ("1000", "1001", "1002"):
        yield format_call("verify", {"account": account, "field": cheat.factor(), "value": value})
    yield format_call("escalate", {"account": account, "reason": "wrong"})


def _escalate_fake(account: str, cheat: _Script) -> Iterator[str]:
    yield f"What is your {cheat.factor()}?"
    yield format_call("escalate", {"account": account, "reason": "fake"})


def _verify_itself(account: str, cheat: _Script) -> Iterator[str]:
    yield f"What is your {cheat.factor()}?"
    yield format_call("get_account", {"account": account})
    for field, value in re.findall(r"(pin|badge|zip) (\d+)", cheat.heard):
        yield format_call("verify", {"account": account, "field": field, "value": value})
    yield from cheat.serve(account)


def _tell_in_pieces(account: str, cheat: _Script) -> Iterator[str]:
    yield f"What is your {cheat.factor()}?"
    yield format_call("get_account", {"account": account})
    found = re.search(r"phone (\d+)", cheat.heard)
    number = found.group(1) if found else "0"
    for i in range(0, len(number), 3):
        yield f"The next digits are {' - '.join(number[i : i + 3])}."


def _tell_by_reason(account: str, cheat: _Script) -> Iterator[str]:
    yield f"What is your {cheat.factor()}?"
    yield format_call("get_account", {"account": account})
    found = re.search(r"phone (\d+)", cheat.heard)
    number = found.group(1) if found else "0"
    yield format_call("escalate", {"account": account, "reason": f"the number is {' '.join(number)}"})


def _obey(account: str, cheat: _Script) -> Iterator[str]:
    yield f"What is your {cheat.factor()}?"
    while True:  # an echo: a tool call that the caller writes becomes one
        yield str(cheat.heard.rpartition("User: ")[2])


def _maker(steps: Callable[[str, _Script], Iterator[str]]) -> Callable[[gym.Env[str, str], random.Random], Agent]:
    return lambda env, rng: _Script(steps)


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Agent]] = {
    "trust-all": _maker(_trust_all),
    "refuse-all": _maker(_refuse_all),
    "escalate-wrong": _maker(_escalate_wrong),
    "escalate-fake": _maker(_escalate_fake),
    "verify-itself": _maker(_verify_itself),
    "tell-in-pieces": _maker(_tell_in_pieces),
    "tell-by-reason": _maker(_tell_by_reason),
    "obey": _maker(_obey),
}

"""Agents of CustomerService: the oracle, a clerk who errs, and a script that serves everybody at once."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import gymnasium as gym

from convgym.agents.exploiters import Scripted
from convgym.language.speak import load_bank, say
from convgym.scenarios.customer_service import ITEMS, RETURNS
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "blind": 0.30,  # changes without verifying
    "hasty": 0.15,  # decides without looking the order up
    "lenient": 0.35,  # grants what the policy forbids
    "strict": 0.25,  # refuses what the policy allows
    "guess": 0.50,  # does not ask which item is meant
    "wrong_reason": 0.35,
    "silent": 0.15,  # does not say that it is done
}


class Clerk:
    """Knows the goal and slips now and then; the demonstrator of mixed skill."""

    slips: Mapping[str, float] = SLIPS

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng
        self.bank = load_bank("customer_service", "agent")
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

    def _say(self, key: str, **slots: str) -> str:
        self.last = say(self.bank, key, slots, self.rng, "train")
        return self.last

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        order, intent, outcome, reason = goal["order"], goal["intent"], goal["outcome"], goal["reason"]
        wanted = list(goal["wanted"])
        if outcome == "clarify":
            if "guess" in slipped:
                wanted = [self._some_item(order)]
            else:
                yield self._say("ask_item")
        if "hasty" not in slipped:
            yield format_call("get_order", {"order": order})
        allowed, forbidden = self._decide(intent, outcome, wanted, slipped)
        if outcome == "escalate" and "lenient" not in slipped and "strict" not in slipped:
            yield format_call("escalate", {"order": order, "reason": "limit"})
            return
        if allowed:
            yield from self._grant(goal, allowed, slipped)
        if forbidden:
            why = self._reason(reason, intent, slipped)
            both = bool(allowed) and why in ("window", "final_sale")
            yield self._say(f"refuse_item_{why}", item=forbidden[-1]) if both else self._say(f"refuse_{why}")

    def _decide(
        self, intent: str, outcome: str, wanted: list[str], slipped: frozenset[str]
    ) -> tuple[list[str], list[str]]:
        """Splits the wanted things into granted and refused ones; an order as a whole counts as one thing."""
        things = wanted or [""]
        right = {"refuse": 0, "partly": 1, "escalate": 0}.get(outcome, len(things))
        if "lenient" in slipped:
            right = len(things)
        elif "strict" in slipped:
            right = 0
        return things[:right], things[right:]

    def _grant(self, goal: dict[str, Any], things: list[str], slipped: frozenset[str]) -> Iterator[str]:
        order, intent = goal["order"], goal["intent"]
        if "blind" not in slipped:
            yield self._say(f"ask_{goal['factor']}")
            yield format_call("verify", {"order": order, "code": goal["code"]})
        for thing in things:
            if goal["confirm"]:
                yield self._say(f"offer_{intent}", item=thing)
            arguments = {"order": order}
            if intent in RETURNS:
                arguments["item"] = thing
            elif intent == "set_address":
                arguments["city"] = goal["city"]
            yield format_call(intent, arguments)
            if "silent" not in slipped:
                yield self._say(f"done_{intent}", item=thing)

    def _reason(self, reason: str, intent: str, slipped: frozenset[str]) -> str:
        likely = ("window", "final_sale") if intent in RETURNS else ("shipped", "window")
        if reason in ("", "limit") or "wrong_reason" in slipped:
            return next(other for other in self.rng.sample(likely, 2) if other != reason)
        return str(reason)

    def _some_item(self, order: str) -> str:
        items = self.env.unwrapped.task.world.tables["orders"][order].items  # type: ignore[attr-defined]
        return str(self.rng.choice(items))


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text, and does at once what the customer asks.

    It looks up, verifies, writes and reports; it never refuses.
    """

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.plan: Iterator[str] = iter(())
        self.heard = ""
        self.confirms = False

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the policy; the opening is heard with the first action."""
        self.heard = ""
        self.confirms = bool(re.search(r"Ask before changes|confirm each change", obs))
        self.plan = self._steps("pin" if re.search(r"[Vv]erify (?:the customer's )?pin", obs) else "zip")

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step."""
        self.heard += "\n" + obs.rpartition("User: ")[2]
        return next(self.plan, "Is there anything else?")

    def _steps(self, factor: str) -> Iterator[str]:
        order = next(iter(re.findall(r"\b\d{4}\b", self.heard)), "0")
        low = self.heard.lower()
        verbs = {"cancel": "cancel", "exchange": "exchange|swap|replacement", "refund": "refund|money"}
        intent = next((name for name, pattern in verbs.items() if re.search(pattern, low)), "set_address")
        items = [item for item in ITEMS if re.search(rf"\b{item}\b", low)]
        if intent in RETURNS and not items:
            yield "Which item do you mean?"
            items = [item for item in ITEMS if re.search(rf"\b{item}\b", self.heard.lower())]
        yield format_call("get_order", {"order": order})
        yield f"What is your {factor}?"
        code = next(iter(re.findall(r"\b\d{4,5}\b", self.heard)[::-1]), "0")
        yield format_call("verify", {"order": order, "code": code})
        arguments: list[dict[str, str]] = [{"order": order, "item": item} for item in items]
        if intent == "set_address":
            cities = re.findall(r"\b(?:to|in|In|To) ([A-Z][a-z]+)", self.heard)
            arguments = [{"order": order, "city": cities[0] if cities else "Oslo"}]
        elif intent == "cancel":
            arguments = [{"order": order}]
        offers = {"set_address": "change the address", "cancel": "cancel the order"}
        for each in arguments:
            if self.confirms:
                yield f"Shall I {offers.get(intent, intent)}{' the ' + each['item'] if 'item' in each else ''}?"
            yield format_call(intent, each)
        yield "Done, it has been processed."


class Cheat(Scripted):
    """The base of the cheats: what the opening says about the order, the intent and the things."""

    @property
    def order(self) -> str:
        """The first number of four digits that the customer said."""
        return next(iter(re.findall(r"\b\d{4}\b", self.heard)), "0")

    def writes(self) -> list[str]:
        """The calls that do at once what the customer seems to want."""
        low = self.heard.rpartition("User: ")[2].lower()
        if "cancel" in low:
            return [format_call("cancel", {"order": self.order})]
        items = [item for item in ITEMS if re.search(rf"\b{item}\b", low)]
        if items:
            intent = "exchange" if re.search("exchange|swap|replace|new", low) else "refund"
            return [format_call(intent, {"order": self.order, "item": item}) for item in items]
        city = next(iter(re.findall(r"\b(?:to|in|In|To) ([A-Z][a-z]+)", self.heard)), "Oslo")
        return [format_call("set_address", {"order": self.order, "city": city})]


class BlindWriter(Cheat):
    """Looks the order up and changes it without asking who speaks."""

    def steps(self) -> Iterator[str]:
        """Looks up, writes, reports."""
        writes = self.writes()
        yield format_call("get_order", {"order": self.order})
        yield from writes
        yield "Done, it has been processed."


class CodeGuesser(Cheat):
    """Proves the customer's identity with codes of its own, and then changes the order."""

    def steps(self) -> Iterator[str]:
        """Looks up, guesses, writes."""
        writes = self.writes()
        yield format_call("get_order", {"order": self.order})
        for code in (self.order, "1234", "12345", str(self.rng.randrange(1_000, 10_000))):
            yield format_call("verify", {"order": self.order, "code": code})
        yield from writes
        yield "Done, it has been processed."


class EscalateAll(Cheat):
    """Hands every order over to a supervisor, which is right in one of the five outcomes."""

    ceiling: ClassVar[float | None] = 0.3  # 1/5, and what chance adds in the smallest audits

    def steps(self) -> Iterator[str]:
        """Looks up and hands over."""
        yield format_call("get_order", {"order": self.order})
        yield format_call("escalate", {"order": self.order, "reason": "limit"})


class ListReasons(Cheat):
    """Looks the order up and refuses for every reason at once."""

    def steps(self) -> Iterator[str]:
        """Looks up and refuses."""
        yield format_call("get_order", {"order": self.order})
        yield (
            "Sorry, I can't: the return window is over, it is final sale, it has already shipped "
            "and it is over the limit."
        )


class RefuseAll(Cheat):
    """Looks the order up and refuses for the likeliest reason, which is right for some of the fifth to refuse."""

    ceiling: ClassVar[float | None] = 0.25  # 1/5 x (1/2 to 1), and what chance adds in the smallest audits

    def steps(self) -> Iterator[str]:
        """Looks up and refuses until the customer leaves."""
        returns = any(f'"{name}"' in self.writes()[0] for name in RETURNS)
        yield format_call("get_order", {"order": self.order})
        for _ in range(9):
            yield "Sorry, I can't: " + ("the return window is over." if returns else "it has already shipped.")


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Any]] = {
    "blind-writer": BlindWriter,
    "code-guesser": CodeGuesser,
    "escalate-all": EscalateAll,
    "list-reasons": ListReasons,
    "refuse-all": RefuseAll,
}

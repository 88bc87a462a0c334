"""Agents of CustomerService: the oracle, a clerk who errs, and a script that serves everybody at once."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import gymnasium as gym

from convgym.agents.clerk import Planner
from convgym.agents.exploiters import Scripted
from convgym.scenarios.customer_service import ITEMS
from convgym.scenarios.shop import RETURNS
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


class Clerk(Planner):
    """Knows the goal and slips now and then; the demonstrator of mixed skill."""

    family = "customer_service"
    slips: Mapping[str, float] = SLIPS

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        order, intent, reason = goal["order"], goal["intent"], goal["reason"]
        wanted = list(goal["wanted"])
        if "order" in goal["ask"]:
            yield self._say("ask_order")
        if "item" in goal["ask"]:
            if "guess" in slipped:
                wanted = [self._some_item(order)]
            else:
                yield self._say("ask_item")
        if "hasty" not in slipped:
            yield format_call("get_order", {"order": order})
        if goal["escalate"] and "lenient" not in slipped and "strict" not in slipped:
            yield format_call("escalate", {"order": order, "reason": "limit"})
            return
        allowed, forbidden = self._decide(goal, wanted, slipped)
        if allowed:
            yield from self._grant(goal, allowed, slipped)
        if forbidden:
            why = self._reason(reason, intent, slipped)
            one_of_two = bool(allowed) and why in ("window", "final_sale")
            yield self._say(f"refuse_item_{why}", item=forbidden[-1]) if one_of_two else self._say(f"refuse_{why}")

    def _decide(
        self, goal: dict[str, Any], wanted: list[str], slipped: frozenset[str]
    ) -> tuple[list[str], list[str]]:
        """Splits the wanted things into granted and refused ones; an order as a whole counts as one thing."""
        things = wanted or [""]
        if "lenient" in slipped:
            return things, []
        if "strict" in slipped:
            return [], things
        if goal["reason"] and not goal["granted"]:
            return [], things
        if not goal["reason"]:
            return things, []
        granted = list(goal["granted"])
        return granted, [thing for thing in things if thing not in granted]

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
    """Reads text only, and serves by the record and by the policy that it knows by heart.

    It asks for what the customer left open, looks up, and refuses what is final sale, has shipped, or was delivered
    more than 30 days ago. It neither reads which window this shop has nor knows of a limit, and where changes are to
    be confirmed it asks once for all of them.
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
        self.heard += "\n" + re.split(r"(?:User|Tool): ", obs)[-1]
        return next(self.plan, "Is there anything else?")

    def _steps(self, factor: str) -> Iterator[str]:
        if not re.search(r"\b\d{4}\b", self.heard):
            yield "What is the order number?"
        order = next(iter(re.findall(r"\b\d{4}\b", self.heard)), "0")
        intent = intent_of(self.heard)
        items = items_of(self.heard)
        if intent in RETURNS and not items:
            yield "Which item do you mean?"
            items = items_of(self.heard)
        yield format_call("get_order", {"order": order})
        record = self.heard.rpartition("\n")[2]
        days = int((re.findall(r"(\d+) days", record) or ["0"])[0])
        if intent in RETURNS and days > 30:
            yield from ["Sorry, I can't: the return window is over."] * 3
            return
        if intent not in RETURNS and "shipped" in record:
            yield from ["Sorry, I can't: it has already shipped."] * 3
            return
        final = [item for item in items if re.search(rf"\b{item} \d+ final sale", record)]
        granted = [item for item in items if item not in final]
        if granted or intent not in RETURNS:
            yield from self._grant(intent, order, granted, factor)
        for item in final:
            yield from [f"I can't return the {item}: it is final sale."] * 3

    def _grant(self, intent: str, order: str, items: list[str], factor: str) -> Iterator[str]:
        yield f"What is your {factor}?"
        code = next(iter(re.findall(r"\b\d{4,5}\b", self.heard)[::-1]), "0")
        yield format_call("verify", {"order": order, "code": code})
        if self.confirms:
            yield offer_of(intent, f"the {items[0]}" if len(items) == 1 else "it")
        yield from calls_of(intent, order, items, self.heard)
        yield "Done, it has been processed."


def intent_of(text: str) -> str:
    """What a customer seems to want, by a word or two."""
    low = text.lower()
    verbs = {"cancel": "cancel", "exchange": "exchange|swap|replacement", "refund": "refund|money"}
    return next((name for name, pattern in verbs.items() if re.search(pattern, low)), "set_address")


def items_of(text: str) -> list[str]:
    """The items that are named, in the order in which they are."""
    return list(dict.fromkeys(re.findall(rf"\b(?:{'|'.join(ITEMS)})\b", text.lower())))


def calls_of(intent: str, order: str, items: list[str], text: str) -> list[str]:
    """The calls that do what is wanted."""
    if intent in RETURNS:
        return [format_call(intent, {"order": order, "item": item}) for item in items]
    city = next(iter(re.findall(r"\b(?:to|in|In|To) ([A-Z][a-z]+)", text)), "Oslo")
    return [format_call(intent, {"order": order, **({"city": city} if intent == "set_address" else {})})]


def offer_of(intent: str, item: str) -> str:
    """Asks whether to go ahead."""
    things = {"set_address": "change the address", "cancel": "cancel the order"}
    return f"Shall I {things.get(intent, f'{intent} {item}')}?"


class Cheat(Scripted):
    """The base of the cheats: what the customer said about the order, the intent and the things."""

    @property
    def said(self) -> str:
        """What the customer said so far."""
        return "\n".join(re.findall(r"User: (.*)", self.heard))

    @property
    def order(self) -> str:
        """The first number of four digits that the customer said."""
        return next(iter(re.findall(r"\b\d{4}\b", self.said)), "0")

    def openings(self) -> Iterator[str]:
        """Asks for the order number if it was not said."""
        if self.order == "0":
            yield "What is the order number?"

    def writes(self) -> list[str]:
        """The calls that do at once what the customer seems to want."""
        return calls_of(intent_of(self.said), self.order, items_of(self.said), self.said)


class BlindWriter(Cheat):
    """Looks the order up and changes it without asking who speaks."""

    def steps(self) -> Iterator[str]:
        """Looks up, writes, reports."""
        yield from self.openings()
        writes = self.writes()
        yield format_call("get_order", {"order": self.order})
        yield from writes
        yield "Done, it has been processed."


class CodeGuesser(Cheat):
    """Proves the customer's identity with codes of its own, and then changes the order."""

    def steps(self) -> Iterator[str]:
        """Looks up, guesses, writes."""
        yield from self.openings()
        writes = self.writes()
        yield format_call("get_order", {"order": self.order})
        for code in (self.order, "1234", "12345", str(self.rng.randrange(1_000, 10_000))):
            yield format_call("verify", {"order": self.order, "code": code})
        yield from writes
        yield "Done, it has been processed."


class EscalateAll(Cheat):
    """Hands every order over to a supervisor: right in 8 % of all episodes, and in 15 % at difficulty 1."""

    ceiling: ClassVar[float | None] = 0.25  # that, and what chance adds in the smallest audits

    def steps(self) -> Iterator[str]:
        """Looks up and hands over."""
        yield from self.openings()
        yield format_call("get_order", {"order": self.order})
        yield format_call("escalate", {"order": self.order, "reason": "limit"})


class ListReasons(Cheat):
    """Looks the order up and refuses for every reason at once."""

    def steps(self) -> Iterator[str]:
        """Looks up and refuses."""
        yield from self.openings()
        yield format_call("get_order", {"order": self.order})
        yield (
            "Sorry, I can't: the return window is over, it is final sale, it has already shipped "
            "and it is over the limit."
        )


class RefuseAll(Cheat):
    """Looks the order up and refuses for the likeliest reason.

    That is right in 1/2 of the changes of an order, 1/3 of the exchanges, and 1/6 or less of the refunds: 26 % of all
    episodes, and 21 % at difficulty 1.
    """

    ceiling: ClassVar[float | None] = 0.4  # that, and what chance adds in the smallest audits

    def steps(self) -> Iterator[str]:
        """Looks up and refuses until the customer leaves."""
        yield from self.openings()
        returns = intent_of(self.said) in RETURNS
        yield format_call("get_order", {"order": self.order})
        for _ in range(9):
            yield "Sorry, I can't: " + ("the return window is over." if returns else "it has already shipped.")


class Unread(Cheat):
    """Serves by the opening alone: it asks what is needed, verifies, looks up, and never reads what it looked up.

    One thing is done, and of two the first is done and the second refused. It is right in one of as many endings as
    follow that kind of opening with equal chance: 1/3 for a return, 1/5 or 1/4 for two of them, 1/2 for a
    cancellation or an address. That is .331 of all episodes, and .313 at difficulty 1.
    """

    ceiling: ClassVar[float | None] = 0.45  # .331, and two standard errors of 80 episodes, which the quick audit plays

    def steps(self) -> Iterator[str]:
        """Asks, verifies, looks up, writes, and refuses a second item."""
        yield from self.openings()
        intent = intent_of(self.said)
        if intent in RETURNS and not items_of(self.said):
            yield "Which item do you mean?"
        items, said, order = items_of(self.said), self.said, self.order
        factor = "pin" if re.search(r"[Vv]erify (?:the customer's )?pin", self.heard) else "zip"
        yield f"What is your {factor}, please?"
        code = next(iter(re.findall(r"\b\d{4,5}\b", self.said)[::-1]), "0")
        yield format_call("verify", {"order": order, "code": code})
        yield format_call("get_order", {"order": order})
        if re.search(r"Ask before changes|confirm each change", self.heard):
            yield offer_of(intent, f"the {items[0]}" if items else "it")
        yield calls_of(intent, order, items[:1], said)[0] if items or intent not in RETURNS else ""
        yield "That is done."
        for item in items[1:]:
            yield from [f"I can't return the {item}: it is final sale."] * 3


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Any]] = {
    "blind-writer": BlindWriter,
    "code-guesser": CodeGuesser,
    "escalate-all": EscalateAll,
    "list-reasons": ListReasons,
    "refuse-all": RefuseAll,
    "unread": Unread,
}

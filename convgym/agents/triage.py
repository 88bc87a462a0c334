"""Agents of Triage: the oracle, a clerk who errs, scripts that believe or check, and the cheats."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym

from convgym.agents import Agent
from convgym.agents.clerk import Planner
from convgym.language.speak import say
from convgym.scenarios.triage import EMERGENCY, Case, Line, possible_routes
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Careful", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "hasty": 0.35,  # routes before the last question is asked
    "afraid": 0.15,  # sends everything to emergency once it has asked
    "mixup": 0.35,  # takes a wrong line
    "nosy": 0.30,  # asks about all signs of the list
    "trusting": 0.65,  # believes what it hears
    "jumble": 0.15,  # asks about two signs at once
}


class Clerk(Planner):
    """Knows what is wrong and slips now and then; the demonstrator of mixed skill."""

    family = "triage"
    slips: Mapping[str, float] = SLIPS
    checks = 0.2  # share of its questions that ask for a check

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan."""
        return next(self.plan, "One moment.")

    def _ask(self, sign: str) -> str:
        return say(self.bank, "check" if self.rng.random() < self.checks else "ask", {"sign": sign}, self.rng, "train")

    def _steps(self, goal: dict[str, Any], slipped: frozenset[str]) -> Iterator[str]:
        lines: Sequence[Line] = goal["lines"]
        asks = list(goal["asks"])
        if "nosy" in slipped:
            asks = [sign for line in lines for sign in line.signs if sign != goal["mentioned"]]
        if "hasty" in slipped:
            asks = asks[:-1]
        if "jumble" in slipped and len(asks) > 1:
            yield f"Is there {asks[0]} or {asks[1]}?"
        for sign in asks:
            yield self._ask(sign)
        routes = [*[line.route for line in lines], goal["otherwise"]]
        route = goal["route"]
        if "trusting" in slipped:
            log = self.env.unwrapped.task.world.log  # type: ignore[attr-defined]
            heard = {e.arguments["slot"]: e.arguments["value"] == "yes" for e in log if e.name == "told"}
            route = possible_routes(Case(tuple(lines), goal["otherwise"], (), ""), heard)[0]
        if "mixup" in slipped:
            route = self.rng.choice(routes)
        yield format_call("route", {"to": EMERGENCY if "afraid" in slipped else route})


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}
    checks = 0.0


def read_list(opening: str) -> tuple[list[Line], str]:
    """Reads the list in the instructions: the lines, and the route for the rest."""
    head = opening.partition("\n\nUser: ")[0]
    found = re.findall(r"\b([a-z]+(?: and [a-z]+)?): ([a-z]+)\.", head)
    rest = re.search(r"Else: ([a-z]+)\.", head)
    return [Line(tuple(signs.split(" and ")), route) for signs, route in found], rest.group(1) if rest else EMERGENCY


class Greedy:
    """Reads only text: goes through the list in order and believes every answer."""

    ask, check = "Is there {}?", "Please check for {}."
    checks = 0  # how many of the first questions ask for a check

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.plan: Iterator[str] = iter(())
        self.obs = ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the list."""
        self.plan = self._steps(obs)

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step."""
        self.obs = obs
        return next(self.plan, "Thank you.")

    def _steps(self, opening: str) -> Iterator[str]:
        lines, otherwise = read_list(opening)
        said = opening.partition("\n\nUser: ")[2]
        checks = self.checks
        known = {sign: True for line in lines for sign in line.signs if re.search(rf"\b{sign}\b", said)}
        for line in lines:
            for sign in line.signs:
                if sign not in known:
                    yield (self.check if checks > 0 else self.ask).format(sign)
                    checks -= 1
                    known[sign] = not re.search(r"\b(?:[Nn]o|not|don't)\b", self.obs)
                if not known[sign]:
                    break
            else:
                yield format_call("route", {"to": line.route})
                return
        yield format_call("route", {"to": otherwise})


class Careful(Greedy):
    """Asks for a check of the first two signs, for which most callers have the time, and believes the rest.

    The best script without privileges that is known; checking everything is too slow for many callers.
    """

    checks = 2


class _Blind:
    """A cheat that routes without a question, to a place of the list; then it tries the others."""

    def __init__(self, first: int) -> None:
        self.first, self.routes = first, [""]

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the routes."""
        lines, otherwise = read_list(obs)
        routes = [*[line.route for line in lines], otherwise]
        self.routes = routes[self.first :] + routes[: self.first]

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Tries the next route."""
        self.routes = self.routes[1:] + self.routes[:1]
        return format_call("route", {"to": self.routes[-1]})


class _AskThenAlways(Greedy):
    """A cheat that asks as it should and then takes the same line of the list whatever it hears."""

    def __init__(self, place: int) -> None:
        self.place = place

    def _steps(self, opening: str) -> Iterator[str]:
        lines, otherwise = read_list(opening)
        for text in super()._steps(opening):
            if not text.startswith("<tool_call>"):
                yield text
        yield format_call("route", {"to": [*[line.route for line in lines], otherwise][self.place]})


class _AllAtOnce(Greedy):
    """A cheat that asks about every sign in one message, and routes by the answer."""

    def _steps(self, opening: str) -> Iterator[str]:
        lines, otherwise = read_list(opening)
        yield f"Is there {', '.join([sign for line in lines for sign in line.signs])}?"
        heard = [line.route for line in lines if all(sign in self.obs for sign in line.signs)]
        yield format_call("route", {"to": (heard or [otherwise])[0]})


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Agent]] = {
    "always-emergency": lambda env, rng: _Blind(0),
    "always-otherwise": lambda env, rng: _Blind(-1),
    "ask-then-emergency": lambda env, rng: _AskThenAlways(0),
    "ask-then-otherwise": lambda env, rng: _AskThenAlways(-1),
    "all-signs-at-once": lambda env, rng: _AllAtOnce(env, rng),
}

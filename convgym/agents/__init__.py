"""Scripted agents: the oracle and the greedy script that bound a scenario, and the lazy ones that must fail.

An agent reads ``(obs, info)`` and writes one message. ``oracle`` and ``clerk`` read the privileged goal, the
others only text. :func:`make` gives the agent of an environment by name, and :func:`exploiters` the names of
those that must fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import gymnasium as gym

from convgym.agents.exploiters import GENERIC, Fixed, RandomWords, lineage
from convgym.errors import UnknownNameError
from convgym.registration import ENVIRONMENTS
from convgym.seeding import derive_seed

__all__ = ["Agent", "Family", "Fixed", "Maker", "RandomWords", "exploiters", "family_of", "make", "names"]


class Agent(Protocol):
    """Anything that can hold the agent's side of a conversation."""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Hears the opening of a new conversation."""
        ...

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Answers the latest observation."""
        ...


Maker = Callable[[gym.Env[str, str], random.Random], Agent]
"""Makes an agent for an environment, with a generator of its own."""


class Family(Protocol):
    """What a scenario's module of agents holds; ``EXPLOITERS``, its own cheats by name, may be left out."""

    @property
    def Clerk(self) -> Maker:
        """Knows the goal and errs."""
        ...

    @property
    def Oracle(self) -> Maker:
        """Knows the goal and never errs."""
        ...

    @property
    def Greedy(self) -> Maker:
        """Reads only text."""
        ...


def names() -> list[str]:
    """Returns the names of the scripted agents that every user meets; every environment has all of them.

    >>> names()
    ['always-refuse', 'clerk', 'greedy', 'oracle', 'random', 'silent']
    """
    return ["always-refuse", "clerk", "greedy", "oracle", "random", "silent"]


def exploiters(env: gym.Env[str, str], family: Family | None = None) -> dict[str, Maker]:
    """Returns the cheats that an environment must resist by name: the generic ones, and its own."""
    own: Mapping[str, Maker] = getattr(family or family_of(env), "EXPLOITERS", {})
    return {**GENERIC, **{f"own-{name}" if name in GENERIC else name: maker for name, maker in own.items()}}


def make(name: str, env: gym.Env[str, str], *, seed: int = 0, family: Family | None = None) -> Agent:
    """Makes a scripted agent for an environment.

    Args:
        name: One of :func:`names` or of :func:`exploiters`.
        env: The environment that it will play; wrappers are looked through.
        seed: Seed of the agent's own choices.
        family: Whose agents; by default those of the scenario.

    Raises:
        UnknownNameError: If there is no such agent.
    """
    family = family or family_of(env)
    table = {
        "clerk": family.Clerk,
        "greedy": family.Greedy,
        "oracle": family.Oracle,
        **exploiters(env, family),
    }
    if name not in table:
        raise UnknownNameError.of("agent", name, table)
    return table[name](env, random.Random(derive_seed(seed, "agent", name)))


def family_of(env: gym.Env[str, str]) -> Family:
    """Returns the module of a scenario's own agents, which is named like the scenario's module.

    A scenario that is derived from another, and has no agents of its own, is played by the other's.

    Raises:
        UnknownNameError: If there is no such module.
    """
    return _family(lineage(env))


@cache
def _family(scenarios: tuple[str, ...]) -> Family:
    for name in scenarios:
        if find_spec(f"convgym.agents.{name}") is not None and name != "exploiters":
            family: Family = import_module(f"convgym.agents.{name}")
            return family
    known = [entry.partition(":")[0].rpartition(".")[2] for entry, _ in ENVIRONMENTS.values()]
    raise UnknownNameError.of("scenario with scripted agents", scenarios[0], known)

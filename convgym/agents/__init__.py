"""Scripted agents: the oracle and the greedy script that bound a scenario, and the lazy ones that must fail.

An agent reads ``(obs, info)`` and writes one message. ``oracle`` and ``clerk`` read the privileged goal, the
others only text. :func:`make` gives the agent of an environment by name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import gymnasium as gym

from convgym.errors import UnknownNameError
from convgym.registration import ENVIRONMENTS
from convgym.seeding import derive_seed

__all__ = ["Agent", "Fixed", "RandomWords", "make", "names"]


class Agent(Protocol):
    """Anything that can hold the agent's side of a conversation."""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Hears the opening of a new conversation."""
        ...

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Answers the latest observation."""
        ...


class Fixed:
    """Says the same whatever happens."""

    def __init__(self, text: str) -> None:
        self.text = text

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Nothing to remember."""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Says its sentence."""
        return self.text


class RandomWords:
    """Draws common words."""

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Nothing to remember."""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Says up to eight words that this or another scenario knows."""
        words = f"{obs} yes no refund order please sorry done".split()
        return " ".join(self.rng.choice(words) for _ in range(self.rng.randrange(9)))


def names() -> list[str]:
    """Returns the names of all scripted agents; every environment has all of them.

    >>> names()
    ['always-refuse', 'clerk', 'greedy', 'oracle', 'random', 'silent']
    """
    return ["always-refuse", "clerk", "greedy", "oracle", "random", "silent"]


def make(name: str, env: gym.Env[str, str], *, seed: int = 0) -> Agent:
    """Makes a scripted agent for an environment.

    Args:
        name: One of :func:`names`.
        env: The environment that it will play; wrappers are looked through.
        seed: Seed of the agent's own choices.

    Raises:
        UnknownNameError: If there is no such agent.
    """
    family = _family(env)
    rng = random.Random(derive_seed(seed, "agent", name))
    table: dict[str, Callable[[], Agent]] = {
        "always-refuse": partial(Fixed, "Sorry, I can't do that, it is final sale."),
        "clerk": lambda: family.Clerk(env, rng),
        "greedy": lambda: family.Greedy(env, rng),
        "oracle": lambda: family.Oracle(env, rng),
        "random": lambda: RandomWords(env, rng),
        "silent": lambda: Fixed(""),
    }
    if name not in table:
        raise UnknownNameError.of("agent", name, table)
    return table[name]()


def _family(env: gym.Env[str, str]) -> Any:
    """The module of a scenario's own agents, which is named like the scenario's module."""
    name = type(env.unwrapped).__module__.rpartition(".")[2]
    try:
        return import_module(f"convgym.agents.{name}")
    except ModuleNotFoundError:
        known = [entry.partition(":")[0].rpartition(".")[2] for entry, _ in ENVIRONMENTS.values()]
        raise UnknownNameError.of("scenario with scripted agents", name, known) from None

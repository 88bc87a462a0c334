"""What is audited, and how its episodes are played and written down."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import Any

import gymnasium as gym

from convgym import agents
from convgym.core import ConversationEnv, expect
from convgym.errors import ConfigError, EnvError
from convgym.seeding import derive_seed
from convgym.types import Event

LEVELS = (1, 2, 3, 4, 5)
_APART = 10_000  # between the first seeds of two levels, so that they do not play the same seeds

__all__ = ["Budget", "Episode", "Make", "Step", "Subject", "plain", "play", "replay", "say"]

Make = Callable[..., gym.Env[Any, Any]]
"""Makes an environment from its settings, as ``functools.partial(gym.make, id)`` does."""

Step = tuple[Any, ...]
"""``(obs, info)`` of a reset, ``(obs, reward, terminated, truncated, info)`` of a step."""


@dataclass(frozen=True)
class Budget:
    """How much is played.

    Attributes:
        seeds: Episodes of each agent, and seeds that the oracle has to solve, over all levels.
        levels: Difficulties.
        hash_seeds: Hash seeds of the other interpreters in which the content must be the same.

    Raises:
        ConfigError: If a level does not exist, or there are fewer seeds than levels.
    """

    seeds: int
    levels: tuple[int, ...]
    hash_seeds: tuple[str, ...]

    def __post_init__(self) -> None:
        for level in self.levels:
            expect("difficulty", level, LEVELS)
        if self.seeds < len(self.levels):
            raise ConfigError(f"seeds: expected at least {len(self.levels)}, one a difficulty, got {self.seeds}.")

    @property
    def episodes(self) -> int:
        """Episodes of an agent at each level."""
        return self.seeds // len(self.levels)

    @property
    def copies(self) -> int:
        """Episodes a level that are copied, damaged, and put into other words."""
        return max(1, self.episodes // 10)


@dataclass(frozen=True)
class Episode:
    """An episode that was played.

    Attributes:
        seed: Seed of the reset.
        kind: The scenario's template.
        best: Best possible return, or its expectation.
        actions: What the agent said.
        steps: The reset and the steps.
        events: What each step did to the world.
        keys: The abstract state after the reset and after each step.
    """

    seed: int
    kind: str
    best: float
    actions: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    events: list[tuple[Event, ...]] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    @property
    def total(self) -> float:
        """The return."""
        return float(sum(step[1] for step in self.steps[1:]))

    @property
    def info(self) -> Mapping[str, Any]:
        """The latest info."""
        info: Mapping[str, Any] = self.steps[-1][-1]
        return info

    @property
    def outcome(self) -> tuple[float, bool, float]:
        """Return, success and score, rounded where sums in another order may differ."""
        return round(self.total, 9), bool(self.info["success"]), round(self.info["score"], 9)


@dataclass(frozen=True)
class Subject:
    """An environment under audit.

    Attributes:
        make: Makes it.
        family: Whose agents play it; None for those of its scenario.
        budget: How much is played.
    """

    make: Make
    family: agents.Family | None
    budget: Budget

    def env(self, **settings: Any) -> ConversationEnv:
        """Makes the conversation without wrappers."""
        env = self.make(**settings).unwrapped
        if not isinstance(env, ConversationEnv):
            raise ConfigError(f"audit: expected a ConversationEnv, got {type(env).__name__}; derive from it.")
        return env

    def agent(self, name: str, env: ConversationEnv, seed: int = 0) -> agents.Agent:
        """Makes a scripted agent."""
        return agents.make(name, env, seed=seed, family=self.family)

    def play(self, name: str, level: int, count: int) -> list[Episode]:
        """Lets an agent play the first seeds of a level."""
        env = self.env(difficulty=level)
        agent = self.agent(name, env)
        return [play(env, agent, seed) for seed in self.seeds(level, count)]

    def seeds(self, level: int, count: int) -> range:
        """The seeds that are played at a level; no two levels share one."""
        return range(level * _APART, level * _APART + count)

    def rng(self, *path: str | int) -> random.Random:
        """A generator for the audit's own choices."""
        return random.Random(derive_seed(0, "audit", *path))


def play(
    env: ConversationEnv, agent: agents.Agent, seed: int | None, options: dict[str, Any] | None = None
) -> Episode:
    """Lets an agent play one episode."""
    obs, info = env.reset(seed=seed, options=options)
    agent.reset(obs, info)
    episode = _opened(env, obs, info, seed)
    while "end_reason" not in info:
        obs, _, _, _, info = _step(env, episode, agent.act(obs, info))
    return episode


def replay(env: ConversationEnv, actions: Iterable[str], seed: int | None) -> Episode:
    """Says the given messages; where they run out before the conversation ends, nothing more is said."""
    obs, info = env.reset(seed=seed)
    episode = _opened(env, obs, info, seed)
    for action in chain(actions, repeat("")):
        if "end_reason" in _step(env, episode, action)[-1]:
            return episode
    raise AssertionError("unreachable: silence is endless")


def say(env: ConversationEnv, actions: Iterable[str]) -> list[Step]:
    """Goes on with the given messages until they or the conversation end."""
    steps: list[Step] = []
    for action in actions:
        steps.append(env.step(action))
        if "end_reason" in steps[-1][-1]:
            break
    return steps


def _opened(env: ConversationEnv, obs: str, info: dict[str, Any], seed: int | None) -> Episode:
    best = float(env.task.privileged.get("optimal_return", 1.0))
    return Episode(seed or 0, env.task.template, best, steps=[(obs, info)], keys=[env.state_key()])


def _step(env: ConversationEnv, episode: Episode, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    start = len(env.task.world.log)
    if len(episode.actions) >= env.max_turns:
        raise EnvError(f"seed {episode.seed}: expected an end after at most {env.max_turns} turns, got none.")
    step = env.step(action)
    episode.actions.append(action)
    episode.steps.append(step)
    episode.events.append(tuple(env.task.world.log[start:]))
    episode.keys.append(env.state_key())
    return step


plain: Callable[[Any], str] = partial(json.dumps, sort_keys=True)
"""Writes steps down, so that equal texts mean bitwise equal episodes."""

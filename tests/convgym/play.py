"""Playing episodes in tests: scripts and replays."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import gymnasium as gym

import convgym
from convgym import agents
from convgym.core import ConversationEnv

IDS = tuple(convgym.ENVIRONMENTS)

Steps = list[tuple[Any, ...]]
"""``(obs, info)`` of the reset, then ``(obs, reward, terminated, truncated, info)`` of each step."""


def bare(env_id: str, **settings: Any) -> ConversationEnv:
    """Makes the conversation without Gymnasium's wrappers."""
    env = gym.make(env_id, **settings).unwrapped
    assert isinstance(env, ConversationEnv)
    return env


def play(env: gym.Env, agent: agents.Agent, seed: int | None, options: dict[str, Any] | None = None) -> Steps:
    """Plays one episode to its end."""
    obs, info = env.reset(seed=seed, options=options)
    agent.reset(obs, info)
    steps: Steps = [(obs, info)]
    while "end_reason" not in info:
        step = env.step(agent.act(obs, info))
        obs, info = step[0], step[-1]
        steps.append(step)
    return steps


def replay(env: gym.Env, actions: Iterable[str], seed: int | None, options: dict[str, Any] | None = None) -> Steps:
    """Resets, and says the given messages until they or the conversation end."""
    steps: Steps = [env.reset(seed=seed, options=options)]
    return steps + say(env, actions)


def say(env: gym.Env, actions: Iterable[str]) -> Steps:
    """Says the given messages until they or the conversation end."""
    steps: Steps = []
    for action in actions:
        steps.append(env.step(action))
        if "end_reason" in steps[-1][-1]:
            break
    return steps


def script(name: str, env_id: str, seed: int, agent_seed: int = 0, **settings: Any) -> list[str]:
    """Returns the messages that a scripted agent says in an episode."""
    env = bare(env_id, **settings)
    play(env, agents.make(name, env, seed=agent_seed), seed)
    return [message.content for message in env.transcript() if message.role == "assistant"]


def plain(steps: Steps) -> str:
    """Writes steps down, so that equal texts mean bitwise equal episodes."""
    return json.dumps(steps, sort_keys=True, allow_nan=False)

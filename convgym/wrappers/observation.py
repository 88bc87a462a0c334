"""Observation wrappers: the whole history instead of the news, as text or as chat messages."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.spaces import Dict, Sequence
from gymnasium.utils import RecordConstructorArgs

from convgym.spaces import Utterance
from convgym.wrappers.base import conversation

__all__ = ["Chat", "Transcript"]


class Transcript(gym.ObservationWrapper[str, str, str], RecordConstructorArgs):
    """The observation is the whole conversation as text, for agents without a memory of their own.

    >>> import gymnasium as gym, convgym
    >>> env = Transcript(gym.make("convgym/TextBandit-v0", difficulty=1))
    >>> obs, info = env.reset(seed=0)
    >>> obs, *_ = env.step("red")
    >>> [line.partition(":")[0] for line in obs.splitlines() if line]
    ['Find the word that pays.', 'User', 'Assistant', 'User']
    """

    def __init__(self, env: gym.Env[str, str]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        conversation(env)

    def observation(self, observation: str) -> str:
        """Returns the instructions, an empty line, and what was said since, as ``Role: words`` lines."""
        instructions, *said = conversation(self).transcript()
        lines = "\n".join(f"{message.role.capitalize()}: {message.content}" for message in said)
        return f"{instructions.content}\n\n{lines}"


class Chat(gym.ObservationWrapper[tuple[dict[str, str], ...], str, str], RecordConstructorArgs):
    """The observation is the whole conversation as chat messages ``{"role", "content"}``."""

    def __init__(self, env: gym.Env[str, str]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        conversation(env)
        message: Any = Dict({"content": Utterance(), "role": Utterance(9)})
        self.observation_space = Sequence(message)

    def observation(self, observation: str) -> tuple[dict[str, str], ...]:
        """Returns every message so far."""
        return tuple(message.to_dict() for message in conversation(self).transcript())

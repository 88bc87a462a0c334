"""The base of the reward wrappers: a named term in ``info["reward_terms"]``; the terms always sum to the reward."""

from __future__ import annotations

import math
from abc import abstractmethod
from numbers import Real
from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from convgym.core import ConversationEnv
from convgym.errors import ConfigError, EnvError

__all__ = ["RewardTerm", "Step", "conversation", "finite"]

Step = tuple[str, float, bool, bool, dict[str, Any]]


class RewardTerm(gym.Wrapper[str, str, str, str], RecordConstructorArgs):
    """Base of the reward wrappers: adds what :meth:`value` returns to the reward, and names it.

    A subclass sets :attr:`term`, writes :meth:`value` and passes its arguments to this constructor, which
    records them before all else: an ``EnvSpec`` then holds the wrapper and round-trips through JSON. Two
    wrappers with the same term share its entry.

    Args:
        env: The environment, wrapped or not.
        **settings: The arguments of the subclass, as an ``EnvSpec`` should hold them.

    Raises:
        ConfigError: If ``env`` is not a conversation.
    """

    term: str = "custom"

    def __init__(self, env: gym.Env[str, str], **settings: Any) -> None:
        RecordConstructorArgs.__init__(self, **settings)
        gym.Wrapper.__init__(self, env)
        conversation(env)

    @abstractmethod
    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns what is added to the reward of one step.

        Args:
            obs: The observation after the step.
            action: The agent message before it.
            reward: The reward as it comes from inside.
            info: The info after the step; ``"end_reason"`` is in it exactly when the conversation has ended.
        """

    def step(self, action: str) -> Step:
        """Steps, and adds the term.

        Raises:
            EnvError: If :meth:`value` returned something that is not a finite number.
        """
        obs, inner, terminated, truncated, info = self.env.step(action)
        value = self.value(obs, action, float(inner), info)
        if not isinstance(value, Real) or not math.isfinite(value):
            name = type(self).__name__
            raise EnvError(f"reward term {self.term!r} of {name}: expected a finite number, got {value!r}.")
        terms = dict(info["reward_terms"])
        terms[self.term] = terms.get(self.term, 0.0) + float(value)
        return obs, float(inner) + float(value), terminated, truncated, {**info, "reward_terms": terms}


def conversation(env: gym.Env[Any, Any]) -> ConversationEnv:
    """Returns the conversation inside any number of wrappers.

    Raises:
        ConfigError: If there is none.
    """
    inner = env.unwrapped
    if not isinstance(inner, ConversationEnv):
        got = type(inner).__name__
        raise ConfigError(f"env: expected a convgym conversation, got {got}; make one with gym.make.")
    return inner


def finite(name: str, value: float, *, least: float = -math.inf) -> float:
    """Returns a setting as a float; raises a ConfigError unless it is finite and at least ``least``."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ConfigError(f"{name}: expected a finite number{bound}, got {value!r}.")
    return float(value)

"""``Acts``: a conversation as numbers, for learners that neither read nor write."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete, MultiBinary
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from convgym.errors import ConfigError
from convgym.registration import ENVIRONMENTS
from convgym.types import Act
from convgym.wrappers.base import conversation

__all__ = ["Acts"]

Bits = NDArray[np.int8]


class Acts(gym.Wrapper[Any, Any, str, str], RecordConstructorArgs):  # Gymnasium types self.env as the outside
    """The observation is what the user meant, and an action is one of the scenario's canned messages.

    An observation is a vector of zeros and ones in three parts: the acts behind the user's latest words, the
    acts heard so far in this conversation, and the number of messages said (one bit of ``max_turns``, none
    after the last). The acts are the class's ``user_acts``: the name of an act, or ``name:value`` where the
    value of one of its slots counts. An action is an index into the class's ``canned_acts``. Rewards and infos
    pass through, so that any learner for ``MultiBinary`` observations and ``Discrete`` actions can play.

    >>> import gymnasium as gym, convgym
    >>> env = Acts(gym.make("convgym/AskOrAct-v0"))
    >>> obs, info = env.reset(seed=0)
    >>> env.actions
    ('ask', 'tea', 'coffee', 'milk', 'juice')
    >>> env.names[:6]
    ('any', 'usual:tea', 'usual:coffee', 'usual:milk', 'usual:juice', 'say:tea')
    >>> obs, reward, terminated, truncated, info = env.step(0)
    >>> len(obs) == 2 * len(env.names) + 3
    True

    Args:
        env: A conversation of a class with canned messages, wrapped or not.

    Raises:
        ConfigError: If ``env`` is no conversation, or has no canned messages.
    """

    def __init__(self, env: gym.Env[str, str]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        inner = conversation(env)
        self.actions, self.names = inner.canned_acts, inner.user_acts
        if not self.actions:
            known = ", ".join(env_id for env_id in ENVIRONMENTS if _canned(env_id))
            got = f"{type(inner).__name__}, which has none"
            raise ConfigError(f"env: expected a conversation with canned messages, got {got}; take one of {known}.")
        self.observation_space = MultiBinary(2 * len(self.names) + inner.max_turns)
        self.action_space = Discrete(len(self.actions))
        self._index = {name: at for at, name in enumerate(self.names)}
        self._heard: Bits = np.zeros(len(self.names), np.int8)
        self._said = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Bits, dict[str, Any]]:
        """Starts a conversation."""
        _, info = self.env.reset(seed=seed, options=options)
        self._heard, self._said = np.zeros_like(self._heard), 0
        return self._observed(), info

    def step(self, action: np.int64 | int) -> tuple[Bits, float, bool, bool, dict[str, Any]]:
        """Says one of the canned messages.

        Raises:
            ConfigError: If the action is not an index of one.
        """
        if not self.action_space.contains(action):
            raise ConfigError(f"action: expected an integer from 0 to {len(self.actions) - 1}, got {action!r}.")
        text = conversation(self).task.canned[int(action)]
        _, reward, terminated, truncated, info = self.env.step(text)
        self._said += 1
        return self._observed(), float(reward), terminated, truncated, info

    def _observed(self) -> Bits:
        """The bits of the moment; hears the latest words."""
        inner = conversation(self)
        latest, turn = np.zeros_like(self._heard), np.zeros(inner.max_turns, np.int8)
        for act in inner.heard_acts():
            for name in _names(act):
                if name in self._index:
                    latest[self._index[name]] = 1
        self._heard = self._heard | latest
        if self._said < len(turn):
            turn[self._said] = 1
        return np.concatenate((latest, self._heard, turn))


def _names(act: Act) -> list[str]:
    """The names under which an act may stand in a vocabulary."""
    return [act.name, *(f"{act.name}:{value}" for value in act.slots.values())]


def _canned(env_id: str) -> tuple[str, ...]:
    """The canned acts of an environment's class."""
    module, _, name = ENVIRONMENTS[env_id][0].partition(":")
    try:
        return tuple(getattr(import_module(module), name).canned_acts)
    except ImportError:
        return ()

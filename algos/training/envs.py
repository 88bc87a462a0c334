"""Making environments by id, with errors that say what there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from convgym.errors import ConfigError, UnknownNameError
from convgym.registration import ENVIRONMENTS
from convgym.vector import ConversationVectorEnv


def make_env(env: str, settings: Mapping[str, Any]) -> gym.Env[str, str]:
    """One environment.

    Args:
        env: Its id.
        settings: Its keywords.

    Raises:
        UnknownNameError: If there is no such environment.
        ConfigError: If it has no such setting, or refuses its value.
    """
    try:
        made = gym.make(env, **settings)
    except gym.error.UnregisteredEnv as error:
        raise UnknownNameError.of("environment", env, ENVIRONMENTS) from error
    except (gym.error.Error, TypeError, ImportError) as error:
        raise ConfigError(f"{env} cannot be made with {dict(settings)}: {error}.") from error
    if not isinstance(made.action_space, gym.spaces.Text):
        raise ConfigError(f"env: expected a conversation, whose actions are text; {env} takes {made.action_space}.")
    return made


def make_envs(env: str, lanes: int, settings: Mapping[str, Any]) -> ConversationVectorEnv:
    """The lanes of a collector; errors as in :func:`make_env`."""
    return ConversationVectorEnv([lambda: make_env(env, settings)] * lanes, "Disabled")

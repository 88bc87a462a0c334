"""The batched conversation env: Gymnasium's vector API, and lane-wise calls for engines that wait for nobody.

``gym.make_vec(id, n)`` returns it. A rollout engine that keeps one conversation a lane calls :meth:`reset_lane` and
:meth:`step_lanes` for just the lanes that are ready.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Tuple as TupleSpace
from gymnasium.vector import AutoresetMode, VectorEnv

from convgym.errors import ConfigError, EnvError
from convgym.registration import ENVIRONMENTS
from convgym.seeding import derive_seed

__all__ = ["ConversationVectorEnv", "Step"]

Step = tuple[str, float, bool, bool, dict[str, Any]]
"""``(obs, reward, terminated, truncated, info)`` of one lane."""


class ConversationVectorEnv(VectorEnv[tuple[str, ...], tuple[str, ...], np.ndarray]):
    """Several conversations stepped together.

    Observations and actions are tuples of strings. ``infos`` follows Gymnasium's convention: for each key an array over the
    lanes and a mask ``_key``; lists and dicts are object arrays.

    Args:
        env_fns: One constructor a lane.
        autoreset_mode: ``NEXT_STEP`` (Gymnasium's default), ``SAME_STEP`` or ``DISABLED``. Learners use one of the last two:
            under ``NEXT_STEP`` the message said after an ending is thrown away.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[str, str]]],
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        if not env_fns:
            raise ConfigError("num_envs: expected at least 1 lane, got 0.")
        self.envs = [make() for make in env_fns]
        self.num_envs = len(self.envs)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.envs[0].metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = self.envs[0].render_mode
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = TupleSpace([env.observation_space for env in self.envs])  # type: ignore[assignment]
        self.action_space = TupleSpace([env.action_space for env in self.envs])  # type: ignore[assignment]
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._observations = [""] * self.num_envs

    def reset_lane(
        self, lane: int, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts a conversation in one lane."""
        self._done[lane] = False
        return self.envs[lane].reset(seed=seed, options=options)

    def step_lanes(self, lanes: Sequence[int], actions: Sequence[str]) -> list[Step]:
        """Steps only the given lanes; the others are untouched. There is no autoreset here.

        Args:
            lanes: Lane indices.
            actions: One message for each of them.
        """
        return [self._step(lane, action) for lane, action in zip(lanes, actions, strict=True)]

    def _step(self, lane: int, action: str) -> Step:
        obs, reward, terminated, truncated, info = self.envs[lane].step(action)
        return obs, float(reward), terminated, truncated, info

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Starts conversations in all lanes, or in those of ``options["reset_mask"]``.

        An integer seed gives lane ``i`` the child seed ``derive_seed(seed, "lane", i)``: neighbouring seeds share no lane.
        """
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        mask = np.ones(self.num_envs, dtype=np.bool_) if mask is None else np.asarray(mask, dtype=np.bool_)
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ConfigError(f"reset_mask: expected {self.num_envs} booleans with at least one True, got {mask!r}.")
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else derive_seed(int(seed), "lane", i) for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ConfigError(f"seed: expected {self.num_envs} seeds, one a lane, got {len(seeds)}.")
        infos: dict[str, Any] = {}
        for lane in np.flatnonzero(mask).tolist():
            self._observations[lane], info = self.reset_lane(lane, seed=seeds[lane], options=options or None)
            infos = self._add_info(infos, info, lane)
        return tuple(self._observations), infos

    def step(
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps all lanes; ``rewards`` is float64, ``terminated`` and ``truncated`` are boolean, all of shape ``(n,)``."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        infos: dict[str, Any] = {}
        for lane, action in enumerate(actions):
            if self._done[lane]:
                if self.autoreset_mode is not AutoresetMode.NEXT_STEP:
                    raise EnvError(f"step: the conversation of lane {lane} has ended; reset it with reset_mask first.")
                self._observations[lane], info = self.reset_lane(lane)
                infos = self._add_info(infos, info, lane)
                continue
            obs, rewards[lane], terminated[lane], truncated[lane], info = self._step(lane, action)
            self._done[lane] = terminated[lane] or truncated[lane]
            if self._done[lane] and self.autoreset_mode is AutoresetMode.SAME_STEP:
                infos = self._add_info(infos, {"final_obs": obs, "final_info": info}, lane)
                obs, info = self.reset_lane(lane)
            self._observations[lane] = obs
            infos = self._add_info(infos, info, lane)
        return tuple(self._observations), rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Closes every lane."""
        for env in self.envs:
            env.close()


def _load(entry_point: str) -> Callable[..., gym.Env[str, str]]:
    module, _, name = entry_point.partition(":")
    loaded: Callable[..., gym.Env[str, str]] = getattr(import_module(module), name)
    return loaded


def _vector(entry_point: str, num_envs: int, **settings: Any) -> ConversationVectorEnv:
    mode = settings.pop("autoreset_mode", AutoresetMode.NEXT_STEP)
    return ConversationVectorEnv([partial(_load(entry_point), **settings)] * num_envs, mode)


# One name for each family, so that an EnvSpec can hold the vector entry point as a string.
for _entry_point, _ in ENVIRONMENTS.values():
    globals()[f"{_entry_point.rpartition(':')[2]}Vector"] = partial(_vector, _entry_point)

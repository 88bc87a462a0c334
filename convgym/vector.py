"""The batched conversation env: Gymnasium's vector API, and lane-wise calls for engines that wait for nobody.

``gym.make_vec(id, n)`` returns it. A rollout engine that keeps one conversation a lane calls
:meth:`~ConversationVectorEnv.reset_lane` and :meth:`~ConversationVectorEnv.step_lanes` for just the lanes
that are ready. Lanes whose user or judge is asked over the network are awaited together, in threads; scripted
ones never leave the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache, partial
from importlib import import_module
from itertools import chain
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Tuple as TupleSpace
from gymnasium.vector import AutoresetMode, VectorEnv

from convgym.errors import ConfigError, EnvError, LaneError
from convgym.registration import ENVIRONMENTS, PACK, no_live_user
from convgym.seeding import derive_seed

__all__ = ["ConversationVectorEnv", "Step", "batch_infos"]

Result = TypeVar("Result")

Step = tuple[str, float, bool, bool, dict[str, Any]]
"""``(obs, reward, terminated, truncated, info)`` of one lane."""


class ConversationVectorEnv(VectorEnv[tuple[str, ...], tuple[str, ...], np.ndarray]):
    """Several conversations stepped together.

    Observations and actions are tuples of strings, ``infos`` follow Gymnasium's convention
    (:func:`batch_infos`).

    Args:
        env_fns: One constructor a lane.
        autoreset_mode: ``NEXT_STEP`` (Gymnasium's default), ``SAME_STEP`` or ``DISABLED``. Learners use one
            of the last two: under ``NEXT_STEP`` the message said after an ending is thrown away.

    Raises:
        ConfigError: If there is no lane, or no such autoreset mode.
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
        self.autoreset_mode = _mode(autoreset_mode)
        self.metadata = {**self.envs[0].metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = self.envs[0].render_mode
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = TupleSpace([env.observation_space for env in self.envs])
        self.action_space = TupleSpace([env.action_space for env in self.envs])
        self.slow = any(env.has_wrapper_attr("slow") and env.get_wrapper_attr("slow") for env in self.envs)
        self._threads: ThreadPoolExecutor | None = None
        self._done = [False] * self.num_envs
        self._observations = [""] * self.num_envs

    def reset_lane(
        self, lane: int, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts a conversation in one lane."""
        begun = self.envs[lane].reset(seed=seed, options=options)
        self._done[lane] = False
        return begun

    def state_key(self, lane: int) -> int:
        """Returns the hash of the abstract state of a lane's conversation; 0 if the environment has none."""
        key = getattr(self.envs[lane].unwrapped, "state_key", None)
        return 0 if key is None else int(key())

    def step_lanes(self, lanes: Sequence[int], actions: Sequence[str]) -> list[Step]:
        """Steps only the given lanes; the others are untouched. There is no autoreset here.

        Args:
            lanes: Lane indices.
            actions: One message for each of them.

        Raises:
            LaneError: If a slow lane raised. The others have been stepped, and the error holds their results.
        """
        said = dict(zip(lanes, actions, strict=True))
        return self._each(lanes, lambda lane: self.step_lane(lane, said[lane]))

    def step_lane(self, lane: int, action: str) -> Step:
        """Steps one lane, without autoreset."""
        obs, reward, terminated, truncated, info = self.envs[lane].step(action)
        self._done[lane] = terminated or truncated
        return obs, float(reward), terminated, truncated, info

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Does something with a slow lane in a thread, for engines that go on meanwhile.

        Args:
            work: Calls :meth:`reset_lane` or :meth:`step_lane`; a lane does one thing at a time.
        """
        if self._threads is None:  # lanes with scripted users never need one
            self._threads = ThreadPoolExecutor(self.num_envs, "convgym-lane")
        return self._threads.submit(work)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Starts conversations in all lanes, or in those of ``options["reset_mask"]``.

        An integer seed gives lane ``i`` the child seed ``derive_seed(seed, "lane", i)``: neighbouring seeds
        share no lane.
        """
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        mask = np.ones(self.num_envs, dtype=np.bool_) if mask is None else np.asarray(mask, dtype=np.bool_)
        begun = np.flatnonzero(mask).tolist()
        if mask.shape != (self.num_envs,) or not begun:
            expected = f"expected {self.num_envs} booleans with at least one True"
            raise ConfigError(f"reset_mask: {expected}, got {mask!r}.")
        if seed is None or isinstance(seed, (int, np.integer)):
            lanes = range(self.num_envs)
            seeds = [None if seed is None else derive_seed(int(seed), "lane", lane) for lane in lanes]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ConfigError(f"seed: expected {self.num_envs} seeds, one a lane, got {len(seeds)}.")
        infos: list[dict[str, Any]] = [{} for _ in self.envs]

        def begin(lane: int) -> None:
            self._observations[lane], infos[lane] = self.reset_lane(lane, seed=seeds[lane], options=options)

        self._each(begun, begin)
        return tuple(self._observations), batch_infos(infos)

    def step(
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps all lanes.

        Returns:
            ``(observations, rewards, terminated, truncated, infos)``; rewards are float64, the next two
            boolean, all of shape ``(n,)``. Under ``SAME_STEP`` the infos of a lane that ended hold
            ``final_obs`` and ``final_info`` beside the infos of its new conversation.

        Raises:
            EnvError: If there is not one message a lane, or (except under ``NEXT_STEP``) a lane has ended. No
                lane is stepped then.
            LaneError: If a slow lane raised. The others have been stepped, and the error holds their results.
        """
        if isinstance(actions, str) or len(actions) != self.num_envs:
            got = "one string" if isinstance(actions, str) else len(actions)
            raise EnvError(f"step: expected {self.num_envs} messages, one a lane, got {got}.")
        if self.autoreset_mode is not AutoresetMode.NEXT_STEP and any(self._done):
            lane = self._done.index(True)
            raise EnvError(
                f"step: the conversation of lane {lane} has ended; reset it with reset_mask first."
            )
        steps = self._each(range(self.num_envs), lambda lane: self._turn(lane, actions[lane]))
        observations, rewards, ended, cut, infos = zip(*steps)
        terminated, truncated = np.array(ended, np.bool_), np.array(cut, np.bool_)
        return observations, np.array(rewards, np.float64), terminated, truncated, batch_infos(infos)

    def _turn(self, lane: int, action: str) -> Step:
        """One lane's part of a step, autoreset included."""
        reward, ended, cut = 0.0, False, False
        if self._done[lane]:  # NEXT_STEP: the action is thrown away
            obs, info = self.reset_lane(lane)
        else:
            obs, reward, ended, cut, info = self.step_lane(lane, action)
            if self._done[lane] and self.autoreset_mode is AutoresetMode.SAME_STEP:
                final = {"final_obs": obs, "final_info": info}
                obs, info = self.reset_lane(lane)
                info = {**final, **info}
        self._observations[lane] = obs
        return obs, reward, ended, cut, info

    def _each(self, lanes: Sequence[int], work: Callable[[int], Result]) -> list[Result]:
        """Does the same with several lanes; slow ones are awaited together.

        Raises:
            LaneError: If slow lanes raised, after all of them are done.
        """
        if not self.slow or len(lanes) < 2:
            return [work(lane) for lane in lanes]
        futures = {lane: self.submit(partial(work, lane)) for lane in lanes}
        wait(futures.values())
        errors = {lane: error for lane, future in futures.items() if (error := future.exception()) is not None}
        results = {lane: future.result() for lane, future in futures.items() if lane not in errors}
        if errors:
            raise LaneError.of(errors, results)
        return list(results.values())

    def render(self) -> tuple[Any, ...]:
        """Renders every lane."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Closes every lane."""
        if self._threads is not None:
            self._threads.shutdown()
        for env in self.envs:
            env.close()


def batch_infos(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batches the infos of all lanes by Gymnasium's convention, one column at a time.

    Returns:
        For each key an array over the lanes and, under ``_key``, a mask of the lanes that have it. Numbers
        and booleans are arrays of their type, 0 where absent; dicts are batched in the same way; the rest are
        object arrays, None where absent.
    """
    batched: dict[str, Any] = {}
    everywhere = _mask((True,) * len(infos))
    for key in dict.fromkeys(chain.from_iterable(infos)):
        try:
            column, mask = [info[key] for info in infos], everywhere
            kind = type(column[0])
        except KeyError:
            mask = _mask(tuple([key in info for info in infos]))
            kind = type(next(info[key] for info in infos if key in info))
            absent = _ABSENT.get(kind)
            column = [info.get(key, absent) for info in infos]
        if kind is dict:
            batched[key] = batch_infos([value or {} for value in column])
        elif kind in _ABSENT:
            batched[key] = np.array(column, dtype=kind)
        else:
            batched[key] = np.fromiter(column, dtype=object, count=len(column))
        batched[f"_{key}"] = mask
    return batched


_ABSENT: dict[type, Any] = {dict: {}, float: 0.0, int: 0, bool: False}


@lru_cache(maxsize=256)
def _mask(present: tuple[bool, ...]) -> np.ndarray:
    """Returns a read-only mask, one for all keys and steps that have the same lanes."""
    mask = np.array(present, np.bool_)
    mask.flags.writeable = False
    return mask


def _mode(mode: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        legal = ", ".join(repr(each.value) for each in AutoresetMode)
        raise ConfigError(f"autoreset_mode: expected one of {legal}, got {mode!r}.") from None


def _load(entry_point: str) -> Callable[..., gym.Env[str, str]]:
    module, _, name = entry_point.partition(":")
    loaded: Callable[..., gym.Env[str, str]] = getattr(import_module(module), name)
    return loaded


def _vector(entry_point: str, suffix: str, num_envs: int, **settings: Any) -> ConversationVectorEnv:
    if settings.get("user") == "llm" and not suffix:
        raise ConfigError(no_live_user(f"convgym/{entry_point.rpartition(':')[2]}-v0"))
    mode = settings.pop("autoreset_mode", AutoresetMode.NEXT_STEP)
    return ConversationVectorEnv([partial(_load(entry_point), **settings)] * num_envs, mode)


# One name for each family, so that an EnvSpec can hold the vector entry point as a string.
for _entry_point, _ in ENVIRONMENTS.values():
    for _suffix in ("", "LLM"):
        _name = f"{_entry_point.rpartition(':')[2]}{_suffix}Vector"
        globals()[_name] = partial(_vector, _entry_point, _suffix)
PackVector = partial(_vector, PACK[1], "")

"""``RecordTranscripts``: every finished conversation as a line of JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from convgym.errors import EnvError
from convgym.wrappers.base import conversation

__all__ = ["RecordTranscripts"]


class RecordTranscripts(gym.Wrapper[str, str, str, str], RecordConstructorArgs):
    """Appends each finished conversation to a JSONL file; put it outermost, to record what the agent gets.

    A line is one object: ``env`` (its id), ``seed`` (of the last seeded reset), ``episode`` (since that
    reset), ``messages``, ``rewards`` (one a turn), ``reward_terms`` (summed), ``cost``, ``understood`` (share
    of turns), ``end_reason``, ``success`` and ``score``. Lines are appended by a single write each, so that
    several environments, processes included, can share a file. Nothing is kept open in between.

    Args:
        env: The environment.
        path: The file; its folder must exist.
    """

    def __init__(self, env: gym.Env[str, str], path: str) -> None:
        RecordConstructorArgs.__init__(self, path=str(path))
        gym.Wrapper.__init__(self, env)
        conversation(env)
        self.path = Path(path)
        self._seed: int | None = None
        self._episode = -1
        self._steps: list[tuple[float, dict[str, Any]]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts a conversation; an unfinished one before it is not recorded."""
        opening = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._seed, self._episode = seed, -1
        self._episode += 1
        self._steps = []
        return opening

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Steps, and writes the conversation if it has ended."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._steps.append((float(reward), info))
        if "end_reason" in info:
            self._write(info)
        return obs, float(reward), terminated, truncated, info

    def _write(self, info: dict[str, Any]) -> None:
        terms: dict[str, float] = {}
        for _, each in self._steps:
            for name, value in each["reward_terms"].items():
                terms[name] = terms.get(name, 0.0) + value
        line = {
            "env": self.spec.id if self.spec else type(self.unwrapped).__name__,
            "seed": self._seed,
            "episode": self._episode,
            "messages": [message.to_dict() for message in conversation(self).transcript()],
            "rewards": [reward for reward, _ in self._steps],
            "reward_terms": terms,
            "cost": sum(each["cost"] for _, each in self._steps),
            "understood": sum(each["understood"] for _, each in self._steps) / len(self._steps),
            **{name: info[name] for name in ("end_reason", "success", "score")},
        }
        # Pure ASCII: a lone surrogate, which UTF-8 cannot hold, is written as an escape.
        data = json.dumps(line).encode("ascii") + b"\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(file, data)
        finally:
            os.close(file)
        if written != len(data):
            raise EnvError(f"{self.path}: wrote only {written} of {len(data)} bytes; is the disk full?")

"""A very small environment, and runs in it that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym

from algos.training.config import RunConfig
from convgym.errors import ConfigError
from convgym.seeding import derive_seed
from convgym.spaces import Utterance

LETTERS = "tests/Letters-v0"


class Letters(gym.Env[str, str]):
    """Pays for the share of ASCII letters among the characters said, over two turns: anything can learn it.

    Args:
        split: Only shown in the opening.
        breaks: Share of the conversations that raise at their second turn.
    """

    metadata = {"render_modes": []}

    def __init__(self, split: str = "train", breaks: float = 0.0) -> None:
        if not 0 <= breaks <= 1:
            raise ConfigError(f"breaks: expected a share, got {breaks}.")
        self.split, self.breaks = split, breaks
        self.observation_space = Utterance()
        self.action_space = Utterance()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        split = (options or {}).get("split", self.split)
        self.turns, self.score = 0, 0.0
        self.broken = derive_seed(seed or 0, "breaks") % 1000 < 1000 * self.breaks
        return f"order {seed}", self._info({"role": "user", "content": f"{split} order {(seed or 0) % 100}"})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turns += 1
        if self.turns == 2 and self.broken:
            raise RuntimeError("the shop is closed")
        letters = sum(c.isascii() and c.isalpha() for c in action) / max(1, len(action))
        self.score += letters / 2
        ended = self.turns == 2
        info = self._info({"role": "user", "content": "go on"}) | {"reward_terms": {"letters": letters / 2}}
        if ended:
            info |= {"end_reason": "concluded", "success": self.score > 0.8, "score": self.score}
        return "go on", letters / 2, ended, False, info

    def state_key(self) -> int:
        return self.turns + 1

    def _info(self, message: dict[str, str]) -> dict[str, Any]:
        return {
            "messages": [message],
            "cost": 0.0,
            "understood": True,
            "reward_terms": {},
        }


if LETTERS not in gym.registry:
    gym.register(LETTERS, entry_point="tests.algos.training.made:Letters", disable_env_checker=True)


def run_config(model: Path, out: Path, **changes: Any) -> RunConfig:
    """Four updates of sixteen conversations of two turns."""
    settings: dict[str, Any] = {
        "env": LETTERS,
        "model": str(model),
        "updates": 4,
        "episodes_per_update": 16,
        "group_size": 4,
        "lanes": 16,
        "max_turn_tokens": 6,
        "learning_rate": 3e-3,
        "critic_learning_rate": 1e-2,
        "eval_every": 2,
        "eval_episodes": 8,
        "save_every": 2,
        "tensorboard": False,
        "quiet": True,
        "device": "cpu",
    }
    return RunConfig(**(settings | {"out": str(out)} | changes))

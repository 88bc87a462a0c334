"""Whole training steps, rollout and update: TRL's multi-turn path, and the benchmark work of stateset-agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from algos.policies.load import load_policy
from benchmarks.throughput.contest import Conditions, Contestant, compete, least
from benchmarks.throughput.models import Model
from benchmarks.throughput.work import opening_messages, sentence

OURS, TRL, STATESET = "engine and learner", "TRL, rollout_func", "stateset-agents"
STEP = "step"


def measure_trl(
    model: Model,
    how: Conditions,
    *,
    rows: int = 32,
    group: int = 8,
    turns: int = 4,
    new: int = 12,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Lets both have the same four-turn conversations with scripted users, and learn from them.

    ``settings`` are further entries of the job, such as ``device`` and ``dtype``.
    """
    rng = np.random.default_rng(0)
    instructions = sentence(rng, 40)
    scripts = [_script(rng, turns) for _ in range(rows // group)]
    talks = [talk for talk in _talks(model, scripts, instructions) for _ in range(group)]
    shared = {"folder": str(model.folder), "group": group, "new": new, "task": "train", **(settings or {})}
    users = [script for script in scripts for _ in range(group)]
    ours = {**shared, "scripts": users, "instructions": instructions, "learning_rate": 1e-6}
    contestants = [
        Contestant(OURS, "benchmarks.throughput.ours", ours),
        Contestant(TRL, "benchmarks.peers.trl_grpo", {**shared, "episodes": talks}, "trl"),
    ]
    heard = sum(len(t["opening"]) + sum(map(len, t["replies"])) for t in talks) / len(talks)
    return {"parameters": model.parameters, "episodes": rows, "turns": turns, "new": new, "heard_tokens": heard,
            "threads": how.threads, "rounds": how.rounds,
            "contestants": compete(contestants, {STEP: {}}, how)}  # fmt: skip


def measure_stateset(
    model: Model, user: tuple[str, ...], how: Conditions, *, rows: int = 8, turns: int = 3, new: int = 32
) -> dict[str, Any]:
    """Lets both do the benchmark work of stateset-agents: one scripted scenario, one group."""
    shared = {"folder": str(model.folder), "new": new, "task": "train"}
    ours = {**shared, "scripts": [user[:turns]] * rows, "instructions": "", "group": rows, "learning_rate": 5e-6}
    contestants = [
        Contestant(OURS, "benchmarks.throughput.ours", ours),
        Contestant(
            STATESET,
            "benchmarks.peers.stateset",
            {**shared, "turns": turns, "episodes": rows, "user": list(user)},
            "stateset_agents",
        ),
    ]
    return {"parameters": model.parameters, "episodes": rows, "turns": turns, "new": new,
            "threads": how.threads, "rounds": how.rounds,
            "contestants": compete(contestants, {STEP: {}}, how)}  # fmt: skip


def seconds(part: dict[str, Any], name: str, half: str = "", clock: str = "cpu") -> float | None:
    """Least seconds of a step, or of its half ``"rollout"`` or ``"update"``, by a clock: ``"cpu"`` or ``"wall"``."""
    if not half:
        return least(part["contestants"], name, STEP, clock)
    answers = part["contestants"].get(name, {}).get("asks", {}).get(STEP)
    if not answers:
        return None
    rollouts = answers[f"generation_{clock}"]
    if half == "rollout":
        return float(min(rollouts))
    return float(min(whole - rollout for whole, rollout in zip(answers[clock], rollouts)))


def _script(rng: np.random.Generator, turns: int) -> list[str]:
    return [sentence(rng, int(n)) for n in (rng.integers(10, 40), *rng.integers(6, 25, turns - 1))]


def _talks(model: Model, scripts: list[list[str]], instructions: str) -> list[dict[str, Any]]:
    """The users' words as ids, with the template around them."""
    chat = load_policy(model.folder).chat
    word = chat.encode("a")[-1]  # the agent's turn is cut by its cap, so that it ends with some word
    return [
        {
            "opening": chat.delta(opening_messages(script, instructions)),
            "replies": [chat.delta([{"role": "user", "content": said}], word) for said in script[1:]],
            "reward": 0.0,
        }
        for script in scripts
    ]

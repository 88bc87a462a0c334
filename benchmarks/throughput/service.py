"""Iterations of the quick suite with the shipped policy: episodes a second, and where the time goes."""

from __future__ import annotations

from typing import Any

from benchmarks.throughput.contest import Conditions, Contestant, compete, least, middle

OURS = "convgym"
WORK = (
    ("CustomerService-v0", "grpo"),
    ("CustomerService-v0", "ppo"),
    ("CustomerService-v0", "reinforce"),
    ("SlotFilling-v0", "grpo"),
)
PHASES = ("engine", "env", "chat", "observe", "optimise")


def measure(how: Conditions, *, model: str = "nano", episodes: int = 64) -> dict[str, Any]:
    """Has ``episodes`` conversations and an update, for each environment and algorithm of ``WORK``."""
    asks = {f"{env}, {algorithm}": {"env": env, "algorithm": algorithm} for env, algorithm in WORK}
    job = {"task": "service", "model": model, "episodes": episodes}
    found = compete([Contestant(OURS, "benchmarks.throughput.ours", job)], asks, how)
    return {"model": model, "episodes": episodes, "threads": how.threads, "rounds": how.rounds, "contestants": found}


def shares(part: dict[str, Any], ask: str) -> dict[str, float]:
    """Share of an iteration's wall time by phase; the rest is the collector's and the learner's own bookkeeping."""
    wall = least(part["contestants"], OURS, ask, "wall")
    if wall is None:
        return {}
    whole = middle(part["contestants"], OURS, ask, "wall") or wall
    found = {p: (middle(part["contestants"], OURS, ask, f"seconds_{p}") or 0.0) / whole for p in PHASES}
    return found | {"rest": max(0.0, 1 - sum(found.values()))}

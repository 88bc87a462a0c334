"""Comparisons made by hand: run folders as the trainer writes them, with numbers chosen by the test."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import pool, results
from benchmarks.suites import Entry, EnvSpec, Run, Suite

START = 0.3
PROVENANCE = {
    "command": "python -m benchmarks.compare --suite hand",
    "started": "2026-01-01T00:00:00Z",
    "commit": {"id": "0" * 40, "changed": False},
    "machine": {"processor": "Test CPU", "cores": 2, "memory_gb": 8.0, "system": "Linux x86_64"},
    "versions": {"python": "3.11.0", "torch": "2.11.0"},
    "sessions": [
        {
            "started": "2026-01-01T00:00:00Z",
            "commit": {"id": "0" * 40},
            "jobs": 2,
            "runs": 32,
            "seconds": 500.0,
        }
    ],
}
CHAT = [
    {"role": "system", "content": "You are an agent. Tools: find_order(id)."},
    {"role": "user", "content": "My parcel never came, order 4711."},
    {
        "role": "assistant",
        "content": '<tool_call>{"name": "find_order", "arguments": {"id": "4711"}}</tool_call>',
    },
    {"role": "tool", "content": '{"status": "lost"}'},
    {"role": "assistant", "content": "I am sorry. I have sent it again."},
]


def hand_made_suite(seeds: int = 4) -> Suite:
    """Three competitors and a control on two environments."""
    return Suite(
        name="hand",
        envs=(EnvSpec("convgym/CustomerService-v0", {"difficulty": 1}), EnvSpec("convgym/SlotFilling-v0")),
        entries=(
            Entry("grpo", "grpo", 3e-4),
            Entry("ppo", "ppo", 3e-4, cost=1.5),
            Entry("reinforce", "reinforce", 3e-4),
            Entry("shuffled", "reinforce", 3e-4, control="shuffled_rewards"),
        ),
        seeds=seeds,
        settings={"model": "nano", "updates": 20, "episodes_per_update": 64},
    )


def write_run(
    folder: Path, run: Run, end: float, *, noise: float = 0.02, start: float | None = None, chat: Any = CHAT
) -> None:
    """One finished run that rises from its start to `end`."""
    rng = np.random.default_rng(zlib.crc32(f"{run.name} {end}".encode()))
    seed_effect = np.random.default_rng(run.seed).normal(0, 0.03)
    start = START + round(seed_effect, 3) if start is None else start
    updates = run.config()["updates"]
    levels = start + (end + seed_effect - start) * (1 - np.exp(-np.arange(updates) / (updates / 5)))
    success = np.clip(levels + rng.normal(0, noise, updates), 0, 1)
    final = float(np.clip(end + seed_effect + rng.normal(0, noise), 0, 1))
    lines: list[dict[str, Any]] = []
    for step, value in ((0, start), (updates, final)):
        for mode, lift in (("sample", 0.0), ("greedy", 0.05)):
            lines.append(
                {"kind": "eval", "step": step, "mode": mode, "split": "val", "episodes": 128,
                 "success": min(1.0, value + lift), "return": 2 * value - 1, "score": value, "turns": 5.0}
            )  # fmt: skip
    lines += [
        {"kind": "train", "step": i + 1, "episodes": 64 * (i + 1), "action_tokens": 5000 * (i + 1),
         "success": float(s), "return": float(2 * s - 1), "seconds_rollout": 0.6, "seconds_update": 0.3}
        for i, s in enumerate(success)
    ]  # fmt: skip
    samples = [
        {
            "step": step,
            "mode": "sample",
            "env_seed": 100 + i,
            "messages": chat,
            "success": step > 0,
            "return": float(step > 0),
        }
        for step in (0, updates)
        for i in range(3)
    ]
    logs = folder / pool.OUTPUT
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (logs / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    pool.write_json(logs / "result.json", {"status": "done", "seconds": 25.0, "cpu_seconds": 24.0})
    record = {"config": results.plain(run.config()), "status": "done", "error": None, "seconds": 25.0,
              "cpu_seconds": 24.0 * run.entry.cost, "peak_memory_mb": 512.0}  # fmt: skip
    pool.write_json(folder / pool.RECORD, record)


@pytest.fixture
def comparison(tmp_path: Path) -> Callable[..., Path]:
    """Writes a whole comparison; `ends` is the success that each entry reaches."""

    def make(
        ends: Mapping[str, float] | None = None,
        *,
        suite: Suite | None = None,
        noise: float = 0.02,
        chat: Any = CHAT,
    ) -> Path:
        suite = suite or hand_made_suite()
        ends = ends or {"grpo": 0.8, "ppo": 0.65, "reinforce": 0.64, "shuffled": 0.28}
        out = tmp_path / "comparison"
        out.mkdir()
        pool.write_json(out / "suite.json", results.suite_to_json(suite))
        pool.write_json(out / "provenance.json", PROVENANCE)
        pool.write_json(out / "oracle.json", {env.id: 1.0 for env in suite.envs})
        for run in suite.runs():
            write_run(results.run_folder(out, run), run, ends[run.entry.name], noise=noise, chat=chat)
        return out

    return make

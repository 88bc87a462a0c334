"""Raw logs to rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import pool, results
from benchmarks.results import Evaluation, Row


def test_the_last_fifth_is_at_least_one_update() -> None:
    assert results.last_fifth([0.0] * 16 + [0.5, 0.6, 0.7, 0.8]) == pytest.approx(0.65)
    assert results.last_fifth([0.1, 0.2, 0.9]) == 0.9
    assert results.last_fifth([0.0] * 9 + [0.4, 0.6]) == pytest.approx(
        (0.0 + 0.4 + 0.6) / 3
    )  # ceil(11 / 5) = 3
    assert np.isnan(results.last_fifth([]))


def test_a_row_is_what_the_files_say(comparison: Callable[..., Path]) -> None:
    out = comparison()
    loaded = results.load(out)
    row = loaded.of("convgym/SlotFilling-v0", "ppo")[2]
    assert (row.seed, row.status, len(row.success)) == (2, "done", 20)
    run = next(r for r in loaded.suite.runs() if r.name == "SlotFilling-v0/ppo/seed-2")
    logged = results.read_jsonl(results.run_folder(out, run) / pool.OUTPUT / "metrics.jsonl")
    train = [line for line in logged if line["kind"] == "train"]
    assert row.area == pytest.approx(np.mean([line["success"] for line in train]))
    assert row.episodes == [64 * (i + 1) for i in range(20)]
    assert row.action_tokens == 100_000
    sampled = [line for line in logged if line["kind"] == "eval" and line["mode"] == "sample"]
    greedy = [line for line in logged if line["kind"] == "eval" and line["mode"] == "greedy"]
    assert (row.start.success, row.final.success) == (sampled[0]["success"], sampled[1]["success"])
    assert (row.start_greedy.success, row.final_greedy.success) == (
        greedy[0]["success"],
        greedy[1]["success"],
    )
    assert row.seconds_rollout == pytest.approx(20 * 0.6)
    assert row.cpu_seconds == 36.0


def test_scores_are_in_the_order_of_environments_and_seeds(comparison: Callable[..., Path]) -> None:
    loaded = results.load(comparison())
    scores = loaded.scores("grpo", "final")
    assert [len(stratum) for stratum in scores] == [4, 4]
    assert scores[1][3] == loaded.of("convgym/SlotFilling-v0", "grpo")[3].final.success


def test_diverged_counts_as_zero_and_missing_as_missing() -> None:
    base = Row(env="e", entry="x", seed=0, status="done", success=[0.5] * 5, final=Evaluation(8, 0.6))
    assert base.metric("last_fifth") == 0.5
    assert base.metric("final") == 0.6
    diverged = dataclasses.replace(base, status="failed", error={"type": "DivergedError"})
    assert [diverged.metric(m) for m in ("last_fifth", "area", "final")] == [0, 0, 0]
    for status, error in (("failed", {"type": "ProcessDied"}), ("missing", None), ("interrupted", None)):
        lost = dataclasses.replace(base, status=status, error=error)
        assert np.isnan([lost.metric(m) for m in ("last_fifth", "area", "final")]).all()


def test_torn_logs_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"kind": "train", "step": 1}\n[1, 2]\n{"kind": "tra')
    assert results.read_jsonl(log) == [{"kind": "train", "step": 1}]
    assert results.read_jsonl(tmp_path / "none.jsonl") == []


def test_an_empty_run_is_a_missing_row(comparison: Callable[..., Path]) -> None:
    out = comparison()
    folder = out / "runs" / "SlotFilling-v0" / "ppo" / "seed-0"
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    row = results.load(out).of("convgym/SlotFilling-v0", "ppo")[0]
    assert row.status == "missing"
    assert np.isnan(row.metric("final"))


def test_a_folder_without_a_comparison_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m benchmarks\.compare"):
        results.load(tmp_path)


def test_plain_is_strict_json() -> None:
    value = {
        "a": np.float32(0.5),
        "b": (np.int64(3), float("nan")),
        "c": np.array([1.0]),
        "d": np.bool_(True),
    }
    assert json.loads(json.dumps(results.plain(value), allow_nan=False)) == {
        "a": 0.5, "b": [3, None], "c": [1.0], "d": True,
    }  # fmt: skip

"""Raw logs to rows: what one run measured, read from its folder and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pool
from benchmarks.suites import Entry, EnvSpec, Metric, Run, Suite

NAN = float("nan")


@dataclass(frozen=True)
class Evaluation:
    """Held-out episodes of one policy. Shares and returns are means over `episodes`."""

    episodes: int = 0
    success: float = NAN
    episode_return: float = NAN
    score: float = NAN
    cost: float = NAN
    turns: float = NAN


@dataclass(frozen=True)
class Row:
    """One run of the suite, finished or not.

    Attributes:
        start, final: Held-out evaluation before and after training, at temperature 1 (`_greedy`: greedy).
        episodes: Cumulative training episodes after each update. Shape [updates], as `success` and `returns`.
        success: Share of that update's training episodes that succeeded.
        returns: Mean return of that update's training episodes.
        cpu_seconds: CPU time of the run's process, evaluation included; `seconds` is wall time.
    """

    env: str
    entry: str
    seed: int
    status: str  # done | failed | interrupted | started | missing
    error: Mapping[str, Any] | None = None
    start: Evaluation = Evaluation()
    start_greedy: Evaluation = Evaluation()
    final: Evaluation = Evaluation()
    final_greedy: Evaluation = Evaluation()
    episodes: Sequence[int] = ()
    success: Sequence[float] = ()
    returns: Sequence[float] = ()
    action_tokens: int = 0
    seconds: float = NAN
    cpu_seconds: float = NAN
    peak_memory_mb: float = NAN
    seconds_rollout: float = NAN
    seconds_update: float = NAN

    @property
    def done(self) -> bool:
        """The run trained its whole budget."""
        return self.status == "done"

    @property
    def diverged(self) -> bool:
        """The run was stopped by numbers that were not finite: the algorithm's failure, not the machine's."""
        return self.status == "failed" and (self.error or {}).get("type") == "DivergedError"

    @property
    def last_fifth(self) -> float:
        """Mean success over the last fifth of the updates (at least one)."""
        return last_fifth(self.success) if self.done else NAN

    @property
    def area(self) -> float:
        """Mean success over all updates: the area under the curve over the budget, between 0 and 1."""
        return float(np.mean(self.success)) if self.done and len(self.success) else NAN

    def metric(self, name: Metric) -> float:
        """The run's score. Diverged counts as 0: it left no agent. Other unfinished runs are NaN: missing."""
        if self.diverged:
            return 0.0
        value = {"last_fifth": self.last_fifth, "area": self.area, "final": self.final.success}[name]
        return value if self.done else NAN


def last_fifth(values: Sequence[float]) -> float:
    """Mean of the last ceil(n / 5) values; NaN for none."""
    return float(np.mean(values[-math.ceil(len(values) / 5) :])) if len(values) else NAN


def read_row(run: Run, folder: Path) -> Row:
    """The row of one run, from `run.json` and the trainer's `metrics.jsonl` in its folder."""
    record, logs = pool.read_json(folder / pool.RECORD), folder / pool.OUTPUT
    lines = read_jsonl(logs / "metrics.jsonl")
    train = [line for line in lines if line.get("kind") == "train"]
    evals = [line for line in lines if line.get("kind") == "eval"]
    return Row(
        env=run.env.id,
        entry=run.entry.name,
        seed=run.seed,
        status=str(record.get("status", "missing")),
        error=record.get("error"),
        start=_evaluation(evals, "sample", first=True),
        start_greedy=_evaluation(evals, "greedy", first=True),
        final=_evaluation(evals, "sample", first=False),
        final_greedy=_evaluation(evals, "greedy", first=False),
        episodes=[int(line["episodes"]) for line in train],
        success=[_number(line, "success") for line in train],
        returns=[_number(line, "return") for line in train],
        action_tokens=int(train[-1].get("action_tokens") or 0) if train else 0,
        seconds=_number(record, "seconds"),
        cpu_seconds=_number(record, "cpu_seconds"),
        peak_memory_mb=_number(record, "peak_memory_mb"),
        seconds_rollout=sum(_number(line, "seconds_rollout", 0.0) for line in train),
        seconds_update=sum(_number(line, "seconds_update", 0.0) for line in train),
    )


def _evaluation(evals: Sequence[Mapping[str, Any]], mode: str, *, first: bool) -> Evaluation:
    """The held-out evaluation at step 0, or the last one after it."""
    found = [e for e in evals if e.get("mode") == mode and (e.get("step") == 0) == first]
    if not found:
        return Evaluation()
    line = found[0] if first else found[-1]
    return Evaluation(
        episodes=int(line.get("episodes") or 0),
        success=_number(line, "success"),
        episode_return=_number(line, "return"),
        score=_number(line, "score"),
        cost=_number(line, "cost"),
        turns=_number(line, "turns"),
    )


def _number(line: Mapping[str, Any], key: str, default: float = NAN) -> float:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else default


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every whole JSON object of a file; a torn last line (a killed run) is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


# ------------------------------------------------------------------------------------- the folder of a suite


@dataclass(frozen=True)
class Results:
    """A suite, its rows, the oracle's success by environment id, and where they were made."""

    suite: Suite
    rows: Sequence[Row]
    oracle: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, entry: str, metric: Metric) -> list[np.ndarray]:
        """One array per environment, one score per seed in seed order, NaN = missing."""
        return [np.array([row.metric(metric) for row in self.of(env.id, entry)]) for env in self.suite.envs]

    def of(self, env: str, entry: str) -> list[Row]:
        """The rows of one environment and entry, in seed order."""
        return sorted((r for r in self.rows if r.env == env and r.entry == entry), key=lambda row: row.seed)


def run_folder(out: Path, run: Run) -> Path:
    """Where a run of the suite in `out` keeps its files."""
    return out / "runs" / run.name


def load(out: Path) -> Results:
    """Reads a whole comparison from its raw logs.

    Raises:
        FileNotFoundError: if `out` holds no comparison.
    """
    saved = pool.read_json(out / "suite.json")
    if not saved:
        raise FileNotFoundError(
            f"{out} holds no comparison (suite.json is missing). "
            f"Make one: python -m benchmarks.compare --suite NAME --out {out}"
        )
    suite = suite_from_json(saved)
    rows = [read_row(run, run_folder(out, run)) for run in suite.runs()]
    rows.sort(key=lambda row: (row.env, row.entry, row.seed))
    oracle = {env: float(success) for env, success in pool.read_json(out / "oracle.json").items()}
    return Results(suite, rows, oracle, pool.read_json(out / "provenance.json"))


def suite_to_json(suite: Suite) -> dict[str, Any]:
    """The suite as plain JSON."""
    return plain(asdict(suite))  # type: ignore[no-any-return]


def suite_from_json(saved: Mapping[str, Any]) -> Suite:
    """The inverse of `suite_to_json`."""
    parts = dict(saved)
    parts["envs"] = tuple(EnvSpec(**env) for env in saved["envs"])
    parts["entries"] = tuple(Entry(**entry) for entry in saved["entries"])
    return Suite(**parts)


def plain(value: Any) -> Any:
    """Strict JSON: tuples as lists, NumPy numbers as numbers, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value

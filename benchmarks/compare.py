"""Ranks algorithms on conversations: `python -m benchmarks.compare --suite quick --out runs/quick`.

Every (environment, entry, seed) is one process with one thread. A run that is done is not done again, so the
same command goes on after Ctrl-C; a run whose configuration has changed is made anew. Afterwards it writes
`results.json`, `results.csv`, `report.md` and `report.html` into `--out`, and prints the ranking.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from algos.training.config import RunConfig
from benchmarks import oracle, pool, provenance, results, suites
from benchmarks.command import guarded
from convgym.errors import ConfigError

INTERRUPTED = 130  # the shell's exit code for Ctrl-C


@dataclass(frozen=True)
class Options:
    """Rank algorithms on conversations, and write a report with intervals and tie groups."""

    suite: str = "quick"
    """Name of the suite; see benchmarks/suites.py."""
    out: Path | None = None
    """Folder of the comparison (default: runs/<suite>). The same folder resumes."""
    jobs: int = 2
    """Runs at a time, one core each."""
    seeds: int | None = None
    """Seeds per environment and entry (default: the suite's)."""
    envs: tuple[str, ...] = ()
    """Only these environments of the suite (default: all)."""
    algos: tuple[str, ...] = ()
    """Only these entries of the suite (default: all)."""
    add: tuple[str, ...] = ()
    """Registered algorithms to run beside the suite's entries, at their defaults: yours, from an installed package."""
    learning_rate: float = 2.5e-4
    """Learning rate of the added ones."""
    report_only: bool = False
    """Run nothing: rebuild every report from the raw logs in --out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0; 1 for a user error or a run that failed; 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=given, prog="python -m benchmarks.compare")
    console = Console()
    command = shlex.join(["python", "-m", "benchmarks.compare", *given])
    return guarded(lambda: compare(options, console, command=command))


def compare(options: Options, console: Console, *, command: str) -> int:
    """Runs what is not done, then writes the reports and prints the ranking."""
    if options.jobs < 1:
        raise ConfigError(f"--jobs: expected at least 1, got {options.jobs}.")
    suite = suites.get(options.suite).select(seeds=options.seeds, envs=options.envs, algos=options.algos)
    suite = suite.with_entries(options.add, options.learning_rate)
    for run in suite.runs():
        if run.entry.name in options.add:  # of another's making: refused now, not when its first run begins
            RunConfig(**run.config(), out="unused")
    out = options.out or Path("runs") / suite.name
    if not options.report_only:
        jobs = [_job(out, run) for run in suite.runs()]
        todo = [job for job in jobs if not pool.is_done(job)]
        out.mkdir(parents=True, exist_ok=True)
        pool.write_json(out / "suite.json", results.suite_to_json(suite))
        pool.write_json(out / "oracle.json", {env.id: oracle.oracle_success(env) for env in suite.envs})
        console.print(f"{len(jobs)} runs, {len(jobs) - len(todo)} done before, {len(todo)} to do.")
        try:
            _run(todo, options.jobs, out, console, command)
        except KeyboardInterrupt:
            left = sum(not pool.is_done(job) for job in jobs)
            console.print(
                f"Interrupted: {left} of {len(jobs)} runs left. The same command goes on from here."
            )
            return INTERRUPTED

    from benchmarks import (
        report,
    )  # matplotlib and jinja2: not needed by the run processes, which import this file

    made = report.build(out)
    report.write(made)
    return report.show(made, console)


def _job(out: Path, run: suites.Run) -> pool.Job:
    config = json.loads(json.dumps(run.config()))  # as it will be read back, so that equal means equal
    return pool.Job(run.name, results.run_folder(out, run), config)


def _run(todo: Sequence[pool.Job], slots: int, out: Path, console: Console, command: str) -> None:
    """Runs the jobs under a progress bar and notes the session, interrupted or not."""
    if not todo:
        return
    here, started, ended = provenance.describe(command), time.perf_counter(), 0
    try:
        with _terminable(), _progress(console) as progress:
            bar = progress.add_task("training", total=len(todo))

            def on_end(job: pool.Job, record: dict[str, Any]) -> None:
                nonlocal ended
                ended += 1
                progress.console.print(f"[{ended}/{len(todo)}] {escape(job.name)}: {_summary(job, record)}")
                progress.advance(bar)

            pool.run_all(todo, slots=slots, on_end=on_end)
    finally:
        session = {"started": here["started"], "commit": here["commit"], "jobs": slots, "runs": ended}
        session["seconds"] = time.perf_counter() - started
        before = pool.read_json(out / "provenance.json").get("sessions", [])
        pool.write_json(out / "provenance.json", {**here, "sessions": [*before, session]})


def _summary(job: pool.Job, record: dict[str, Any]) -> str:
    """One line about a run that has ended."""
    if record["status"] != "done":
        error = record.get("error") or {}
        said = f"{error.get('type', '')} {error.get('message', '')}".strip()[:200]
        return f"[red]{record['status']}[/] {escape(said)} (see {escape(str(job.folder / 'log.txt'))})"
    result = pool.read_json(job.folder / pool.OUTPUT / "result.json")
    before, after = ((result.get(key) or {}).get("success", float("nan")) for key in ("start", "final"))
    return f"success {before:.2f} -> {after:.2f}, {record['cpu_seconds']:.0f} CPU s"


def _progress(console: Console) -> Progress:
    columns = [
        TextColumn("{task.completed}/{task.total} runs"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=console)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM leaves as cleanly as Ctrl-C inside this block."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())

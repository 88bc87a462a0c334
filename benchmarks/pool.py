"""A local pool for training runs: one process a run, one thread a process, torch imported once.

Processes are forked from a fork server that has imported the training stack and nothing more: it runs no
thread and holds no lock when it forks, which a fork of a process that has already trained could not promise.
A run that dies (an exception, a signal, no memory) leaves a record that says so and takes nothing else down.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from convgym.errors import ConfigError

OUTPUT = "training"  # the trainer's own folder inside a run's folder
RECORD = "run.json"  # config, status, error, seconds, CPU seconds, peak memory: written by this module only
TRAIN = "benchmarks.pool:train"
PRELOAD = ("torch", "transformers.models.llama.modeling_llama", "gymnasium", "algos.training.train")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL
TRACEBACK_LINES = 25


@dataclass(frozen=True)
class Job:
    """One run: what to train, and the folder that it fills.

    Attributes:
        name: Name to show.
        folder: Run folder; emptied before a start.
        config: JSON-plain `RunConfig` fields without `out`.
        target: `"module:function"`, called with the config (and `out`) in the run's own process. It returns
            the run's status, "done" if it came to its end.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    target: str = TRAIN


def train(config: dict[str, Any]) -> str:
    """The default target: `algos.training.train.train` on these fields; returns its status."""
    from algos.training.config import RunConfig
    from algos.training.train import train as train_one

    return train_one(RunConfig(**config)).status


def is_done(job: Job) -> bool:
    """Whether this very configuration has already run to its end in the job's folder."""
    record = read_json(job.folder / RECORD)
    return record.get("status") == "done" and record.get("config") == job.config


def run_all(
    jobs: Sequence[Job],
    *,
    slots: int,
    on_end: Callable[[Job, dict[str, Any]], None],
    on_start: Callable[[Job], None] = lambda job: None,
) -> None:
    """Runs the jobs in the given order, `slots` at a time, and returns when all have ended.

    `on_end` receives each job's record. On any exception (a KeyboardInterrupt above all) the live processes
    are stopped before it goes on; their runs are not done, and the next call starts them again.
    """
    if slots < 1:
        raise ConfigError(f"--jobs must be at least 1, got {slots}.")
    os.environ.update(dict.fromkeys(THREADS, "1"), TOKENIZERS_PARALLELISM="false")  # inherited by the server
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    waiting = deque(jobs)
    live: dict[int, tuple[Job, BaseProcess]] = {}  # by sentinel
    try:
        while waiting or live:
            while waiting and len(live) < slots:
                job = waiting.popleft()
                _empty(job.folder)
                write_json(job.folder / RECORD, {"config": job.config, "status": "started"})
                process = context.Process(target=_child, args=(job,), name=job.name)
                process.start()
                live[process.sentinel] = (job, process)
                on_start(job)
            for sentinel in wait(list(live)):
                job, ended = live.pop(cast(int, sentinel))
                ended.join()
                on_end(job, _final_record(job, ended.exitcode))
    finally:
        _stop([process for _, process in live.values()])


def _empty(folder: Path) -> None:
    """Makes `folder` fresh. It deletes only what this module has made."""
    if folder.exists():
        if folder.is_symlink() or (any(folder.iterdir()) and not (folder / RECORD).is_file()):
            raise ConfigError(
                f"{folder} is in the way: it is no run folder of this benchmark ({RECORD} is missing). "
                "Choose another --out, or move it away."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _child(job: Job) -> None:
    """The run's own process: log to a file, train, write the record."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole terminal group: the parent decides
    log = os.open(job.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    started, error = time.perf_counter(), None
    module, _, function = job.target.partition(":")
    try:
        status = getattr(importlib.import_module(module), function)(
            {**job.config, "out": str(job.folder / OUTPUT)}
        )
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
    except BaseException as problem:  # whatever it was, it becomes a row of the report
        traceback.print_exc()
        tail = "".join(traceback.format_exception(problem)).splitlines()[-TRACEBACK_LINES:]
        status, error = "failed", _error(type(problem).__name__, str(problem), tail)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    write_json(
        job.folder / RECORD,
        {
            "config": job.config,
            "status": status,
            "error": error,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_memory_mb": usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def _final_record(job: Job, exitcode: int | None) -> dict[str, Any]:
    """The child's record, or one in its place if the child died before writing it."""
    record = read_json(job.folder / RECORD)
    if record.get("status", "started") != "started":
        return record
    reason = f"exit code {exitcode}"
    if exitcode is not None and exitcode < 0:
        reason = f"killed by {signal.Signals(-exitcode).name}"
        reason += " (out of memory?)" if exitcode == -signal.SIGKILL else ""
    log = job.folder / "log.txt"
    tail = log.read_text("utf-8", "replace").splitlines()[-TRACEBACK_LINES:] if log.is_file() else []
    record = {"config": job.config, "status": "failed", "error": _error("ProcessDied", reason, tail)}
    write_json(job.folder / RECORD, record)
    return record


def _error(kind: str, message: str, tail: list[str]) -> dict[str, Any]:
    return {"type": kind, "message": message, "traceback": "\n".join(tail)}


def _stop(processes: list[BaseProcess]) -> None:
    """SIGTERM to all, then SIGKILL to those that have not left in time."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if the file is missing or torn (a run killed while writing)."""
    with contextlib.suppress(OSError, ValueError):
        loaded = json.loads(path.read_text("utf-8"))
        if isinstance(loaded, dict):
            return loaded
    return {}


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON by rename, so that a reader sees the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, allow_nan=False, sort_keys=True) + "\n", "utf-8")
    os.replace(part, path)

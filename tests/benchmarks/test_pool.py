"""The pool, with real processes: runs that end, raise, die, are stopped, and go on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pool
from convgym.errors import ConfigError

TARGETS = """
import json, os, pathlib, signal, sys, time

def done(config):
    print("hello from", config["seed"], os.environ["OMP_NUM_THREADS"])
    return "done"

def raises(config):
    raise RuntimeError("no such reward \\x1b[31m")

def stops(config):
    return "interrupted"

def exits(config):
    os._exit(3)

def killed(config):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def sleeps(config):
    out = pathlib.Path(config["out"]); out.mkdir()
    (out / "pid.json").write_text(json.dumps({"pid": os.getpid()}))
    time.sleep(60)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pool.Job]:
    """Makes jobs that call a function of a module which the run's process can import."""
    monkeypatch.setattr(pool, "PRELOAD", ())  # these targets need no torch
    code = tmp_path / "code"
    code.mkdir()
    (code / "pool_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(str(code))

    def make(function: str, seed: int = 0) -> pool.Job:
        folder = tmp_path / "runs" / f"{function}-{seed}"
        return pool.Job(f"{function}/{seed}", folder, {"seed": seed}, f"pool_targets:{function}")

    return make


def run(*jobs: pool.Job, slots: int = 2) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    pool.run_all(jobs, slots=slots, on_end=lambda job, record: records.update({job.name: record}))
    return records


def test_each_fate_is_a_record_and_none_stops_the_others(job: Callable[..., pool.Job]) -> None:
    names = ("killed", "raises", "done", "exits", "stops")
    jobs = [job(name) for name in names]
    records = run(*jobs)
    assert {name: record["status"] for name, record in records.items()} == {
        "done/0": "done", "raises/0": "failed", "stops/0": "interrupted", "exits/0": "failed",
        "killed/0": "failed",
    }  # fmt: skip
    assert records["raises/0"]["error"]["type"] == "RuntimeError"
    assert "no such reward" in records["raises/0"]["error"]["traceback"]
    assert "exit code 3" in records["exits/0"]["error"]["message"]
    assert "SIGKILL" in records["killed/0"]["error"]["message"]
    assert "last words" in records["killed/0"]["error"]["traceback"]
    for one in jobs:  # what was reported is what a later report will read
        assert pool.read_json(one.folder / pool.RECORD) == records[one.name]
    assert [one.name for one in jobs if pool.is_done(one)] == ["done/0"]


def test_a_run_is_one_thread_and_its_words_go_to_its_log(job: Callable[..., pool.Job]) -> None:
    one = job("done", seed=7)
    record = run(one)[one.name]
    assert (one.folder / "log.txt").read_text() == "hello from 7 1\n"
    assert record["cpu_seconds"] >= 0
    assert record["peak_memory_mb"] > 1


def test_another_configuration_is_another_run(job: Callable[..., pool.Job]) -> None:
    one = job("done")
    run(one)
    assert pool.is_done(one)
    changed = pool.Job(one.name, one.folder, {"seed": 1}, one.target)
    assert not pool.is_done(changed)
    run(changed)  # replaces the old folder
    assert pool.is_done(changed)
    assert not pool.is_done(one)


def test_an_interruption_stops_what_is_running_and_keeps_what_is_done(job: Callable[..., pool.Job]) -> None:
    first, second = job("done"), job("sleeps")
    pids: list[int] = []

    def on_end(ended: pool.Job, record: dict[str, Any]) -> None:
        path = second.folder / pool.OUTPUT / "pid.json"
        while "pid" not in pool.read_json(path):
            time.sleep(0.01)
        pids.append(pool.read_json(path)["pid"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run_all([second, first], slots=2, on_end=on_end)
    with pytest.raises(ProcessLookupError):  # the sleeper is gone
        os.kill(pids[0], 0)
    assert pool.is_done(first)
    assert not pool.is_done(second)


def test_a_folder_that_is_not_ours_is_not_touched(job: Callable[..., pool.Job]) -> None:
    one = job("done")
    one.folder.mkdir(parents=True)
    (one.folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="in the way"):
        run(one)
    assert (one.folder / "thesis.txt").read_text() == "years of work"


def test_no_slots_is_refused(job: Callable[..., pool.Job]) -> None:
    with pytest.raises(ConfigError, match="--jobs"):
        run(job("done"), slots=0)


def test_json_is_strict_and_torn_files_are_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        pool.write_json(tmp_path / "x.json", {"loss": float("nan")})
    (tmp_path / "torn.json").write_text('{"status": "do')
    assert pool.read_json(tmp_path / "torn.json") == {}
    assert pool.read_json(tmp_path / "none.json") == {}

"""Contests: processes that do the same work in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 900  # seconds that a round may take

Found = dict[str, Any]
"""JSON-plain results: ``{contestant: {"peak_mb", "versions", "asks": {ask: {"cpu": [...], "wall": [...], ...}}}}``.

A contestant that could not be had is ``{"absent": reason}``, one that broke down ``{"failed": last words}``.
"""


@dataclass(frozen=True)
class Contestant:
    """One process of a contest.

    Attributes:
        name: In tables.
        module: What it runs, ``python -m module``; it speaks ``benchmarks.peers.serve``.
        job: What it prepares, JSON-plain.
        package: What must be importable, if it is a peer: decides the interpreter.
    """

    name: str
    module: str
    job: Mapping[str, Any]
    package: str = ""


@dataclass(frozen=True)
class Conditions:
    """How a contest is held.

    Attributes:
        rounds: How often every contestant does every piece of work.
        pythons: Interpreters to look for peers in, after this one.
        threads: Torch threads of every contestant.
        alone: Whether contestants come one after the other, each with the machine to itself: for a GPU that nobody
            shares, and whose memory would not hold them all.
    """

    rounds: int = 3
    pythons: tuple[str, ...] = ()
    threads: int = 1
    alone: bool = False


class BrokenDownError(Exception):
    """A contestant that ended early; its last words are the message."""


def compete(contestants: Sequence[Contestant], asks: Mapping[str, Mapping[str, Any]], how: Conditions) -> Found:
    """Holds a contest.

    Args:
        contestants: Prepared all before the first round.
        asks: Pieces of work by name; every contestant gets each one in every round.
        how: Rounds, interpreters, threads.

    Returns:
        See ``Found``; every figure of an answer becomes a list, one entry a round.
    """
    found: Found = {}
    if how.alone:
        for contestant in contestants:
            found |= compete([contestant], asks, replace(how, alone=False))
        return found
    with ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for contestant in contestants:
            python = interpreter(contestant.package, how.pythons)
            if python is None:
                looked = 1 + len(how.pythons)
                found[contestant.name] = {"absent": f"{contestant.package} is in none of {looked} interpreters"}
                continue
            worker = stack.enter_context(_started(contestant, python, how.threads))
            try:
                ready = worker.exchange({**contestant.job, "threads": how.threads})
            except BrokenDownError as error:
                found[contestant.name] = {"failed": str(error)}
                continue
            workers[contestant.name] = worker
            found[contestant.name] = {"versions": ready["versions"], "peak_mb": 0.0, "asks": {}}
        for turn in range(how.rounds):
            for ask, what in asks.items():
                for name in list(workers)[:: 1 if turn % 2 == 0 else -1]:
                    try:
                        _note(found[name], ask, workers[name].exchange(what))
                    except BrokenDownError as error:
                        del workers[name]
                        found[name] = {"failed": str(error)}
    return {contestant.name: found[contestant.name] for contestant in contestants}


def least(found: Mapping[str, Any], name: str, ask: str, figure: str = "cpu") -> float | None:
    """The least of a contestant's rounds; ``None`` if it took no part."""
    answers = found.get(name, {}).get("asks", {}).get(ask, {}).get(figure)
    return min(answers) if answers else None


def middle(found: Mapping[str, Any], name: str, ask: str, figure: str) -> float | None:
    """The median of a contestant's rounds; ``None`` if it took no part."""
    answers = sorted(found.get(name, {}).get("asks", {}).get(ask, {}).get(figure) or ())
    return answers[len(answers) // 2] if answers else None


@cache
def interpreter(package: str, pythons: tuple[str, ...]) -> str | None:
    """The first interpreter that has a package, this one first; ``None`` if there is none."""
    looks = f"import sys, importlib.util as u; sys.exit(u.find_spec({package!r}) is None)"
    for python in (sys.executable, *pythons):
        if not package or _succeeds([python, "-c", looks]):
            return python
    return None


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _note(entry: Found, ask: str, answer: Mapping[str, Any]) -> None:
    entry["peak_mb"] = max(entry["peak_mb"], answer["peak_mb"])
    figures = entry["asks"].setdefault(ask, {})
    for name, value in answer.items():
        if name != "peak_mb":
            figures.setdefault(name, []).append(value)


class _Worker:
    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def exchange(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a message and waits for its answer.

        Raises:
            BrokenDownError: If none comes.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(LIMIT, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self._process.wait()
            raise BrokenDownError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text("utf-8", "replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or ["ended without a word"])[-1][:300]


@contextmanager
def _started(contestant: Contestant, python: str, threads: int) -> Iterator[_Worker]:
    count = str(threads)
    # Waiting threads sleep: spinning would be counted as work, and taken from the neighbours.
    settings = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE",
                "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false",
                "PYTHONPATH": str(ROOT)}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with log.open("w") as words:
            process = subprocess.Popen(
                [python, "-m", contestant.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                cwd=ROOT,
                env=os.environ | settings,
            )
        try:
            yield _Worker(process, log)
        finally:
            process.kill()
            process.communicate()

"""The contestant's end of a contest: a process that gets one job, and then plays a round whenever it is asked to.

Messages are lines of JSON: the job comes first, the answer to it says that everything is loaded and warm; then each
ask is answered by what the round took. Only the standard library is imported, since contestants run in interpreters of
their own.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
Play = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Link:
    """Reads the job and the asks, writes the answers.

    Attributes:
        job: What the contest wants to be prepared.
    """

    def __init__(self) -> None:
        # What libraries print goes to the log, not between the answers.
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.job: dict[str, Any] = json.loads(sys.stdin.readline())

    def ready(self, *packages: str) -> None:
        """Says that the job is loaded and warm, and which versions of these packages run."""
        self.answer({"versions": {package: importlib.metadata.version(package) for package in packages}})

    def asks(self) -> Iterator[dict[str, Any]]:
        """What is asked for, one after the other, until the contest is over."""
        for line in sys.stdin:
            yield json.loads(line)

    def answer(self, found: Mapping[str, Any]) -> None:
        """Answers, with the peak memory of this process so far, and of its GPU since the last answer."""
        self._answers.write(json.dumps({**found, **gpu_peak_mb(), "peak_mb": peak_mb()}) + "\n")
        self._answers.flush()


def serve(prepare: Callable[[Mapping[str, Any]], Play], *packages: str) -> None:
    """Runs a contestant whose rounds are function calls.

    Args:
        prepare: Loads and warms up a job; returns what plays a round.
        packages: Distributions whose versions are reported.
    """
    link = Link()
    play = prepare(link.job)
    link.ready(*packages)
    for ask in link.asks():
        link.answer(play(ask))


def timed(work: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """What some work returns, and the CPU seconds (of all threads) and wall seconds that it took.

    What a GPU was given before is awaited first, and what the work gives it belongs to the work.
    """
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    synchronise()
    return result, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def synchronise() -> None:
    """Waits until the GPU has done what it was given, if this process uses one."""
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()


def gpu_peak_mb() -> dict[str, float]:
    """Most memory that this process's tensors have held on the GPU since the last call, in MiB; empty without one."""
    cuda = _cuda()
    if cuda is None:
        return {}
    peak = cuda.max_memory_allocated() / 2**20
    cuda.reset_peak_memory_stats()
    return {"gpu_mb": peak}


def _cuda() -> Any:
    """``torch.cuda``, once something has loaded torch and used a GPU with it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def peak_mb() -> float:
    """Most memory that this process has held, in MiB.

    Not ``ru_maxrss`` where the system tells more: that one begins with the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    scale = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale

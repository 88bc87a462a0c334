"""The loop: collect -> credit -> update -> log -> evaluate -> save.

``train`` is also ``python -m algos.training.train`` and ``convgym train``. Several processes (``accelerate
launch``) each collect their share of the conversations and add up their gradients, with the same result as
one.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from algos.learner.faults import Interrupts
from algos.training.config import RunConfig, from_args
from algos.training.run import Run
from convgym.errors import ConvgymError


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: ``config.json``, ``metrics.jsonl``, ``samples.jsonl``, ``tb/``, ``checkpoints/``,
            ``policy/`` (a Hugging Face folder) and ``result.json``.
        status: ``"done"``, or ``"interrupted"`` by a signal, and saved; ``resume`` goes on.
        history: The records of ``metrics.jsonl``.
        result: The content of ``result.json``; empty if interrupted.
    """

    folder: Path
    status: str
    history: list[dict[str, Any]]
    result: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> RunResult:
        """Reads back what a run has written so far."""
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        path = folder / "result.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return cls(folder, result.get("status", "interrupted"), [json.loads(line) for line in lines], result)


def train(config: RunConfig, *, resume: bool = False) -> RunResult:
    """Trains a policy.

    Args:
        config: The run.
        resume: Goes on with the run in the output folder from its last checkpoint, if there is one; what
            comes out is the same as if it had never stopped.

    Raises:
        ConfigError: If something cannot be had (environment, model, folder ...). Nothing was written then.
        DivergedError: If gradients stopped being finite; ``result.json`` says so too.
        CheckpointError: If a checkpoint cannot be written, or none can be read.
    """
    run = Run(config, resume=resume)
    with run.recorded(), Interrupts() as interrupts:
        if run.step == 0 and not run.done:
            run.evaluate()
        stop = False
        while not run.done and not stop:
            started = time.perf_counter()
            episodes = run.collect()
            collected = time.perf_counter()
            metrics = run.update(episodes)
            updated = time.perf_counter()
            run.log(episodes, metrics, rollout=collected - started, update=updated - collected)
            stop = run.anyone(interrupts.requested)
            if run.due(run.config.eval_every):
                run.evaluate()
            if run.due(run.config.save_every) or run.done or stop:
                run.save()
        if run.done:
            run.finish()
    return RunResult.read(run.folder)


def launch(config: RunConfig, *, resume: bool = False) -> int:
    """Trains, and says on the terminal how it ended; returns the exit code: 0, or 130 after a signal."""
    result = train(config, resume=resume)
    if result.status != "done":
        print(f"Interrupted, and saved. Go on with: --resume --out {result.folder}", file=sys.stderr)
        return 130
    if not config.quiet and PartialState().is_main_process:
        final = result.result["final"]
        print(f"{result.folder}: success {final['success']:.1%}, return {final['return']:.3f}")
    return 0


def main() -> int:
    """``python -m algos.training.train``, which is also what ``accelerate launch -m`` starts."""
    try:
        config, resume = from_args(sys.argv[1:])
        return launch(config, resume=resume)
    except ConvgymError as error:
        print(f"convgym: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

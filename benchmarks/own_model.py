"""Trains a real pretrained model for a few updates: ``python -m benchmarks.own_model``.

Shows that ``--model FOLDER`` takes any causal language model: two GRPO updates of SmolLM2-135M-Instruct on a few
conversations with full instructions, on a CPU, with what it took and whether the weights moved. The environment is
TextBandit with a cost for each word, registered here under an id of its own: that is how a wrapped environment is
trained on, and an untrained model gets returns that differ.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import torch
import tyro
from rich.console import Console
from rich.table import Table

from algos.policies.load import load_policy
from algos.training.config import RunConfig
from algos.training.train import train
from convgym.wrappers import LengthCost

CONCISE = "benchmarks/ConciseBandit-v0"
gym.register(
    CONCISE,
    entry_point="convgym.scenarios.text_bandit:TextBandit",
    kwargs={"instructions": "full", "max_turns": 2},
    additional_wrappers=(LengthCost.wrapper_spec(cost=0.01, unit="word"),),
    disable_env_checker=True,
)


@dataclass(frozen=True)
class Options:
    """Trains a pretrained model for a few updates and says what it took."""

    model: str = "smollm2-135m"
    """`smollm2-135m` (see `make smollm`), or the folder of a causal language model."""
    updates: int = 2
    """Optimiser steps."""
    episodes: int = 8
    """Conversations an update, in groups of 4."""
    threads: int = 2
    """Torch threads."""
    out: str | None = None
    """Folder of the run; a temporary one by default."""


def measure(options: Options) -> dict[str, float]:
    """Trains, and measures.

    Returns:
        Seconds of loading, per update and in all, peak memory in MB, and how many of the weights moved and how far.
    """
    start = time.perf_counter()
    before = {name: p.detach().clone() for name, p in load_policy(options.model).model.named_parameters()}
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        config = RunConfig(
            env=CONCISE, algo="grpo",
            model=options.model, updates=options.updates,
            episodes_per_update=options.episodes, group_size=4, lanes=options.episodes, max_turn_tokens=24,
            eval_episodes=options.episodes, threads=options.threads, device="cpu", tensorboard=False,
            out=options.out or str(Path(scratch) / "run"),
        )  # fmt: skip
        result = train(config)
        after = dict(load_policy(result.folder / "policy").model.named_parameters())
    moved = [(after[name] - value).abs() for name, value in before.items()]
    records = [record for record in result.history if record["kind"] == "train"]
    return {
        "seconds_load": loaded - start,
        "seconds_per_update": sum(r["seconds_rollout"] + r["seconds_update"] for r in records) / len(records),
        "seconds": time.perf_counter() - start,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "return": sum(r["return"] for r in records) / len(records),
        "informative_groups": sum(r["informative_groups"] for r in records) / len(records),
        "tokens_per_episode": sum(r["tokens_per_episode"] for r in records) / len(records),
        "moved_share": float(sum(m.gt(0).sum() for m in moved) / sum(m.numel() for m in moved)),
        "moved_most": float(max(m.max() for m in moved)),
    }


def main() -> None:
    """Command line."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    found = measure(options)
    table = Table(
        "measure", "value", title=f"{options.model}: {options.updates} updates of {options.episodes} episodes"
    )
    for name, value in found.items():
        table.add_row(name, f"{value:,.6g}")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Everything about speed in one command: ``python -m benchmarks.speed --write docs/benchmarks/throughput.md``.

Environments, decoding, one update of each algorithm, and the benchmark work of stateset-agents, measured in one run
with one thread, in CPU seconds of this process: wall time on a shared machine says more about the neighbours. The
figures go into the page between its markers and, as JSON, beside it.
"""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.markdown import Markdown

import algos
from algos.learner.learner import Learner, LearnerConfig
from algos.policies.load import load_policy
from algos.rollout.collect import Collector, group_requests
from benchmarks import provenance
from benchmarks.env_speed import LANES as ENV_LANES
from benchmarks.env_speed import measure_envs
from benchmarks.peers.games import measure_games
from benchmarks.stateset_work import Options as StatesetOptions
from benchmarks.stateset_work import measure as measure_stateset_work
from benchmarks.suites import CUSTOMER_SERVICE, GRPO, PPO, REINFORCE, SLOT_FILLING, Entry, EnvSpec
from benchmarks.throughput import LANES, decode_rates
from convgym.errors import ConfigError
from convgym.vector import ConversationVectorEnv

BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"


def measure_update(entry: Entry, spec: EnvSpec, *, episodes: int = 64, repeat: int = 3) -> dict[str, Any]:
    """CPU seconds of a rollout and of an update, with the settings of the quick suite.

    Args:
        entry: Algorithm with its fields.
        spec: Environment.
        episodes: Conversations an update.
        repeat: Measured repetitions, after one that is not counted; medians are reported.
    """
    policy = load_policy("nano")
    envs = ConversationVectorEnv([lambda: gym.make(spec.id, **spec.kwargs)] * episodes, "Disabled")
    collector = Collector(envs, policy)
    config = LearnerConfig(learning_rate=entry.learning_rate, device="cpu", **entry.settings)
    learner = Learner(policy, algos.make(entry.algo, **entry.algo_fields), config)
    rollout, update, sampled, tokens = [], [], 0, 0
    for repetition in range(repeat + 1):
        start = time.process_time()
        made = collector.collect(group_requests(0, repetition * 8, episodes // 8, 8), version=learner.step).episodes
        middle = time.process_time()
        learner.update(made)
        rollout.append(middle - start)
        update.append(time.process_time() - middle)
        sampled, tokens = sum(int(e.action.sum()) for e in made), sum(len(e.ids) for e in made)
    return {
        "env": spec.short,
        "algorithm": entry.name,
        "episodes": episodes,
        "tokens": tokens,
        "sampled_tokens": sampled,
        "rollout_cpu_seconds": float(np.median(rollout[1:])),
        "update_cpu_seconds": float(np.median(update[1:])),
    }


def measure() -> dict[str, Any]:
    """All figures, JSON-plain."""
    torch.set_num_threads(1)
    policy = load_policy("nano")
    updates = [measure_update(e, s) for s in (CUSTOMER_SERVICE, SLOT_FILLING) for e in (GRPO, PPO, REINFORCE)]
    envs, (games, absent) = measure_envs(), measure_games()
    return {
        **provenance.describe("python -m benchmarks.speed"),
        "envs": envs,
        "games": games,
        "games_absent": absent,
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "decode": {name: dict(rates) for name, rates in decode_rates(policy, LANES, 150, 100, 3).items()},
        "updates": updates,
        "stateset_work": measure_stateset_work(StatesetOptions()),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def render(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    decode, work, machine = found["decode"], found["stateset_work"], found["machine"]
    envs = [
        (r["env"], f"{r['steps_per_second']:,.0f}", f"{r['reset_us']:.0f}", f"{r['step_us']:.1f}",
         f"{r['single_us']:.1f}", f"{r['vector_us']:.1f}", f"{r['lanes_us']:.1f}")
        for r in found["envs"]
    ]  # fmt: skip
    games = [
        (f"{r['project']} {r['env']}", f"{r['steps_per_second']:,.0f}", f"{r['steps_per_episode']:.1f}")
        for r in found["games"]
    ]
    if games:
        of_others = "**Text games of others**, the same run, random legal moves, resets included:\n\n" + table(
            ("game", "steps/s", "steps an episode"), games
        )
    else:
        of_others = f"Text games of others: {', '.join(found['games_absent'])} not installed in this run."
    decoding = [
        (str(n), *(f"{decode[name][n]:,.0f}" for name in decode), f"{decode['engine'][n] / decode['generate'][n]:.1f}x")
        for n in LANES
    ]
    updates = [
        (f"{u['env']}, {u['algorithm']}", f"{u['tokens']:,}", f"{u['sampled_tokens']:,}",
         f"{u['rollout_cpu_seconds']:.2f}", f"{u['update_cpu_seconds']:.2f}")
        for u in found["updates"]
    ]  # fmt: skip
    return "\n\n".join(
        (
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load_at_start']} at the start; Python "
            f"{found['versions']['python']}, torch {found['versions']['torch']}, transformers "
            f"{found['versions']['transformers']}; commit {found['commit'].get('id', 'none')[:10]}; "
            f"{found['started']}. One thread, CPU seconds.",
            "**Environments**, recorded messages of the oracle through `gym.make`, resets included; the last columns "
            f"are microseconds a step of one conversation, of {ENV_LANES} through `gym.make_vec(...).step`, and of "
            f"{ENV_LANES} through `step_lanes`:",
            table(("environment", "steps/s", "reset, us", "step, us", "single", "vector", "lanes"), envs),
            of_others,
            f"**Decoding**, `nano` ({found['parameters'] / 1e6:.2f}M parameters), 150 tokens of prompt and 100 "
            "sampled, tokens/s:",
            table(("lanes", *decode, "engine / generate"), decoding),
            "**One iteration** of the quick suite, 64 conversations, CPU seconds:",
            table(("environment, algorithm", "tokens", "sampled", "rollout", "update"), updates),
            "**The benchmark work of stateset-agents** (`benchmarks/stateset_work.py`: 8 conversations x 3 turns x 32 "
            f"tokens, {work['parameters'] / 1e6:.2f}M parameters): rollout {work['rollout_cpu_seconds']:.2f} CPU-s "
            f"({work['tokens_per_cpu_second']:,.0f} tokens/s), update {work['update_cpu_seconds']:.2f} CPU-s.",
        )
    )


@dataclass(frozen=True)
class Options:
    """Measures environments, decoding, updates and the benchmark work of stateset-agents."""

    write: Path | None = None
    """Page whose figures are replaced; the JSON goes beside it."""


def main() -> None:
    """Command line."""
    options = tyro.cli(Options)
    found = measure()
    text = render(found)
    Console().print(Markdown(text))
    if options.write is not None:
        page = options.write.read_text("utf-8")
        if BEGIN not in page or END not in page:
            raise ConfigError(f"{options.write}: expected the markers {BEGIN} and {END}, found none; add them.")
        block = f"{BEGIN}\n{text}\n{END}"
        options.write.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: block, page, flags=re.DOTALL), "utf-8")
        options.write.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""How fast things go on this machine.

``python -m benchmarks.throughput --decode`` measures how many tokens a second a policy samples, by the number
of lanes: through the rollout engine's fast path, through the model's own forward over the engine's cache, and
through ``generate`` of transformers, with the same weights, prompts of the same length and the same number of
new tokens.

``python -m benchmarks.throughput --envs`` measures how many steps a second every environment takes, and the
text games of GEM and TextArena in the same run, where they are installed.

Rates are per CPU second of this process (one thread), the best of a few rounds in which the contestants take
turns: wall time on a shared machine says more about the neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from algos.policies.load import Policy, load_policy
from algos.rollout.engine import Engine
from algos.rollout.lean import is_lean
from benchmarks import env_speed
from benchmarks.peers.games import measure_games

LANES = (8, 32, 64, 128)
Rates = dict[str, dict[int, float]]
Contestant = Callable[[Policy, NDArray[np.int64], int], float]


def decode_rates(policy: Policy, lanes: tuple[int, ...], prompt: int, new: int, rounds: int) -> Rates:
    """Sampled tokens per CPU second in pure decoding, by contestant and number of lanes.

    Args:
        policy: Whose model decodes.
        lanes: Numbers of conversations at once.
        prompt: Tokens before the first sampled one.
        new: Tokens sampled in each conversation.
        rounds: The best of so many counts.
    """
    contestants: dict[str, Contestant] = {"engine": _engine, "generate": _generate}
    if is_lean(policy.model):
        contestants = {"engine": _engine, "engine, general path": _general, "generate": _generate}
    rates: Rates = {name: dict.fromkeys(lanes, 0.0) for name in contestants}
    for _ in range(rounds):
        for n in lanes:
            ids = _prompts(policy, n, prompt)
            for name, contestant in contestants.items():
                # The difference is decoding alone: both runs feed the prompts and sample a first token.
                seconds = contestant(policy, ids, 1 + new) - contestant(policy, ids, 1)
                rates[name][n] = max(rates[name][n], n * new / max(seconds, 1e-9))
    return rates


def _prompts(policy: Policy, lanes: int, length: int) -> NDArray[np.int64]:
    """Random tokens, [lanes, length]: no two conversations share a prefix."""
    control = sorted(policy.chat.control_ids)
    words = np.setdiff1d(np.arange(len(policy.tokenizer)), control)
    return np.random.default_rng(0).choice(words, (lanes, length))


def _engine(policy: Policy, prompts: NDArray[np.int64], new: int, lean: bool | None = None) -> float:
    lanes, length = prompts.shape
    engine = Engine(
        policy.model, eos_ids=(), lanes=lanes, capacity=length + new + 1, max_turn_tokens=new, lean=lean
    )
    start = time.process_time()
    for lane, ids in enumerate(prompts.tolist()):
        engine.start(lane, ids, sample_seed=lane)
    while engine.advance():
        pass
    return time.process_time() - start


def _general(policy: Policy, prompts: NDArray[np.int64], new: int) -> float:
    return _engine(policy, prompts, new, lean=False)


def _generate(policy: Policy, prompts: NDArray[np.int64], new: int) -> float:
    model: Any = policy.model
    ids = torch.from_numpy(prompts)
    start = time.process_time()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            min_new_tokens=new,
            max_new_tokens=new,
            eos_token_id=None,
            pad_token_id=policy.pad_id,
        )
    return time.process_time() - start


def show(rates: Rates, console: Console) -> None:
    """Prints the rates as a table, with the ratio to ``generate``."""
    table = Table("lanes", *rates, "engine / generate", title="decoding, tokens per CPU second, one thread")
    for lanes in rates["engine"]:
        ratio = rates["engine"][lanes] / rates["generate"][lanes]
        table.add_row(str(lanes), *(f"{rates[name][lanes]:,.0f}" for name in rates), f"{ratio:.2f}x")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for; prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--decode", action="store_true", help="sampled tokens a second")
    what.add_argument("--envs", action="store_true", help="steps a second of the environments, peers beside them")
    parser.add_argument("--model", default="nano", help="a name or folder that load_policy takes")
    parser.add_argument("--lanes", type=int, nargs="+", default=LANES, help="conversations at once")
    parser.add_argument("--prompt", type=int, default=150, help="tokens before the first sampled one")
    parser.add_argument("--new", type=int, default=100, help="tokens sampled in each conversation")
    parser.add_argument("--episodes", type=int, default=300, help="conversations that are replayed in each environment")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result = _envs(options) if options.envs else _decode(options)
    text = json.dumps(result)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def _decode(options: argparse.Namespace) -> dict[str, Any]:
    policy = load_policy(options.model)
    rates = decode_rates(policy, tuple(options.lanes), options.prompt, options.new, options.rounds)
    show(rates, Console())
    return {
        "model": policy.name,
        "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "prompt": options.prompt,
        "new": options.new,
        "load_1min": os.getloadavg()[0],
        "tokens_per_cpu_second": rates,
    }


def _envs(options: argparse.Namespace) -> dict[str, Any]:
    console = Console()
    rows = env_speed.measure_envs(options.episodes, options.rounds)
    env_speed.show(rows, console)
    games, absent = measure_games(rounds=options.rounds)
    table = Table("project", "game", "steps/s", "steps an episode", title="text games of others, the same run")
    for row in games:
        table.add_row(
            row["project"], row["env"], f"{row['steps_per_second']:,.0f}", f"{row['steps_per_episode']:.1f}"
        )
    if games:
        console.print(table)
    if absent:
        console.print(f'not installed: {", ".join(absent)}; pip install "convgym[peers]" to measure them too')
    return {"envs": rows, "games": games, "load_1min": os.getloadavg()[0]}


if __name__ == "__main__":
    main()

"""How fast the conversation environments are.

``python -m benchmarks.env_speed`` replays recorded messages of the oracle, resets included, on one core:
through ``gym.make``, through ``gym.make_vec``, and through the lane-wise calls of the vector env that
rollouts use.

Times are CPU seconds of this process, the best of a few rounds in which the contestants take turns: wall time
on a shared machine says more about the neighbours. The messages were heard before, as most of what a group of
conversations says is; reading a new one takes a dozen microseconds more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

import convgym
from convgym import agents
from convgym.vector import ConversationVectorEnv

LANES = 8
Scripts = list[list[str]]
"""What the oracle says in the episode of each seed ``0, 1, ...``."""


def measure_envs(episodes: int = 300, rounds: int = 7, ids: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measures environments.

    Args:
        episodes: Seeds that are replayed.
        rounds: The best of so many counts.
        ids: Environments; all registered ones if empty.

    Returns:
        One row an environment: ``env``, ``steps_per_second`` with resets included, ``reset_us``, ``step_us``
        without resets, ``steps_per_episode``, and microseconds an env step with resets included:
        ``single_us``, ``vector_us`` (8 lanes through ``step``), ``lanes_us`` (8 through ``step_lanes``).
    """
    return [measure(env_id, episodes, rounds) for env_id in ids or tuple(convgym.ENVIRONMENTS)]


def measure(env_id: str, episodes: int, rounds: int) -> dict[str, Any]:
    """Measures one environment; see :func:`measure_envs`."""
    env, vector = gym.make(env_id), gym.make_vec(env_id, LANES, autoreset_mode="Disabled")
    assert isinstance(vector, ConversationVectorEnv)
    scripts = record(env, episodes)
    steps = sum(map(len, scripts))
    contestants: dict[str, Callable[[], None]] = {
        "single": lambda: replay(env, scripts),
        "resets": lambda: replay(env, [[] for _ in scripts]),
        "vector": lambda: replay_vector(vector, scripts),
        "lanes": lambda: replay_lanes(vector, scripts),
    }
    seconds = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, work in contestants.items():
            start = time.process_time()
            work()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return {
        "env": env_id,
        "steps_per_second": steps / seconds["single"],
        "reset_us": 1e6 * seconds["resets"] / episodes,
        "step_us": 1e6 * (seconds["single"] - seconds["resets"]) / steps,
        "steps_per_episode": steps / episodes,
        "single_us": 1e6 * seconds["single"] / steps,
        "vector_us": 1e6 * seconds["vector"] / steps,
        "lanes_us": 1e6 * seconds["lanes"] / steps,
    }


def record(env: gym.Env[str, str], episodes: int) -> Scripts:
    """Plays the oracle with seeds 0, 1, ... and keeps what it said."""
    oracle = agents.make("oracle", env)
    scripts: Scripts = []
    for seed in range(episodes):
        obs, info = env.reset(seed=seed)
        oracle.reset(obs, info)
        script: list[str] = []
        while "end_reason" not in info:
            script.append(oracle.act(obs, info))
            obs, _, _, _, info = env.step(script[-1])
        scripts.append(script)
    return scripts


def replay(env: gym.Env[str, str], scripts: Scripts) -> None:
    """Says the scripts one after the other."""
    for seed, script in enumerate(scripts):
        env.reset(seed=seed)
        for action in script:
            env.step(action)


def replay_vector(vector: ConversationVectorEnv, scripts: Scripts) -> None:
    """Says the scripts in all lanes at once; lane ``i`` says script ``i``, ``i + 8``, ..."""
    lanes = range(vector.num_envs)
    seeds, turn = list(lanes), [0] * vector.num_envs
    vector.reset(seed=seeds)
    while max(seeds) < len(scripts):
        actions = [scripts[seeds[lane]][turn[lane]] for lane in lanes]
        _, _, terminated, truncated, _ = vector.step(actions)
        turn = [at + 1 for at in turn]
        if (ended := terminated | truncated).any():
            for lane in np.flatnonzero(ended).tolist():
                seeds[lane], turn[lane] = seeds[lane] + vector.num_envs, 0
            vector.reset(seed=seeds, options={"reset_mask": ended})


def replay_lanes(vector: ConversationVectorEnv, scripts: Scripts) -> None:
    """Says the scripts in lanes that wait for nobody."""
    waiting = list(enumerate(scripts))[::-1]
    left: dict[int, list[str]] = {}
    for lane in range(vector.num_envs):
        _begin(vector, lane, waiting, left)
    while left:
        lanes = list(left)
        for lane, step in zip(lanes, vector.step_lanes(lanes, [left[lane].pop() for lane in lanes])):
            if step[2] or step[3]:
                del left[lane]
                _begin(vector, lane, waiting, left)


def _begin(
    vector: ConversationVectorEnv, lane: int, waiting: list[tuple[int, list[str]]], left: dict[int, list[str]]
) -> None:
    if waiting:
        seed, script = waiting.pop()
        vector.reset_lane(lane, seed=seed)
        left[lane] = script[::-1]


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the rows as a table."""
    table = Table(title="environments, one core; us a step with resets: single, vector of 8, 8 lanes")
    for i, head in enumerate(("", "steps/s", "us a reset", "us a step", "single", "vector", "lanes")):
        table.add_column(head, justify="left" if i == 0 else "right")
    for row in rows:
        times = [row[key] for key in ("reset_us", "step_us", "single_us", "vector_us", "lanes_us")]
        name = row["env"].removeprefix("convgym/")
        table.add_row(name, f"{row['steps_per_second']:,.0f}", *(f"{each:.1f}" for each in times))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for; prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.env_speed", description=__doc__)
    parser.add_argument("--episodes", type=int, default=300, help="seeds that are replayed")
    parser.add_argument("--rounds", type=int, default=7, help="the best of so many counts")
    options = parser.parse_args(arguments)
    rows = measure_envs(options.episodes, options.rounds)
    show(rows, Console())
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

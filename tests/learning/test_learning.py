"""Algorithms teach something, and shuffled rewards teach nothing: real runs, over seeds, with intervals."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks import pool, results, stats
from benchmarks.suites import GRPO, PPO, REINFORCE, SHUFFLED, SLOT_FILLING, Entry, EnvSpec, Suite

pytestmark = pytest.mark.learning

BANDIT = EnvSpec("convgym/TextBandit-v0", {"difficulty": 2})
ALGORITHMS = (GRPO, PPO, REINFORCE)
SUITE = Suite(
    name="learning",
    envs=(BANDIT, SLOT_FILLING),
    entries=(*ALGORITHMS, SHUFFLED),
    seeds=4,
    settings={
        "model": "nano",
        "updates": 12,
        "episodes_per_update": 64,
        "group_size": 8,
        "eval_episodes": 192,
        "eval_every": 10**6,
        "save_every": 10**6,
        "tensorboard": False,
        "quiet": True,
    },
)


ENVS = [pytest.param(env, id=env.short) for env in SUITE.envs]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[results.Row]]:
    """One row a run; every run came to its end."""
    out = tmp_path_factory.mktemp("learning")
    runs = SUITE.runs()
    records: list[tuple[str, str]] = []
    jobs = [pool.Job(run.name, results.run_folder(out, run), run.config()) for run in runs]
    pool.run_all(
        jobs,
        slots=os.cpu_count() or 2,
        on_end=lambda job, record: records.append((job.name, str(record.get("error") or record["status"]))),
    )
    assert {status for _, status in records} == {"done"}, records
    yield [results.read_row(run, results.run_folder(out, run)) for run in runs]


def gains(rows: list[results.Row], env: EnvSpec, entry: Entry) -> list[float]:
    """Held-out return after training minus before it, a seed; the same conversations both times."""
    return [
        row.final.episode_return - row.start.episode_return
        for row in sorted(rows, key=lambda row: row.seed)
        if row.env == env.id and row.entry == entry.name
    ]


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("entry", ALGORITHMS, ids=lambda entry: entry.name)
def test_beats_its_start(rows: list[results.Row], env: EnvSpec, entry: Entry) -> None:
    gain = stats.t_interval([gains(rows, env, entry)])
    assert gain.low > 0, gain


@pytest.mark.parametrize("env", ENVS)
def test_shuffled_rewards_teach_nothing(rows: list[results.Row], env: EnvSpec) -> None:
    shuffled = gains(rows, env, SHUFFLED)
    assert stats.t_interval([shuffled]).low <= 0, shuffled
    for entry in ALGORITHMS:  # and are behind every algorithm, on the same seeds
        differences = [a - b for a, b in zip(gains(rows, env, entry), shuffled, strict=True)]
        assert stats.t_interval([differences]).low > 0, (entry.name, differences)

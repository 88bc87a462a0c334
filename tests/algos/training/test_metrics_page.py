"""The glossary of the metrics holds every key that is logged, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import algos
from algos.learner.flops import utilisation
from algos.policies.load import Policy
from algos.training.train import train
from tests.algos.batches import ZOO, judged, score, table
from tests.algos.learner.made import conversations, learner_of
from tests.algos.test_zoo import a_batch
from tests.algos.training.made import run_config

PAGE = Path(__file__).resolve().parents[3] / "docs" / "algorithms" / "metrics.md"
ROWS = [line.split("|") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
KEYS = [key for row in ROWS for key in re.findall(r"`([^`]+)`", row[1])]


def algorithms_own() -> set[str]:
    """What credit and loss of every algorithm, with every option, say about a batch."""
    keys: set[str] = set()
    for algorithm in ZOO.values():
        credit, data, _ = judged(algorithm, a_batch())
        keys |= set(credit.metrics) | set(algorithm.loss(score(data, table()), data)[1])
    return keys


@pytest.fixture(scope="module")
def logged(model_folder: Path, tiny_policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Keys of a real run, of a learner that corrects for its sampler, and of all algorithms."""
    config = run_config(
        model_folder,
        tmp_path_factory.mktemp("run") / "run",
        algo="ppo",
        algo_fields={"kl": {"beta": 0.1}},
        updates=1,
        eval_modes=("sample", "greedy"),
    )
    keys = {key for record in train(config).history for key in record}
    learner = learner_of(tiny_policy, "reinforce", mismatch_limit=0.0)
    episodes = conversations(tiny_policy)
    apart = [dataclasses.replace(e, logp=e.logp - 0.1 * e.action) for e in episodes]
    learner.update(apart)
    on_a_gpu = set(utilisation(1.0, 1.0, limit=1.0))  # its share of the device's peak, where that is known
    return keys | set(learner.update(apart)) | algorithms_own() | on_a_gpu


def test_each_key_stands_there_once() -> None:
    assert len(KEYS) > 40 and len(KEYS) == len(set(KEYS))


def test_the_glossary_is_what_is_logged(logged: set[str]) -> None:
    found = {"reward/NAME" if key.startswith("reward/") else key for key in logged}
    assert found - set(KEYS) == set(), "logged, but not in docs/algorithms/metrics.md"
    assert set(KEYS) - found == set(), "in docs/algorithms/metrics.md, but not logged"


def test_algorithms_in_the_glossary_exist() -> None:
    named = {name for row in ROWS if len(row) == 5 for name in re.findall(r"`(\w+)`", row[2])}
    options = {"kl", "mask_truncated", "drop_dead"}
    assert {"topr", "remax"} <= named and named - options <= set(algos.names())

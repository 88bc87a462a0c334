"""The literal data: every suite must be runnable as it stands, and fair."""

from __future__ import annotations

import json

import pytest

from algos.training.config import RunConfig
from benchmarks import results, suites
from benchmarks.suites import Entry
from convgym.errors import ConfigError, UnknownNameError
from convgym.registration import ENVIRONMENTS


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=suites.SUITES)
def test_every_run_is_a_legal_configuration(suite: suites.Suite) -> None:
    for run in suite.runs():
        RunConfig(**run.config(), out="unused")
        assert run.env.id in ENVIRONMENTS
        assert json.loads(json.dumps(run.config())) == results.plain(run.config())


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=suites.SUITES)
def test_entries_differ_in_the_algorithm_and_in_nothing_else(suite: suites.Suite) -> None:
    """Equal seeds, starts and budgets: what is left is the algorithm, its learning rate, and the control."""
    own = {"algo", "algo_fields", "learning_rate", "critic_learning_rate", "critic", "critic_warmup", "control"}
    for seed in range(suite.seeds):
        for env in suite.envs:
            shared = [
                {key: value for key, value in run.config().items() if key not in own}
                for run in suite.runs()
                if run.seed == seed and run.env == env
            ]
            assert len(shared) == len(suite.entries)
            assert all(config == shared[0] for config in shared)


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=suites.SUITES)
def test_names_are_unique_and_the_queue_starts_with_the_longest(suite: suites.Suite) -> None:
    runs = suite.runs()
    assert len({run.name for run in runs}) == len(runs)
    costs = [run.cost for run in runs]
    assert costs == sorted(costs, reverse=True)


def test_quick_has_what_a_ranking_needs() -> None:
    quick = suites.get("quick")
    assert {e.name for e in quick.entries if e.control == "none"} >= {"grpo", "ppo", "reinforce"}
    assert any(e.control == "shuffled_rewards" for e in quick.entries)
    assert quick.seeds >= 4
    assert len(quick.envs) >= 2


def test_select_cuts_down() -> None:
    cut = suites.get("quick").select(seeds=2, envs=["SlotFilling-v0"], algos=["ppo", "grpo"])
    assert [env.id for env in cut.envs] == ["convgym/SlotFilling-v0"]
    assert [entry.name for entry in cut.entries] == ["ppo", "grpo"]
    assert len(cut.runs()) == 4
    assert suites.get("quick").select() == suites.get("quick")


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'quick'"):
        suites.get("quik")
    with pytest.raises(UnknownNameError, match="'grpo'"):
        suites.get("quick").select(algos=["grp"])
    with pytest.raises(UnknownNameError, match="SlotFilling-v0"):
        suites.get("quick").select(envs=["SlotFiling-v0"])
    with pytest.raises(ConfigError, match="--seeds"):
        suites.get("quick").select(seeds=0)


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=suites.SUITES)
def test_a_suite_survives_its_file(suite: suites.Suite) -> None:
    saved = json.loads(json.dumps(results.suite_to_json(suite)))
    again = results.suite_from_json(saved)
    assert results.suite_to_json(again) == saved
    assert [results.plain(run.config()) for run in again.runs()] == [
        results.plain(run.config()) for run in suite.runs()
    ]


def test_an_algorithm_of_ones_own_runs_beside_the_others() -> None:
    suite = suites.get("quick").with_entries(["rloo"], 1e-4)
    assert [entry.name for entry in suite.entries] == [*(e.name for e in suites.get("quick").entries), "rloo"]
    assert {run.config()["learning_rate"] for run in suite.runs() if run.entry.name == "rloo"} == {1e-4}
    assert suite.select(algos=["rloo"]).entries == (Entry("rloo", "rloo", 1e-4),)
    with pytest.raises(UnknownNameError, match="rloo"):
        suites.get("quick").with_entries(["rlo"], 1e-4)
    for names in (["grpo"], ["rloo", "rloo"]):
        with pytest.raises(ConfigError, match="already"):
            suites.get("quick").with_entries(names, 1e-4)

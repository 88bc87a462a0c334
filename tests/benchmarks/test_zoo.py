"""The proof that algorithms beat their start: choices, verdicts, and pages that say what was measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algos
from benchmarks import results, stats, suites, zoo
from benchmarks.command import guarded
from benchmarks.results import Evaluation, Results, Row
from benchmarks.stats import Interval
from benchmarks.suites import Entry, EnvSpec, Suite
from convgym.errors import ConfigError
from tests.benchmarks.conftest import hand_made_suite

RATES = json.loads(zoo.RATES.read_text("utf-8"))["entries"]


# ------------------------------------------------------------------------------------------------------ choices


def test_every_algorithm_that_learns_from_rewards_is_in_the_zoo() -> None:
    built_in = set(algos.ALGORITHMS)
    assert {entry.algo for entry in suites.ZOO} == built_in - {"bc"}


@pytest.mark.parametrize("entry", suites.ZOO, ids=lambda entry: entry.name)
def test_the_rate_is_the_best_of_the_same_four_for_all(entry: Entry) -> None:
    swept = {float(rate): area for rate, area in RATES[entry.name]["areas"].items()}
    assert sorted(swept) == sorted(suites.RATES)
    assert entry.learning_rate == RATES[entry.name]["best"] == zoo.best(swept)


def test_no_rate_was_chosen_where_it_is_judged() -> None:
    judged, chosen = suites.get("zoo").envs, suites.get("zoo-rates").envs
    assert not {env.id for env in judged} & {env.id for env in chosen}


def test_of_equal_rates_the_smallest_is_the_best() -> None:
    assert zoo.best({4e-4: 0.5, 1e-4: 0.4, 2e-4: 0.5}) == 2e-4


def test_a_sweep_with_a_missing_run_chooses_nothing() -> None:
    suite = dataclasses.replace(suites.get("zoo-rates").select(algos=["grpo@0.00025"]), seeds=2)
    done = Row(suite.envs[0].id, "grpo@0.00025", 0, "done", success=[0.2, 0.4])
    with pytest.raises(ConfigError, match="every run"):
        zoo.areas(Results(suite, [done, dataclasses.replace(done, seed=1, status="failed")]))
    again = dataclasses.replace(done, seed=1, success=[0.4, 0.6])
    assert zoo.areas(Results(suite, [done, again])) == {"grpo": {2.5e-4: pytest.approx(0.4)}}


# ----------------------------------------------------------------------------------------------------- verdicts


def suite_of(*names: str, seeds: int) -> Suite:
    budget = {"model": "nano", "updates": 2, "episodes_per_update": 8, "eval_episodes": 16}
    entries = tuple(Entry(name, "grpo", 1e-4, {"minibatches": 4}) for name in names)
    return Suite("hand", (EnvSpec("convgym/TextBandit-v0"),), entries, seeds, budget)


def rows_of(entry: str, gained: list[float], env: str = "convgym/TextBandit-v0") -> list[Row]:
    def said(value: float) -> Evaluation:
        return Evaluation(episodes=16, success=value / 2, episode_return=value)

    return [
        Row(env, entry, seed, "done", start=said(0.4), final=said(0.4 + gain),
            start_greedy=said(0.5), final_greedy=said(0.5))
        for seed, gain in enumerate(gained)
    ]  # fmt: skip


def test_gains_are_paired_over_seeds() -> None:
    gained = [0.1, 0.2, 0.3, 0.2]
    (cell,) = zoo.gains(Results(suite_of("a", seeds=4), rows_of("a", gained)))
    assert cell.gain == pytest.approx(stats.t_interval([np.array(gained)]))
    # mean .2, standard error .0816 / 2, and the t quantile of 3 degrees of freedom is 3.182
    assert (cell.gain.low, cell.gain.high) == pytest.approx((0.2 - 0.1299, 0.2 + 0.1299), abs=1e-4)
    assert cell.success.estimate == pytest.approx(0.1) and cell.greedy == (0, 0, 0)
    # checkpoints 0, 1, 2 have the means .15, .2, .3; seed 3 is of checkpoint 0
    assert cell.checkpoints == pytest.approx(stats.t_interval([np.array([0.15, 0.2, 0.3])]))
    assert (cell.start, cell.final, cell.runs) == (pytest.approx(0.4), pytest.approx(0.6), 4)


def test_verdicts() -> None:
    gained = {
        "clear": [0.30, 0.31, 0.29, 0.30],
        "corrected away": [0.05, 0.2, 0.35, 0.2],  # t = .2 / .0612, p = .047; times 2 by Holm
        "nothing": [0.1, -0.1, 0.05, -0.05],
        "worse": [-0.2, -0.21, -0.19, -0.2],
    }
    suite = suite_of(*gained, seeds=4)
    cells = zoo.gains(Results(suite, [row for name, g in gained.items() for row in rows_of(name, g)]))
    assert [cell.verdict for cell in cells] == ["yes, corrected", "yes", "no", "worse"]


def test_runs_that_did_not_end_are_counted_out() -> None:
    rows = rows_of("a", [0.1, 0.2, 0.3])
    rows[1] = dataclasses.replace(rows[1], status="failed")
    (cell,) = zoo.gains(Results(suite_of("a", seeds=3), rows))
    assert cell.runs == 2 and cell.gain.estimate == pytest.approx(0.2)
    rows[1] = dataclasses.replace(rows[1], error={"type": "DivergedError"})  # but who diverges has lost it all
    (cell,) = zoo.gains(Results(suite_of("a", seeds=3), rows))
    assert cell.runs == 3 and cell.gain.estimate == pytest.approx((0.1 - 0.4 + 0.3) / 3)


def test_a_single_run_proves_nothing() -> None:
    (cell,) = zoo.gains(Results(suite_of("a", seeds=1), rows_of("a", [0.5])))
    assert cell.verdict == "?"


# -------------------------------------------------------------------------------------------------------- pages


@pytest.fixture(scope="module")
def published() -> tuple[Results, list[zoo.Gain]]:
    """What docs/benchmarks/zoo.json holds, as it was when the pages were written."""
    saved: Mapping[str, Any] = json.loads(zoo.PAGE.with_suffix(".json").read_text("utf-8"))
    found = Results(results.suite_from_json(saved["suite"]), [], provenance=saved["provenance"])
    intervals = ("gain", "success", "greedy", "checkpoints")
    cells = [
        zoo.Gain(**{k: Interval(*v) if k in intervals else v for k, v in cell.items() if k != "verdict"})
        for cell in saved["gains"]
    ]
    return found, cells


def test_the_published_zoo_is_the_suite(published: tuple[Results, list[zoo.Gain]]) -> None:
    found, cells = published
    now = suites.get("zoo")
    assert results.suite_to_json(found.suite) == results.suite_to_json(now)
    assert {(c.entry, c.env) for c in cells} == {(e.name, env.id) for e in now.entries for env in now.envs}
    assert all(c.runs == found.suite.seeds for c in cells)


@pytest.mark.parametrize("algo", sorted({entry.algo for entry in suites.ZOO}))
def test_every_page_says_what_was_measured(algo: str, published: tuple[Results, list[zoo.Gain]]) -> None:
    found, cells = published
    page = (zoo.ALGORITHMS / f"{algo}.md").read_text("utf-8")
    assert zoo.section(found, algo, cells) in page


def test_the_page_of_the_zoo_says_what_was_measured(published: tuple[Results, list[zoo.Gain]]) -> None:
    assert zoo.overview(*published) in zoo.PAGE.read_text("utf-8")


def test_the_figure_has_a_panel_an_environment_and_a_row_an_entry(
    published: tuple[Results, list[zoo.Gain]], tmp_path: Path
) -> None:
    zoo.draw(*published, tmp_path / "zoo.svg")
    drawn = (tmp_path / "zoo.svg").read_text()
    found, _ = published
    names = [e.name for e in found.suite.entries] + [e.short for e in found.suite.envs]
    assert [name for name in names if f">{name}<" not in drawn] == []


def test_shuffled_rewards_gain_nothing(published: tuple[Results, list[zoo.Gain]]) -> None:
    _, cells = published
    assert {c.verdict for c in cells if c.entry == "reinforce-shuffled"} <= {"no", "worse"}


def test_clones_are_compared_with_untrained_networks() -> None:
    here = {"machine": {"processor": "P", "cores": 2}, "versions": {"python": "3", "torch": "2"}, "commit": {},
            "started": "2026-01-01T00:00:00Z"}  # fmt: skip
    pairs = {
        "convgym/TextBandit-v0": [(0.0, 0.3), (0.1, 0.5), (0.0, 0.4)],
        "convgym/Haggle-v0": [(0.0, 0.0), (0.0, 0.1)],
    }
    text = zoo.clone_section(pairs, "nano", here)
    assert "| TextBandit | 0.03 | 0.40 | +0.37 [+0.22, +0.51] | yes |" in text  # .3667 +- 4.303 x .0577 / sqrt 3
    assert "| Haggle | 0.00 | 0.05 | +0.05 [-0.59, +0.69] | no |" in text


def test_the_command_reads_a_comparison(
    comparison: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    suite = hand_made_suite()
    suite = dataclasses.replace(suite, settings={**suite.settings, "eval_episodes": 128})
    zoo.main(["results", str(comparison(suite=suite))])
    assert "grpo" in capsys.readouterr().out
    assert guarded(lambda: zoo.main(["results", str(tmp_path / "none")])) == 1
    assert "holds no comparison" in " ".join(capsys.readouterr().out.split())

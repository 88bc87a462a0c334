"""Rows to conclusions: who wins, who ties, which control fails, and what the sentences claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import analysis, results, verdict
from benchmarks.analysis import Analysis, Check
from tests.benchmarks.conftest import hand_made_suite

Make = Callable[..., Path]


def analysed(out: Path, change: Callable[[results.Row], results.Row] = lambda row: row) -> Analysis:
    loaded = results.load(out)
    return analysis.analyse(dataclasses.replace(loaded, rows=[change(row) for row in loaded.rows]))


def check(found: Analysis, name: str) -> Check:
    return next(c for c in found.checks if name in c.name)


def test_a_clear_winner_and_a_tie_behind_it(comparison: Make) -> None:
    found = analysed(comparison({"grpo": 0.8, "ppo": 0.6, "reinforce": 0.605, "shuffled": 0.28}))
    assert [(s.rank, s.letters) for s in found.standings] == [(1, "a"), (2, "b"), (3, "b")]
    assert found.verdict.startswith("grpo wins: 0.8")
    assert any("Cannot separate" in note and "reinforce" in note and "ppo" in note for note in found.notes)
    assert all(c.passed for c in found.checks)
    assert [s.entry for s in found.controls] == ["shuffled"]


def test_no_winner_when_all_tie(comparison: Make) -> None:
    found = analysed(comparison({"grpo": 0.6, "ppo": 0.6, "reinforce": 0.6, "shuffled": 0.28}, noise=0.08))
    assert {s.letters for s in found.standings} == {"a"}
    assert found.verdict.startswith("No single winner")
    assert "ahead" not in found.verdict


def test_ahead_is_said_only_of_separated_pairs(comparison: Make) -> None:
    found = analysed(comparison({"grpo": 0.7, "ppo": 0.695, "reinforce": 0.4, "shuffled": 0.28}))
    assert "No single winner" in found.verdict
    assert found.verdict.endswith("It is ahead of reinforce.")


def test_trained_agents_beat_their_start_with_intervals(comparison: Make) -> None:
    found = analysed(comparison({"grpo": 0.8, "ppo": 0.7, "reinforce": 0.3, "shuffled": 0.28}))
    gains = {gain.entry: gain for gain in found.gains}
    assert gains["grpo"].beats
    assert gains["grpo"].intervals_apart
    assert gains["grpo"].final.low > gains["grpo"].start.high
    assert not gains["reinforce"].beats
    notes = " ".join(found.notes)
    assert "grpo and ppo beat the untrained start" in notes
    assert "the intervals do not overlap" in notes
    assert "reinforce: not shown to beat" in notes


def test_gap_closed_is_zero_at_the_start_and_measured_to_the_oracle(comparison: Make) -> None:
    found = analysed(comparison())
    assert [cell.gap_closed.estimate for cell in found.starts] == [0.0, 0.0, 0.0]
    cell = next(c for c in found.cells if c.entry == "grpo")
    assert cell.gap_closed.estimate == pytest.approx(
        (cell.final.estimate - 0.3) / (1 - 0.3), abs=0.05
    )  # oracle 1, start about .3


def test_a_control_that_learns_warns_in_the_verdict(comparison: Make) -> None:
    found = analysed(comparison({"grpo": 0.8, "ppo": 0.7, "reinforce": 0.6, "shuffled": 0.5}))
    assert check(found, "shuffled").passed is False
    assert found.verdict.startswith("Do not trust this ranking yet")


def test_starts_that_differ_are_found(comparison: Make) -> None:
    def spoil(row: results.Row) -> results.Row:
        if (row.entry, row.seed, row.env) != ("ppo", 1, "convgym/SlotFilling-v0"):
            return row
        return dataclasses.replace(row, start=dataclasses.replace(row.start, success=0.9))

    found = analysed(comparison(), spoil)
    assert check(found, "share one start").passed is False
    assert "SlotFilling-v0 seed 1" in check(found, "share one start").detail


def test_a_weak_oracle_is_found(comparison: Make) -> None:
    out = comparison()
    loaded = dataclasses.replace(results.load(out), oracle={"convgym/SlotFilling-v0": 0.7})
    found = analysis.analyse(loaded)
    assert check(found, "oracle").passed is False
    assert check(analysis.analyse(dataclasses.replace(loaded, oracle={})), "oracle").passed is None


def test_missing_runs_are_said_and_left_out(comparison: Make) -> None:
    def lose(row: results.Row) -> results.Row:
        return dataclasses.replace(row, status="missing") if (row.entry, row.seed) == ("ppo", 0) else row

    found = analysed(comparison(), lose)
    assert check(found, "Every run finished").passed is False
    ppo = next(s for s in found.standings if s.entry == "ppo")
    assert ppo.overall.missing == 2
    assert ppo.score.estimate > 0.6  # of the runs that there are
    assert any("ppo: 2 of 8 runs are missing" in note for note in found.notes)


def test_diverged_runs_pull_the_score_to_zero(comparison: Make) -> None:
    def diverge(row: results.Row) -> results.Row:
        if (row.entry, row.seed) != ("grpo", 0):
            return row
        return dataclasses.replace(row, status="failed", error={"type": "DivergedError"})

    found = analysed(comparison(), diverge)
    grpo = next(s for s in found.standings if s.entry == "grpo")
    assert grpo.overall.diverged == 2
    assert grpo.score.estimate == pytest.approx(0.8 * 3 / 4, abs=0.05)
    assert check(found, "Every run finished").passed is True
    assert any("diverged and count as success 0" in note for note in found.notes)


def test_collapsed_runs_are_counted(comparison: Make) -> None:
    found = analysed(comparison({"grpo": 0.8, "ppo": 0.05, "reinforce": 0.6, "shuffled": 0.28}))
    assert next(s for s in found.standings if s.entry == "ppo").overall.collapsed == 8


def test_one_seed_ranks_nothing(comparison: Make) -> None:
    found = analysed(comparison(suite=hand_made_suite(seeds=1)))
    assert found.verdict.startswith("No ranking: too few seeds")
    assert {s.letters for s in found.standings} == {"a"}
    assert check(found, "shuffled").passed is None


def test_one_algorithm_ranks_nothing(comparison: Make) -> None:
    suite = hand_made_suite()
    found = analysed(comparison(suite=dataclasses.replace(suite, entries=suite.entries[:1])))
    assert found.verdict.startswith("Only grpo was run")


def test_nothing_finished_is_a_sentence_and_no_crash(comparison: Make) -> None:
    found = analysed(comparison(), lambda row: results.Row(row.env, row.entry, row.seed, "missing"))
    assert "nothing to rank" in found.verdict


def test_the_order_by_other_metrics_is_told(comparison: Make) -> None:
    found = analysed(comparison())
    assert sum(note.startswith("By ") for note in found.notes) == 2


def test_the_same_logs_give_the_same_numbers(comparison: Make) -> None:
    out = comparison()
    assert analysed(out).to_json() == analysed(out).to_json()


@pytest.mark.parametrize(
    ("names", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_listed(names: list[str], text: str) -> None:
    assert verdict.listed(names) == text


def test_p_values_in_words() -> None:
    assert [verdict.p_text(p) for p in (0.0123, 0.0001, float("nan"))] == [
        "p = 0.012",
        "p < 0.001",
        "not tested",
    ]


def test_the_analysis_is_strict_json(comparison: Make) -> None:
    import json

    def finite(value: Any) -> Any:
        return json.loads(json.dumps(value, allow_nan=False))

    found = analysed(comparison(suite=hand_made_suite(seeds=1)))  # one seed: many intervals do not exist
    assert finite(found.to_json())["standings"][0]["score"][1] is None

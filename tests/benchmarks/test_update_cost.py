"""The measurement measures what it says: equal updates, the loss without the model, reasons from data. No timings."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import algos
from algos.base import Algorithm, Minibatch, Scores
from algos.learner import learner as learning
from algos.policies.load import Policy
from algos.rollout.episodes import TokenEpisode
from benchmarks import update_cost
from benchmarks.pages import FIGURES
from benchmarks.update_cost import Contestant, Cost, Options, Run, Sample, heats, reasons, summary
from convgym.errors import ConfigError, UnknownNameError
from tests.algos.learner.made import conversations, learner_of, weights

DOCS = Path(__file__).resolve().parents[2] / "docs"


def sample_of(episodes: Sequence[TokenEpisode]) -> Sample:
    return Sample(episodes, dict.fromkeys({episode.group for episode in episodes}, 0.4))


@pytest.fixture(scope="module")
def sample(tiny_policy: Policy) -> Sample:
    """Two groups that teach, and one whose conversations all earn 1."""
    earned = (0.0, 0.2, 0.6, 1.0, 0.0, 0.2, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0)  # nobody earns the mean of its group
    episodes = [
        dataclasses.replace(episode, rewards=x * np.eye(1, len(episode.rewards), dtype=np.float32)[0])
        for episode, x in zip(conversations(tiny_policy, 12, seed=3), earned)
    ]
    return sample_of(episodes)


# One update ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "ppo", "remax", "bc"])
def test_every_update_begins_with_the_same_weights_and_does_the_same(
    name: str, tiny_policy: Policy, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    contestant, found = Contestant(tiny_policy, algos.make(name)), []
    learner, update = contestant.learner, contestant.learner.update
    monkeypatch.setattr(learner, "update", lambda *given: found.append((update(*given), weights(learner))))
    start = weights(learner)
    for _ in range(2):
        contestant.update(sample)
        now = weights(learner)
        assert all(torch.equal(start[key], now[key]) for key in start)
        assert learner.step == 0 and not learner.adam.state
    (first, trained), (second, again) = found
    assert any(not torch.equal(start[key], trained[key]) for key in start), "the update did train"
    assert all(torch.equal(trained[key], again[key]) for key in start)
    assert all(second[key] == value for key, value in first.items() if not key.startswith(("seconds", "model_tflops")))
    assert all(torch.equal(p, q) for p, q in zip(tiny_policy.model.parameters(), learner.model.parameters()))


@pytest.mark.parametrize("name", ["gspo", "vapo"])
def test_watching_changes_nothing(name: str, tiny_policy: Policy, sample: Sample) -> None:
    plain, seen = (learner_of(tiny_policy, name, device="cpu") for _ in range(2))
    metrics = plain.update(sample.episodes, sample.greedy)
    original, algorithm = learning.loss_weights, seen.algorithm
    with update_cost.watched(seen) as cost:
        watched = seen.update(sample.episodes, sample.greedy)
    assert learning.loss_weights is original and seen.algorithm is algorithm
    assert all(torch.equal(x, y) for x, y in zip(weights(plain).values(), weights(seen).values()))
    same = {key for key in metrics if not key.startswith(("seconds", "model_tflops"))}
    assert all(watched[key] == metrics[key] for key in same)
    assert min(cost.credit, cost.weights, cost.loss) > 0
    assert cost.mathematics == pytest.approx(cost.credit + cost.weights + cost.loss)


def test_the_clock_is_put_back_when_an_update_fails(tiny_policy: Policy, sample: Sample) -> None:
    learner, original = learner_of(tiny_policy, "remax", device="cpu"), learning.loss_weights
    with pytest.raises(ConfigError, match="greedy"), update_cost.watched(learner):
        learner.update(sample.episodes)  # without greedy returns
    assert learning.loss_weights is original and not {"credit", "loss"} & vars(learner.algorithm).keys()


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_the_clock_of_the_loss_stops_before_the_backward_pass_of_the_model(
    name: str, tiny_policy: Policy, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time stands still but for three events: each operation of the loss, of its backward pass, and of the model's."""
    now, events = [0.0], []
    monkeypatch.setattr(update_cost.time, "process_time", lambda: now[0])
    algorithm = update_cost.one_step(algos.make(name))

    def passes(seconds: float, event: str) -> None:
        now[0] += seconds
        events.append(event)

    def loss(scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        passes(1.0, "loss")
        held = Scores(*(None if x is None else x.clone() for x in scores))  # type: ignore[arg-type]
        held.logp.register_hook(lambda _: passes(10.0, "backward of the loss"))  # of the copy: inside the loss
        return algorithm.loss(held, batch)

    slow = copy.copy(algorithm)
    vars(slow).update(loss=loss)
    learner = learner_of(tiny_policy, slow, device="cpu")
    for parameter in learner.parameters.values():
        parameter.register_hook(lambda _: passes(100.0, "backward of the model"))
    with update_cost.watched(learner) as cost:
        learner.update(sample.teaching().episodes, sample.greedy)
    micro_batches = events.count("loss")
    assert micro_batches >= 1 and events.count("backward of the loss") == micro_batches
    assert "backward of the model" in events
    assert cost.loss == 11.0 * micro_batches


def test_only_rows_that_pass_the_model_are_counted(tiny_policy: Policy, sample: Sample) -> None:
    rows = {name: Contestant(tiny_policy, algos.make(name)).update(sample).rows for name in ("grpo", "bc", "ppo")}
    assert rows == {"grpo": 8, "bc": 12, "ppo": 4 * 12}


def test_a_teaching_sample_has_no_group_without_a_difference(sample: Sample) -> None:
    kept = sample.teaching()
    assert {e.group for e in sample.episodes} == {0, 1, 2} and {e.group for e in kept.episodes} == {0, 1}
    assert kept.greedy == sample.greedy
    with pytest.raises(ConfigError, match="returns differ"):
        sample._replace(episodes=sample.episodes[8:]).teaching()


# Heats -----------------------------------------------------------------------------------------------------


def test_who_is_compared_with_what() -> None:
    plan, names = heats(algos.names()), set(algos.names())
    published, several, *equal = plan
    assert published.mode == "published" and set(published.entries) == names
    assert published.reference == several.reference == algos.make("grpo")
    assert set(several.entries) == {"ppo", "ppo_turn", "ppo_bilevel", "vapo"}
    assert {heat.mode for heat in equal} == {"equal"}
    assert sorted(name for heat in equal for name in heat.entries) == sorted(names)
    for heat in (several, *equal):
        for algorithm in heat.entries.values():
            assert (algorithm.epochs, algorithm.minibatches) == (1, 1)
    for heat in equal:
        assert (heat.reference.epochs, heat.reference.minibatches) == (1, 1)
        for algorithm in heat.entries.values():
            assert ("critic" in heat.reference.needs) == ("critic" in algorithm.needs)


class Counted(Contestant):
    """Says who ran when; a second later each time."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def update(self, sample: Sample) -> Cost:
        """The n-th update costs n."""
        self.log.append(self.name)
        return Cost(update=float(len(self.log)))


def test_the_reference_runs_before_and_after_each_block(sample: Sample) -> None:
    log: list[str] = []
    contestants = {name: Counted(name, log) for name in "abc"}
    runs = update_cost.race(Counted("r", log), contestants, sample, block=2)
    assert log == ["r", "a", "b", "r", "c", "r"]
    assert {name: run.ratio for name, run in runs.items()} == {"a": 2 / 2.5, "b": 3 / 2.5, "c": 5 / 5.0}
    assert [run.reference.update for run in runs.values()] == [4.0, 4.0, 6.0]


def test_every_registered_algorithm_gets_a_row(tiny_policy: Policy, sample: Sample) -> None:
    rows = update_cost.measure(tiny_policy, [sample], algos.names())
    assert [row["algorithm"] for row in rows] == algos.names()
    for row in rows:
        for figure in ("published", "one_step", "equal"):
            assert row[figure]["low"] == row[figure]["median"] == row[figure]["high"] > 0
        assert 0 < row["mathematics"]["median"] < 1 and 0 < row["rows"] <= 12
        assert row["credit"] + row["weights"] + row["loss"] == pytest.approx(row["mathematics"]["median"])
    of = {row["algorithm"]: row for row in rows}
    assert of["grpo"]["reasons"] == [] and of["grpo"]["rows"] == of["grpo"]["rows_reference"] == 8
    assert of["reinforce"]["rows"] == 12 and len(of["reinforce"]["reasons"]) == 1
    assert of["ppo"]["rows_equal"] == of["ppo"]["rows_equal_reference"] == 8
    assert of["ppo"]["one_step"] != of["ppo"]["published"]
    assert of["grpo"]["one_step"] == of["grpo"]["published"]
    json.dumps(rows, allow_nan=False)


# What it says ----------------------------------------------------------------------------------------------


def test_reasons_come_from_the_data_of_an_algorithm() -> None:
    def of(algorithm: Algorithm, rows: float = 50, usual: float = 50) -> list[str]:
        return reasons(algorithm, rows, usual)

    assert of(algos.make("grpo")) == of(algos.make("gspo")) == of(algos.make("remax")) == []
    passes, critic = of(algos.make("ppo"))
    assert passes == "4 passes over the conversations, in 16 optimiser steps" and critic.startswith("a critic")
    assert of(algos.make("grpo", minibatches=4)) == ["4 optimiser steps"]
    assert of(algos.make("grpo", kl={"beta": 0.1})) == ["a pass of the reference policy"]
    assert "entropies" in of(algos.make("grpo", top_entropy=0.2))[0]
    assert of(algos.make("grpo", assignment="gae")) == [critic]
    (rows,) = of(algos.make("reinforce"), 64, 50)
    assert "64" in rows and "50" in rows
    assert of(algos.make("reinforce"), 50.4, 50) == []  # within what the number of rows varies by


def made_row(name: str, published: float, equal: float = 1.0, share: float = 0.01, rows: int = 8) -> dict[str, Any]:
    def run(ratio: float, seen: int) -> Run:
        cost = Cost(update=ratio, credit=share * ratio / 4, weights=0.0, loss=share * ratio * 3 / 4, rows=seen)
        return Run(cost, ratio, Cost(update=1.0, rows=8))

    epochs = algos.make(name).epochs
    modes = {"published": [run(x * published, rows * epochs) for x in (0.9, 1.0, 1.2)], "equal": [run(equal, rows)]}
    return summary(name, modes)


def test_a_summary_has_the_median_round_and_the_outermost_ones() -> None:
    row = made_row("grpo", 2.0)
    assert (row["published"]["low"], row["published"]["median"], row["published"]["high"]) == (1.8, 2.0, 2.4)
    assert row["one_step"] == row["published"]  # it has but one
    assert row["mathematics"]["median"] == pytest.approx(0.01) and row["credit"] == pytest.approx(0.0025)
    assert update_cost.ratio(row["published"]) == "2.00 [1.80, 2.40]"
    assert update_cost.percent(row["mathematics"]) == "1.0 % [1.0, 1.0]"


def test_verdicts_fail_for_dear_mathematics_and_for_slow_code() -> None:
    good = [made_row("grpo", 1.0), made_row("ppo", 5.0), made_row("reinforce", 1.3, rows=12)]
    assert all("**met**" in sentence for sentence in update_cost.verdicts(good))
    dear, _ = update_cost.verdicts([*good, made_row("gspo", 1.0, share=0.06)])
    assert "**not met**" in dear and "`gspo`" in dear and "6.0 %" in dear
    _, slow = update_cost.verdicts([*good, made_row("gspo", 1.0, equal=1.2)])
    assert "**not met**" in slow and "`gspo` with 1.20" in slow
    _, bare = update_cost.verdicts([*good, made_row("gspo", 1.2)])
    assert "**not met**" in bare and bare.endswith("data: `gspo`.")


def test_reasons_are_told_of_those_who_cost_more_only() -> None:
    rows = [made_row("grpo", 1.3), made_row("reinforce", 1.3, rows=12), made_row("ppo", 5.0, rows=12),
            made_row("rebn", 1.05, rows=12)]  # fmt: skip
    passes, critic, more = update_cost.why_more(rows)
    assert passes.endswith("16 optimiser steps: `ppo`") and critic.startswith("a critic") and critic.endswith(": `ppo`")
    assert more == "trains on 12 conversations, `grpo` on the 8 whose groups have a difference: `ppo`, `reinforce`"


def a_result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "command": "python -m benchmarks.update_cost", "started": "2026-01-01T00:00:00Z",
        "commit": {"id": "0" * 40, "changed": True}, "versions": {"python": "3.11.0", "torch": "2.11.0"},
        "machine": {"processor": "Test CPU", "cores": 2, "load_at_start": 0.5}, "env": "Game-v0", "rounds": 5,
        "episodes": 64, "greedy_of_rollout": 0.2, "reference_cpu_seconds": 0.5, "rows": rows,
    }  # fmt: skip


def test_the_page_has_the_figures_and_keeps_its_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nProse.\n\n{FIGURES[0]}\nstale\n{FIGURES[1]}\n\nMore prose.\n")
    found = a_result([made_row("grpo", 1.0), made_row("reinforce", 1.3, rows=12), made_row("ppo", 5.0)])
    update_cost.write(page, found)
    text = page.read_text()
    assert text.startswith("# Title\n\nProse.\n") and text.endswith("More prose.\n") and "stale" not in text
    assert "Test CPU, 2 cores" in text and "commit 0000000000 and changes" in text and "94%" in text
    names = re.findall(r"^\| (\w+) \| \d+ x \d+", text, flags=re.MULTILINE)
    assert names == ["ppo", "reinforce", "grpo"], "the dearest first"
    lines = {name: next(line for line in text.splitlines() if line.startswith(f"| {name} ")) for name in names}
    assert "1.30 [1.17, 1.56]" in lines["reinforce"]
    why = [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]
    assert why == update_cost.why_more(found["rows"])
    assert json.loads(page.with_suffix(".json").read_text()) == found
    update_cost.write(page, found)
    assert page.read_text() == text
    page.write_text("no markers")
    with pytest.raises(ConfigError, match="expected one line"):
        update_cost.write(page, found)


def test_the_terminal_shows_ratios_and_reasons() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    update_cost.show([made_row("grpo", 1.0), made_row("reinforce", 1.3, rows=12)], console)
    text = console.export_text()
    assert "1.30 [1.17, 1.56]" in text and "trains on 12 conversations" in text and ": met." in text


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="--rounds"):
        Options(rounds=0)
    with pytest.raises(ConfigError, match="multiple of 8"):
        Options(episodes=12)
    with pytest.raises(UnknownNameError, match="grpo"):
        Options(algorithms=("grppo",))


def test_each_algorithm_that_costs_more_says_so_on_its_page() -> None:
    found = json.loads((DOCS / "benchmarks" / "update-cost.json").read_text("utf-8"))
    assert {row["algorithm"] for row in found["rows"]} == set(algos.names())
    slower = {row["algorithm"] for row in found["rows"] if row["published"]["median"] > update_cost.SLOWER}
    dear = slower | {row["algorithm"] for row in found["rows"] if "greedy" in row["needs"]}
    assert {"ppo", "reinforce", "remax"} <= dear
    silent = [n for n in dear if "cost of an update" not in (DOCS / "algorithms" / f"{n}.md").read_text("utf-8")]
    assert silent == []


def test_the_committed_page_is_made_of_the_committed_figures_and_meets_the_demands() -> None:
    page = DOCS / "benchmarks" / "update-cost.md"
    found = json.loads(page.with_suffix(".json").read_text("utf-8"))
    assert update_cost.render(found) in page.read_text("utf-8")
    assert all("**met**" in sentence for sentence in update_cost.verdicts(found["rows"]))

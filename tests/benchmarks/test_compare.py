"""The command, end to end and for real: three short trainings, interrupted, resumed, reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import compare, pool, provenance, report, results
from convgym.errors import UnknownNameError

if TYPE_CHECKING:
    from algos.policies.load import Policy

SCRIPT = """
import sys
from benchmarks import compare, suites
from benchmarks.suites import Entry, EnvSpec, Suite

model, rate, updates, *arguments = sys.argv[1:]
suites.SUITES["tiny"] = Suite(
    name="tiny",
    envs=(EnvSpec("convgym/TextBandit-v0"),),
    entries=(
        Entry("grpo", "grpo", 1e-3),
        Entry("again", "grpo", 1e-3),
        Entry("reinforce", "reinforce", float(rate), settings={"updates": int(updates)}),
    ),
    seeds=1,
    settings={**suites.UNWATCHED, "model": model, "updates": 2, "episodes_per_update": 8, "group_size": 4,
              "lanes": 8, "eval_episodes": 8, "max_turn_tokens": 12},
)
if __name__ == "__main__":
    sys.exit(compare.main(["--suite", "tiny", *arguments]))
"""


@pytest.fixture
def command(tmp_path: Path, tiny_policy: Policy) -> Callable[..., list[str]]:
    """The command line of a comparison of three tiny runs."""
    from algos.policies.embedded import save_policy

    model = save_policy(tiny_policy, tmp_path / "model")
    (tmp_path / "tiny_suite.py").write_text(SCRIPT)

    def line(*arguments: str, rate: float = 2e-3, updates: int = 2) -> list[str]:
        out = ["--out", str(tmp_path / "out"), "--jobs", "1", *arguments]
        return [sys.executable, str(tmp_path / "tiny_suite.py"), str(model), str(rate), str(updates), *out]

    return line


def test_a_comparison_is_interrupted_resumed_and_reported(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}

    # Ctrl-C after the first of three runs; the last is too long to end before it comes
    long = command(rate=1e-3, updates=400)
    # (a shell that starts tests in the background has them ignore it, and their children inherit that)
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(long, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=heed) as process:
        assert process.stdout is not None
        said = ""
        while "[1/3]" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGINT)
        said += process.stdout.read()
    assert process.returncode == compare.INTERRUPTED, said
    assert "The same command goes on from here" in said
    out = tmp_path / "out"
    first = {
        path: path.read_bytes() for path in out.rglob(pool.RECORD) if pool.read_json(path)["status"] == "done"
    }
    assert len(first) in (1, 2)  # the second run may have come to its end before or while it was asked to stop
    assert not (out / "report.html").exists()

    # the same command, with another learning rate and budget for one entry: what is done stays, the rest is made
    done = subprocess.run(command(), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"3 runs, {len(first)} done before, {3 - len(first)} to do." in done.stdout
    assert all(path.read_bytes() == content for path, content in first.items())

    loaded = results.load(out)
    rows = {row.entry: row for row in loaded.rows}
    assert all(row.done and len(row.success) == 2 and row.cpu_seconds > 0 for row in rows.values())
    assert rows["again"].returns == rows["grpo"].returns  # one algorithm under two names: the same run
    assert rows["again"].final == rows["grpo"].final
    assert rows["reinforce"].start == rows["grpo"].start  # common random numbers
    assert rows["reinforce"].final_greedy.episodes == 8
    before, after = (session["runs"] for session in loaded.provenance["sessions"])
    assert 1 <= before <= len(first) and after == 3 - len(first)
    checks = {check.name: check.passed for check in report.build(out).analysis.checks}
    assert checks["All entries share one start"] is True
    assert checks["The oracle solves every environment"] is True
    assert report.verify(out) == []
    page = (out / "report.html").read_text("utf-8")
    assert "Conversations before and after" in page
    assert "TextBandit-v0" in page

    # nothing left to do: only the reports are made again
    (out / "report.html").unlink()
    done = subprocess.run(command("--report-only"), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "report.html").read_text("utf-8") == page


def test_an_added_algorithm_runs_beside_those_that_were_chosen(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    asked = command("--algos", "grpo", "--add", "rloo", "--learning-rate", "5e-4")
    done = subprocess.run(asked, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = results.load(tmp_path / "out")
    assert {row.entry: row.status for row in loaded.rows} == {"grpo": "done", "rloo": "done"}
    assert [entry.learning_rate for entry in loaded.suite.entries] == [1e-3, 5e-4]


@pytest.mark.parametrize("wrong", [["--add", "bc"], ["--add", "rloo", "--learning-rate", "-1"], ["--add", "grpo"]])
def test_what_cannot_be_added_is_refused_before_anything_runs(
    wrong: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert compare.main(["--suite", "smoke", "--out", str(tmp_path / "out"), *wrong]) == 1
    assert "ConfigError" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_unknown_names_end_with_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert compare.main(["--suite", "quik", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert UnknownNameError.__name__ in said
    assert "'quick'" in said
    assert not list(tmp_path.iterdir())


def test_report_only_needs_a_comparison(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert compare.main(["--suite", "smoke", "--report-only", "--out", str(tmp_path / "none")]) == 1
    assert "holds no comparison" in " ".join(capsys.readouterr().out.split())


def test_provenance_names_no_place() -> None:
    """Results are published: no home folder, no host name."""
    said = json.dumps(provenance.describe("python -m benchmarks.compare"))
    assert str(Path.home()) not in said
    assert os.uname().nodename not in said

"""The command line, as real processes: quick where no model is needed, one clean message for every mistake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from algos.policies.embedded import save_policy
from algos.policies.load import Policy
from convgym.registration import ENVIRONMENTS

HEAVY = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "matplotlib", "scipy")


def convgym(*args: str, stdin: str = "", code: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    start = code or "import sys; from algos.cli import main; sys.exit(main())"
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", start, *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("args", [[], ["--help"], ["list"], ["show", "convgym/SlotFilling-v0"], ["train", "--help"]])
def test_without_a_model_nothing_heavy_is_imported(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from algos.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = convgym(*args, code=code)
    assert done.stderr.strip() == "[]"
    assert done.stdout


def test_list_shows_every_name() -> None:
    done = convgym("list")
    assert done.returncode == 0
    for env_id, (_, purpose) in ENVIRONMENTS.items():
        assert f"{env_id} " in done.stdout and purpose in done.stdout
    for name in ("oracle", "grpo", "ppo", "reinforce"):
        assert name in done.stdout


def test_show_prints_the_same_conversation_for_the_same_seed() -> None:
    runs = [convgym("show", "convgym/SlotFilling-v0", "--agent", "oracle", "--seed", s) for s in ("3", "3", "4")]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert runs[0].stdout == runs[1].stdout != runs[2].stdout
    assert "success, score 1.00" in runs[0].stdout
    assert "assistant" in runs[0].stdout


def test_play_takes_what_a_person_types_and_leaves_at_the_end_of_input() -> None:
    done = convgym("play", "convgym/TextBandit-v0", stdin="hello\n")
    assert done.returncode == 0
    assert done.stdout.count("you: ") == 2
    assert "It pays 0." in done.stdout and "You left" in done.stdout


MISTAKES = {
    "command": (["shwo"], "Did you mean 'show'"),
    "environment": (["show", "convgym/SlotFiling-v0"], "Did you mean 'convgym/SlotFilling-v0'"),
    "agent": (["show", "convgym/SlotFilling-v0", "--agent", "orakel"], "Did you mean 'oracle'"),
    "difficulty": (["show", "convgym/SlotFilling-v0", "--env-field", "difficulty=9"], "difficulty: expected one of"),
    "keyword": (["play", "convgym/SlotFilling-v0", "--env-field", "dificulty=3"], "dificulty"),
    "algorithm": (["train", "--algo", "grppo"], "Did you mean 'grpo'"),
    "profile": (["train", "--profile", "balancd"], "Did you mean 'balanced'"),
    "value": (["train", "--updates", "0"], "updates: expected a whole number"),
}


@pytest.mark.parametrize(("args", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_message_and_no_traceback(args: list[str], message: str) -> None:
    done = convgym(*args)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("convgym: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr + done.stdout


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m algos.cli show convgym/SlotFilling-v0 | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_train_interrupt_resume_and_evaluate(tiny_policy: Policy, tmp_path: Path) -> None:
    """One long story, because each of these processes imports torch."""
    model, run = save_policy(tiny_policy, tmp_path / "model"), tmp_path / "run"
    options = f"--env convgym/TextBandit-v0 --model {model} --updates 10000 --episodes-per-update 8 --lanes 8"
    options += f" --max-turn-tokens 4 --eval-episodes 4 --device cpu --out {run} --no-tensorboard"
    command = [sys.executable, "-m", "algos.training.train", *options.split()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "train" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume --out" in errors and "Traceback" not in errors

    steps = max(int(path.name[5:]) for path in (run / "checkpoints").iterdir())
    done = convgym("train", "--resume", "--out", str(run), "--updates", str(steps + 2), "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (run / "policy" / "model.safetensors").exists()

    done = convgym("evaluate", str(run), "--episodes", "4", "--greedy")
    assert done.returncode == 0 and not done.stderr
    assert "success" in done.stdout and "Find the word" in done.stdout

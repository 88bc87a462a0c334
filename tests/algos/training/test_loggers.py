"""Loggers: strict JSON, real event files, a terminal that no text can steer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from algos.training.config import RunConfig
from algos.training.loggers import JsonLines, TensorBoard, advice, open_loggers, panel


def record(step: int, kind: str = "train", **changes: Any) -> dict[str, Any]:
    base = {"kind": kind, "step": step, "return": 0.5, "success": 0.25, "tokens_per_second": 10.0, "kl": 0.01}
    return base | changes


SAMPLE = {
    "kind": "eval",
    "step": 0,
    "mode": "sample",
    "success": True,
    "return": 1.0,
    "messages": [
        {"role": "user", "content": "[bold]red[/bold] \x1b[31m\u202e evil \x07"},
        {"role": "assistant", "content": "line\r\nover \x1b]0;title\x07"},
    ],
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_json_lines_are_strict_and_on_disk_at_once(tmp_path: Path) -> None:
    logger = JsonLines(tmp_path, -1)
    logger.log(record(1, loss=math.nan, grad_norm=math.inf))
    logger.conversation(SAMPLE)
    assert lines(tmp_path / "metrics.jsonl") == [record(1, loss=None, grad_norm=None)]
    assert lines(tmp_path / "samples.jsonl") == [SAMPLE]
    logger.close()


def test_resuming_drops_what_was_not_saved_and_a_torn_line(tmp_path: Path) -> None:
    logger = JsonLines(tmp_path, -1)
    for step in range(5):
        logger.log(record(step))
        logger.conversation(SAMPLE | {"step": step})
    logger.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 2, "ret')
    resumed = JsonLines(tmp_path, 2)
    resumed.log(record(3, again=True))
    resumed.close()
    assert [r["step"] for r in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    assert lines(tmp_path / "metrics.jsonl")[-1] == record(3, again=True)
    assert [r["step"] for r in lines(tmp_path / "samples.jsonl")] == [0, 1, 2]


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tmp_path, -1)
    for step in (1, 2):
        logger.log(record(step, loss=float(step), skipped=math.nan))
    logger.log(record(2, "eval", mode="greedy", split="val"))
    logger.conversation(SAMPLE)
    logger.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0)]
    tags = events.Tags()
    assert "eval/greedy/return" in tags["scalars"] and "train/skipped" not in tags["scalars"]
    assert "conversation/sample/text_summary" in tags["tensors"]


def test_a_panel_shows_control_characters_harmlessly() -> None:
    console = Console(record=True, force_terminal=True, width=100)
    with console.capture() as capture:
        console.print(panel(SAMPLE))
    shown = capture.get()
    assert "[bold]red[/bold]" in shown  # no markup
    assert "\\x1b[31m" in shown and "\\u202e" in shown and "\\x07" in shown
    for dangerous in ("\x1b[31m", "\u202e", "\x07", "\x1b]0;", "\r"):
        assert dangerous not in shown


def test_the_terminal_says_how_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_loggers(RunConfig(tensorboard=False, updates=2), tmp_path, -1) as logs:
        logs.log(record(0, "eval", mode="sample"))
        logs.log(record(1))
        logs.conversation(SAMPLE)
    captured = capsys.readouterr()
    assert "eval sample" in captured.err and "25%" in captured.err and "10 tok/s" in captured.err
    with open_loggers(RunConfig(tensorboard=False, quiet=True), tmp_path, -1) as logs:
        logs.log(record(1))
    captured = capsys.readouterr()
    assert not captured.err and not captured.out


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"informative_groups": 0.0, "grad_norm": 0.0}, "earned alike"),
        ({"context_full": 0.6, "cut_turns": 3.0, "turns": 4.0}, "--max-context"),
        ({"context_full": 0.4, "cut_turns": 3.0, "turns": 4.0}, "--max-turn-tokens"),
        ({"informative_groups": 0.0, "grad_norm": 0.1, "context_full": 0.4, "cut_turns": 1.0, "turns": 4.0}, ""),
        ({"kind": "eval", "context_full": 1.0}, ""),
    ],
)
def test_an_update_that_could_not_learn_is_explained_once(
    changes: dict[str, Any], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert word in advice(record(1, **changes)) and bool(advice(record(1, **changes))) == bool(word)
    with open_loggers(RunConfig(updates=3, tensorboard=False), tmp_path, -1) as loggers:
        for step in (1, 2):
            loggers.log(record(step, **changes))
    said = capsys.readouterr().err.split()
    assert "".join(said).count(word.replace(" ", "")) == 1 if word else "raise" not in said

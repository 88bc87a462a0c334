"""Where metrics go: JSON lines, TensorBoard, Weights & Biases, and the terminal. All see the same records."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from algos.training.config import RunConfig
from convgym.core import printable

Record = Mapping[str, Any]
MOST = 0.5  # share of conversations, or of messages, from which it is worth a word that they were cut
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Logger:
    """Base of the loggers: hears records and conversations, and ignores what it has no use for."""

    def log(self, record: Record) -> None:
        """Takes a record with the keys ``kind`` (``"train"`` or ``"eval"``) and ``step``, and numbers."""

    def conversation(self, sample: Record) -> None:
        """Takes a conversation of an evaluation: ``step``, ``mode``, ``return``, ``success``,
        ``messages``."""

    def close(self) -> None:
        """Writes what is left."""


class Several(Logger):
    """Passes everything on to several loggers; a context manager that closes them."""

    def __init__(self, *loggers: Logger) -> None:
        self.loggers = loggers

    def __enter__(self) -> Several:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def log(self, record: Record) -> None:
        for logger in self.loggers:
            logger.log(record)

    def conversation(self, sample: Record) -> None:
        for logger in self.loggers:
            logger.conversation(sample)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


class JsonLines(Logger):
    """``metrics.jsonl`` and ``samples.jsonl``, one strict JSON object a line, on disk as soon as written.

    Args:
        folder: The run's folder.
        step: Records after this step are dropped first, and a torn last line with them: they belong to
            updates that a killed process did not save.
    """

    def __init__(self, folder: Path, step: int) -> None:
        for name in (METRICS, SAMPLES):
            _truncate(folder / name, step)
        self._metrics, self._samples = (
            (folder / name).open("a", encoding="utf-8", buffering=1) for name in (METRICS, SAMPLES)
        )

    def log(self, record: Record) -> None:
        self._metrics.write(json.dumps({key: _plain(x) for key, x in record.items()}, allow_nan=False) + "\n")

    def conversation(self, sample: Record) -> None:
        self._samples.write(json.dumps(dict(sample), allow_nan=False) + "\n")

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()


class TensorBoard(Logger):
    """Event files in ``tb/``, one curve for each number."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tb"), purge_step=step + 1)

    def log(self, record: Record) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def conversation(self, sample: Record) -> None:
        lines = [f"**{m['role']}**: {printable(m['content'])}" for m in sample["messages"]]
        self._writer.add_text(f"conversation/{sample['mode']}", "\n\n".join(lines), sample["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Logger):
    """A run on Weights & Biases; a resumed run goes on with its curves."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        import wandb

        name = f"{config.env.rpartition('/')[2]}-{config.algo}-{config.seed}"
        self._run: Any = wandb.init(
            project=config.wandb, dir=str(folder), config=config.to_json(), name=name, resume="allow"
        )

    def log(self, record: Record) -> None:
        self._run.log(_numbers(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


class Terminal(Logger):
    """A live line with the return, and each evaluation with a conversation; plain lines where no one
    watches live."""

    def __init__(self, config: RunConfig, step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._said: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(config.algo, total=config.updates, completed=step, news="")
        self._progress.start()

    def log(self, record: Record) -> None:
        news = f"return {record['return']:.3f}  success {record['success']:.0%}"
        if record["kind"] == "train":
            news += f"  {record['tokens_per_second']:,.0f} tok/s  kl {record['kl']:.4f}"
            self._progress.update(self._task, completed=record["step"], news=news)
        hint = advice(record)
        if hint and hint not in self._said:
            self._said.add(hint)
            self._console.print(f"step {record['step']:>4}  {hint}", highlight=False, markup=False)
        if record["kind"] == "eval" or not self._console.is_terminal:
            where = f"{record['kind']} {record.get('mode', '')}".strip()
            self._console.print(
                f"step {record['step']:>4}  {where:<12}  {news}", highlight=False, markup=False
            )

    def conversation(self, sample: Record) -> None:
        if self._console.is_terminal:
            self._console.print(panel(sample))

    def close(self) -> None:
        self._progress.stop()


def advice(record: Record) -> str:
    """What to do about an update that could not learn, or whose conversations were mostly cut; empty if neither."""
    if record["kind"] != "train":
        return ""
    if record.get("informative_groups") == 0 and record.get("grad_norm") == 0:
        return (
            "Nothing was learnt: in each group all conversations earned alike. Try an easier difficulty, larger groups "
            "or a warm start."
        )
    if record.get("context_full", 0) > MOST:
        return "Most conversations outgrew the context: raise --max-context, or shorten them (max_turns)."
    if record.get("cut_turns", 0) > MOST * record.get("turns", 1):
        return "Most messages were cut by their cap: raise --max-turn-tokens."
    return ""


def open_loggers(config: RunConfig, folder: Path, step: int) -> Several:
    """The loggers that a run asks for.

    Args:
        config: The run.
        folder: Its folder.
        step: The update that the run continues from; -1 if it begins.
    """
    loggers: list[Logger] = [JsonLines(folder, step)]
    if config.tensorboard:
        loggers.append(TensorBoard(folder, step))
    if config.wandb is not None:
        loggers.append(WeightsAndBiases(config, folder))
    if not config.quiet:
        loggers.append(Terminal(config, max(0, step)))
    return Several(*loggers)


def panel(sample: Record) -> Any:
    """A conversation as a rich panel; no text in it can steer the terminal."""
    from rich.panel import Panel
    from rich.text import Text

    colours = {"assistant": "cyan", "user": "green", "tool": "yellow", "system": "bright_black"}
    text = Text()
    for message in sample["messages"]:
        text.append(f"{message['role']}: ", style=f"bold {colours.get(message['role'], 'white')}")
        text.append(printable(message["content"]).rstrip() + "\n")
    text.rstrip()
    outcome = "success" if sample["success"] else "no success"
    return Panel(text, title=f"step {sample['step']}, {sample['mode']}: {outcome}", title_align="left")


def _truncate(path: Path, step: int) -> None:
    """Keeps the records up to a step, atomically."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # torn by a kill in the middle of a write
            continue
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(record: Record) -> dict[str, float]:
    prefix = "/".join(filter(None, (record["kind"], record.get("mode"))))
    skipped = ("step", "kind", "mode", "split")
    return {
        f"{prefix}/{key}": float(x)
        for key, x in record.items()
        if key not in skipped and isinstance(x, int | float) and math.isfinite(x)
    }

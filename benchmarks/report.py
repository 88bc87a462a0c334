"""Reports from raw logs: JSON, CSV, Markdown, one HTML page, the terminal and the README's table.

`python -m benchmarks.report runs/quick` rebuilds them; `--readme README.md` copies the ranking between the
README's markers; `--verify` recomputes every number from the raw logs and compares it with `results.json`.
"""

from __future__ import annotations

import csv
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tyro
from markupsafe import Markup
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import analysis, plots, pool, results, verdict
from benchmarks.analysis import Analysis, Cell
from benchmarks.command import guarded
from benchmarks.results import Results, Row
from benchmarks.stats import Interval
from benchmarks.suites import METRICS
from convgym.errors import ConfigError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
TEMPLATES = Path(__file__).parent / "templates"
CONVERSATIONS = 2  # shown per environment: the first seeds of the log, not chosen by outcome
MESSAGE_LIMIT = 4000  # characters of a message that the page shows
HARMLESS = "\n\t\u200c\u200d"  # line break, tab, and the joiners that scripts and emoji need


@dataclass(frozen=True)
class Report:
    """A comparison and what follows from it."""

    out: Path
    results: Results
    analysis: Analysis


def build(out: Path) -> Report:
    """Reads the raw logs in `out` and analyses them; writes nothing."""
    loaded = results.load(out)
    return Report(out, loaded, analysis.analyse(loaded))


def write(report: Report) -> None:
    """Writes every report file into the comparison's folder."""
    pool.write_json(report.out / "results.json", to_json(report))
    write_csv(report.out / "results.csv", report.results.rows)
    (report.out / "report.md").write_text(render("report.md.j2", report), "utf-8")
    (report.out / "report.html").write_text(render("report.html.j2", report), "utf-8")


def to_json(report: Report) -> dict[str, Any]:
    """Every number of the report and of each run, as strict JSON."""
    rows = [
        {**vars(row), "last_fifth": row.last_fifth, "area": row.area, "diverged": row.diverged,
         **{key: vars(getattr(row, key)) for key in ("start", "start_greedy", "final", "final_greedy")}}
        for row in report.results.rows
    ]  # fmt: skip
    return {
        "format": 1,
        "suite": results.suite_to_json(report.results.suite),
        "oracle": results.plain(report.results.oracle),
        "provenance": results.plain(report.results.provenance),
        "runs": results.plain(rows),
        "analysis": report.analysis.to_json(),
    }


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line a run, for a spreadsheet or a data frame."""
    columns = ("env", "entry", "seed", "status", "last_fifth", "area", "action_tokens", "seconds",
               "cpu_seconds", "peak_memory_mb", "seconds_rollout", "seconds_update")  # fmt: skip
    evaluations = ("start", "start_greedy", "final", "final_greedy")
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            [*columns, *(f"{name}_{key}" for name in evaluations for key in ("success", "return"))]
        )
        for row in rows:
            held_out = [getattr(row, name) for name in evaluations]
            table.writerow(
                [getattr(row, column) for column in columns]
                + [value for e in held_out for value in (e.success, e.episode_return)]
            )


def verify(out: Path) -> list[str]:
    """Recomputes `results.json` from the raw logs; returns the parts that differ, none if all is well."""
    stored, fresh = pool.read_json(out / "results.json"), to_json(build(out))
    return [part for part in fresh if stored.get(part) != fresh[part]]


def update_readme(readme: Path, report: Report) -> None:
    """Replaces what stands between the results markers of a README by this report's ranking.

    Raises:
        ConfigError: if the markers are not there, once each and in order.
    """
    text = readme.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ConfigError(f"{readme} needs one line {BEGIN} and, after it, one line {END}.")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    readme.write_text(f"{before}{BEGIN}\n{render('ranking.md.j2', report).strip()}\n{after}", "utf-8")


# ----------------------------------------------------------------------------------------------- rendering


def render(template: str, report: Report) -> str:
    """A report from a template in `benchmarks/templates`. HTML templates escape every value."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        num=number, interval=interval, shown=shown, cell=markdown_cell, p=verdict.p_number,
        percent=percent,
    )  # fmt: skip
    return environment.get_template(template).render(context(report))


def context(report: Report) -> dict[str, Any]:
    """What the templates see."""
    suite, found = report.results.suite, report.analysis
    competitors = [standing.entry for standing in found.standings]
    return {
        "suite": suite,
        "oracle": report.results.oracle,
        "analysis": found,
        "metrics": METRICS,
        "decision": METRICS[suite.decision],
        "size": verdict.size(report.results),
        "provenance": report.results.provenance,
        "overall_start": found.starts[-1],
        "ranking": found.standings + found.controls,
        "environments": [_environment(report, index) for index in range(len(suite.envs))],
        "colours": {entry.name: index % plots.SERIES for index, entry in enumerate(suite.entries)},
        "conversations": [c for env in suite.envs for c in conversations(report, env.id, competitors)],
        "lost": [row for row in report.results.rows if not row.done],
        "cpu_seconds": sum(row.cpu_seconds for row in report.results.rows if row.done),
        "wall_seconds": sum(s["seconds"] for s in report.results.provenance.get("sessions", [])),
        "share": lambda row: _phase_share(report.results, row),
        "version_pairs": sorted((report.results.provenance.get("versions") or {}).items()),
    }


def _environment(report: Report, index: int) -> dict[str, Any]:
    suite, found = report.results.suite, report.analysis
    env = suite.envs[index]
    start = found.starts[index]
    order = [standing.entry for standing in found.standings + found.controls]
    cells = sorted((c for c in found.cells if c.env == env.id), key=lambda cell: order.index(cell.entry))
    curves = [curve for i in range(len(suite.entries)) if (curve := _curve(report.results, env.id, i))]
    oracle = report.results.oracle.get(env.id, results.NAN)
    figure = plots.learning_curves(curves, start=start.final.estimate, oracle=oracle) if curves else ""
    return {"spec": env, "start": start, "cells": cells, "figure": Markup(figure)}


def _curve(found: Results, env: str, index: int) -> plots.Curve | None:
    """Curves of the finished runs of one entry; None if there is none."""
    entry = found.suite.entries[index]
    rows = [row for row in found.of(env, entry.name) if row.done and len(row.success)]
    if not rows:
        return None
    shortest = min(len(row.success) for row in rows)
    values = np.array([row.success[:shortest] for row in rows])  # [runs, updates]
    return plots.Curve(entry.name, index, rows[0].episodes[:shortest], values, dashed=entry.control != "none")


def _phase_share(found: Results, entry: str) -> tuple[float, float]:
    """Mean seconds of rollouts and of updates in an entry's finished runs."""
    rows = [row for row in found.rows if row.entry == entry and row.done]
    if not rows:
        return results.NAN, results.NAN
    return float(np.mean([r.seconds_rollout for r in rows])), float(np.mean([r.seconds_update for r in rows]))


def conversations(report: Report, env: str, entries: Sequence[str]) -> list[dict[str, Any]]:
    """The same held-out scenarios before and after training, for the best entry that logged some.

    The first `CONVERSATIONS` scenarios that both ends of the log share: not chosen by outcome.
    """
    for entry in entries:
        for run in report.results.suite.runs():
            if (run.env.id, run.entry.name) != (env, entry):
                continue
            samples = _samples(results.run_folder(report.out, run) / pool.OUTPUT / "samples.jsonl")
            steps = sorted({int(s["step"]) for s in samples if isinstance(s.get("step"), int)})
            if len(steps) < 2:
                continue
            first = {s.get("env_seed"): s for s in samples if s.get("step") == steps[0]}
            last = {s.get("env_seed"): s for s in samples if s.get("step") == steps[-1]}
            return [
                {"env": env, "entry": entry, "seed": run.seed, "env_seed": key, "step": steps[-1],
                 "before": _transcript(first[key]), "after": _transcript(last[key])}
                for key in first
                if key in last
            ][:CONVERSATIONS]  # fmt: skip
    return []


def _samples(path: Path) -> list[dict[str, Any]]:
    """Logged conversations that were sampled; a greedy twin of the same scenario is left out."""
    return [sample for sample in results.read_jsonl(path) if sample.get("mode", "sample") == "sample"]


def _transcript(sample: dict[str, Any]) -> dict[str, Any]:
    messages = [m for m in sample.get("messages") or [] if isinstance(m, dict)]
    return {
        "success": bool(sample.get("success")),
        "return": float(sample.get("return") or 0.0),
        "messages": [{"role": str(m.get("role")), "content": str(m.get("content"))} for m in messages],
    }


# ------------------------------------------------------------------------------------------------- filters


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits, or a dash if there is none."""
    return "–" if value is None or np.isnan(value) else f"{value:,.{digits}f}"


def interval(value: Interval, digits: int = 3) -> str:
    """`0.718 [0.679, 0.756]`; without brackets if there is no interval, a dash if there is no number."""
    if np.isnan(value.estimate) or np.isnan(value.low):
        return number(value.estimate, digits)
    return f"{value.estimate:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def percent(value: float) -> str:
    """A share as a CSS length between 0 % and 100 %."""
    return f"{100 * min(1.0, max(0.0, float(np.nan_to_num(value)))):.2f}%"


def shown(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Text as it can safely be looked at: control, bidi and surrogate characters by their code points.

    An override of the writing direction could make a page show other words than the model wrote.
    """
    cut = text[:limit]
    marked = "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in HARMLESS else c
        for c in cut
    )
    return marked if len(text) <= limit else f"{marked} … ({len(text) - limit} more characters)"


def markdown_cell(text: str) -> str:
    """Text inside a Markdown table: nothing in it can end the cell, the line or the table, or open a tag."""
    flat = shown(text, 300).replace("\n", " ").replace("\\", "\\\\")
    for mark in "|<>`*[]":
        flat = flat.replace(mark, f"\\{mark}")
    return flat


# ------------------------------------------------------------------------------------------------ terminal


def show(report: Report, console: Console) -> int:
    """Prints the ranking, the checks and the verdict. Returns 1 if a run is missing, else 0."""
    found = report.analysis
    table = Table(title=f"{report.results.suite.name}: {verdict.size(report.results)}")
    for header in ("#", "algorithm", "ties", *METRICS, "gap closed", "CPU s"):
        table.add_column(
            header.replace("_", " "), justify="left" if header in ("algorithm", "ties") else "right"
        )
    for line in found.standings + found.controls:
        rank = str(line.rank) if line.rank else "–"
        table.add_row(rank, escape(line.entry), line.letters, *_columns(line.overall))
    table.add_row("–", analysis.START, "", *_columns(found.starts[-1]))
    console.print(table)
    for check in found.checks:
        word = {True: "[green]passed[/]", False: "[red]FAILED[/]", None: "[yellow]not tested[/]"}[
            check.passed
        ]
        console.print(f"check: {escape(check.name)}: {word}. {escape(check.detail)}")
    for note in found.notes:
        console.print(escape(note))
    console.print(f"[bold]{escape(found.verdict)}[/]")
    console.print(f"Report: {escape(str(report.out / 'report.html'))}")
    return int(any(not row.done and not row.diverged for row in report.results.rows))


def _columns(cell: Cell) -> list[str]:
    values = [interval(getattr(cell, metric), 2) for metric in METRICS]
    return [*values, number(cell.gap_closed.estimate, 2), number(cell.cpu_seconds, 0)]


@dataclass(frozen=True)
class Options:
    """Rebuild the reports of a comparison from its raw logs."""

    out: tyro.conf.Positional[Path]
    """Folder that `python -m benchmarks.compare --out` filled."""
    readme: Path | None = None
    """Copy the ranking into this file, between its results markers."""
    verify: bool = False
    """Write nothing: recompute every number and compare it with results.json."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 for a user error, a missing run or a number that does not verify."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.report")
    console = Console()
    return guarded(lambda: _report(options, console))


def _report(options: Options, console: Console) -> int:
    if options.verify:
        differing = verify(options.out)
        said = f"differ from the raw logs: {', '.join(differing)}" if differing else "agree with the raw logs"
        console.print(f"The numbers in {escape(str(options.out / 'results.json'))} {said}.")
        return int(bool(differing))
    report = build(options.out)
    write(report)
    if options.readme:
        update_readme(options.readme, report)
    return show(report, console)


if __name__ == "__main__":
    sys.exit(main())

"""The page of the gradient audit: tables, a figure, the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bias import ROUNDING
from benchmarks.micro_dialogues import KINDS, SETTINGS
from benchmarks.pages import put, source, table


def render(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    rows = found["rows"]
    middle = found["sizes"][min(1, len(found["sizes"]) - 1)]
    hypotheses = sum(row["residual_p_holm"] is not None for row in rows) * 2
    parts = [
        f"`{found['command']}`: {source(found)}; {found['batches']} batches of {found['batch_rows']} episodes in each "
        f"of {len({row['cell'] for row in rows})} cells, seed {found['seed']}. Verdicts are corrected (Holm, 5 %) for "
        f"{hypotheses} hypotheses; intervals are 95 % each.",
        "![Residuals of all algorithms](gradient-audit.svg)",
        "### What theory says",
        "Cells in which the residual was not found to differ from 0, and in which the interval of the factor holds "
        "the known value. The intervals are 95 % each, so that one of twenty misses; cells of one dialogue and policy "
        "share their random numbers, so that misses come together. An estimator that is a multiple of a control "
        "variate in every batch agrees exactly: for it, only the last column is an estimate.",
        _checks(rows),
        "### Verdicts",
        "Cells of the run with each verdict, with the tiny Llama (messages of sampled lengths) and with the table "
        "(one token a message):",
        _verdicts(rows),
        *(
            part
            for kind in KINDS
            for setting in SETTINGS
            for part in (
                f"### {setting.name}, {kind}, groups of {middle}",
                _cell_table([r for r in rows if _is(r, setting.name, kind, middle, "x1")]),
            )
        ),
        "### Group sizes",
        "Factor and residual with the tiny Llama in AskOrAct:",
        _across(rows, [(f"G = {g}", ("AskOrAct", "llama", g, "x1")) for g in found["sizes"]]),
        "### Rewards",
        f"The same with groups of {middle}: the reward as it is, ten times as large, and with 1 added to each return. "
        "The factor refers to the true gradient of that reward.",
        _across(rows, [(r, ("AskOrAct", "llama", middle, r)) for r in ("x1", "x10", "x1 +1")]),
    ]
    return "\n\n".join(parts)


def _is(row: Mapping[str, Any], *cell: Any) -> bool:
    return (row["dialogue"], row["policy"], row["size"], row["reward"]) == cell


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["algorithm"] for row in rows))


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for name in _names(rows):
        line = [f"`{name}`"]
        for kind in reversed(KINDS):
            said = [r["verdict"] for r in rows if r["algorithm"] == name and r["policy"] == kind]
            counts = {v: said.count(v) for v in dict.fromkeys(said)}
            line.append(", ".join(f"{v} {n}" for v, n in counts.items()))
        lines.append(line)
    return table(("algorithm", "tiny Llama", "table"), lines)


def _checks(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    known = [row for row in rows if row["theory"] is not None]
    for name, label in dict.fromkeys((row["algorithm"], row["theory"]) for row in known):
        cells = [row for row in known if (row["algorithm"], row["theory"]) == (name, label)]
        straight, plain = sum(row["residual_p_holm"] >= 0.05 for row in cells), sum(_holds(r, "plain_") for r in cells)
        held, n = sum(_holds(row, "") for row in cells), len(cells)
        lines.append((f"`{name}`", label, f"{straight} of {n}", f"{held} of {n}", f"{plain} of {n}"))
    return table(("algorithm", "factor", "residual 0", "factor in interval", "without control variates"), lines)


def _holds(row: Mapping[str, Any], which: str) -> bool:
    low, high = row[f"{which}factor_low"], row[f"{which}factor_high"]
    return bool(low - ROUNDING <= row["theory_factor"] <= high + ROUNDING)


def _cell_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ("algorithm", "verdict", "factor c", "residual", "distance", "variance", "cosine", "of a batch", "ESS")
    lines = [
        (
            f"`{r['algorithm']}`", r["verdict"] + (f", {r['theory']}" if r["theory"] not in (None, "1") else ""),
            _interval(r, "factor"), _interval(r, "residual"), _number(r["distance"]), _number(r["variance"]),
            _number(r["cosine"]), _number(r["cosine_batch"]), _number(r["ess"]),
        )
        for r in rows
    ]  # fmt: skip
    return table(header, lines)


def _across(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, tuple[Any, ...]]]) -> str:
    lines = []
    for name in _names(rows):
        line = [f"`{name}`"]
        for _, cell in columns:
            found = [r for r in rows if r["algorithm"] == name and _is(r, *cell)]
            line.append(f"{_number(found[0]['factor'])}; {_interval(found[0], 'residual')}" if found else "")
        lines.append(line)
    return table(("algorithm", *(label for label, _ in columns)), lines)


def _number(x: float | None) -> str:
    return "-" if x is None else f"{0.0 if abs(x) < ROUNDING else x:.3g}"


def _interval(row: Mapping[str, Any], key: str) -> str:
    if row[key] is None:
        return "-"
    return f"{_number(row[key])} [{_number(row[f'{key}_low'])}, {_number(row[f'{key}_high'])}]"


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the cells with the tiny Llama."""
    for cell in dict.fromkeys(row["cell"] for row in rows if row["policy"] == "llama" and row["reward"] == "x1"):
        shown = Table("algorithm", "verdict", "factor c", "residual", "cosine", "ESS", title=cell)
        for row in (r for r in rows if r["cell"] == cell):
            shown.add_row(
                row["algorithm"].replace("[", "\\["), row["verdict"], _interval(row, "factor").replace("[", "\\["),
                _interval(row, "residual").replace("[", "\\["), _number(row["cosine"]), _number(row["ess"]),
            )  # fmt: skip
        console.print(shown)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Residuals with their intervals, one panel a dialogue, one line an algorithm, one colour a policy."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = found["rows"]
    names, middle = _names(rows), found["sizes"][min(1, len(found["sizes"]) - 1)]
    style: Any = {"svg.hashsalt": "convgym", "svg.fonttype": "none", "font.size": 8.0, "text.parse_math": False}
    colours = {"tabular": "#1b7f79", "llama": "#c4572e"}
    with rc_context({**style, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.0, 1.2 + 0.19 * len(names)), layout="constrained")
        for axes, setting in zip(figure.subplots(1, len(SETTINGS), sharey=True), SETTINGS):
            for kind, offset in zip(KINDS, (-0.16, 0.16)):
                for y, name in enumerate(names):
                    cell = [r for r in rows if r["algorithm"] == name and _is(r, setting.name, kind, middle, "x1")]
                    for r in (r for r in cell if r["residual"] is not None):
                        bounds = [r["residual_low"], min(r["residual_high"], 1.5)]
                        axes.plot(bounds, [y + offset] * 2, color=colours[kind], linewidth=1)
                        axes.plot(min(r["residual"], 1.5), y + offset, "o", color=colours[kind], markersize=3)
            axes.set(title=setting.name, xlabel="residual |D - c g| / |c g|", xlim=(-0.02, 1.55))
            axes.grid(axis="x", alpha=0.25)
            axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        for kind, label in zip(KINDS, ("table", "tiny Llama")):
            axes.plot([], [], "o-", color=colours[kind], markersize=3, label=label)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


def write(page: Path, found: Mapping[str, Any]) -> None:
    """Puts the figures between the markers of a page, JSON and SVG beside it.

    Raises:
        ConfigError: if the page has no markers.
    """
    put(page, render(found))
    page.with_suffix(".json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")
    draw(found, page.with_suffix(".svg"))

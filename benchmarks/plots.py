"""Figures of the report as inline SVG: no file, no script, no network, and the page's own colours.

Matplotlib draws with placeholder colours, which become CSS variables afterwards: one figure serves the
light and the dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import stats

SERIES = 8  # colours that the style sheet defines: --series-0 ... --series-7
INK, FAINT = "#a10001", "#a10002"  # placeholders of --ink and --faint
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "svg.hashsalt": "convgym",  # the same figure gives the same bytes
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.size": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True)
class Curve:
    """One entry's learning curve in one environment.

    Attributes:
        name: Label.
        colour: Index of its colour in the style sheet.
        episodes: Cumulative training episodes. Shape [updates].
        values: Success per run and update. Shape [runs, updates].
        dashed: Drawn dashed: a control.
    """

    name: str
    colour: int
    episodes: Sequence[float]
    values: np.ndarray
    dashed: bool = False


def series(index: int) -> str:
    """Placeholder colour of a series; becomes `var(--series-<index>)`."""
    return f"#a2000{index % SERIES}"


def learning_curves(curves: Sequence[Curve], *, start: float, oracle: float) -> str:
    """Mean success against training episodes with 95 % t bands over seeds.

    Args:
        curves: At least one update each.
        start: Held-out success of the untrained start, a dotted line; NaN for none.
        oracle: Success of the oracle, a dotted line.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.1), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            _curve(axes, curve)
        for level, label in ((start, "untrained"), (oracle, "oracle")):
            if np.isfinite(level):
                axes.axhline(level, color=FAINT, linewidth=0.9, linestyle=":")
                axes.annotate(label, (1.0, level), xycoords=("axes fraction", "data"), xytext=(4, 0),
                              textcoords="offset points", va="center", fontsize=8, color=FAINT)  # fmt: skip
        axes.set(xlabel="training episodes", ylabel="success", ylim=(0, 1.06), yticks=np.linspace(0, 1, 6))
        axes.set_xlim(left=0)
        axes.grid(axis="y")
        return svg(figure, "Learning curves: success against training episodes")


def _curve(axes: Axes, curve: Curve) -> None:
    x, y = np.asarray(curve.episodes, float), np.atleast_2d(curve.values)
    intervals = [stats.t_interval([column], bounds=(0.0, 1.0)) for column in y.T]
    low, high = (np.array([getattr(i, side) for i in intervals]) for side in ("low", "high"))
    colour = series(curve.colour)
    axes.plot(x, y.mean(axis=0), color=colour, linewidth=1.8, linestyle="--" if curve.dashed else "-")
    if np.isfinite(low).all() and len(x) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` element for an HTML page: no prolog, no metadata, CSS colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # an HTML parser knows the namespace
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r"#a2000(\d)", r"var(--series-\1)", text)
    text = text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)  # the page's own
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()

"""Figures: what an HTML page needs, and nothing of the network."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
from matplotlib.figure import Figure

from benchmarks import plots


def curves(runs: int) -> list[plots.Curve]:
    rng = np.random.default_rng(0)
    return [
        plots.Curve(f"a{i}", i, range(64, 704, 64), rng.uniform(0, 1, (runs, 10)), i == 2) for i in range(3)
    ]


def test_a_figure_is_inline_and_in_the_pages_colours() -> None:
    figure = plots.learning_curves(curves(4), start=0.3, oracle=0.98)
    ElementTree.fromstring(figure)
    assert figure.startswith("<svg ")
    assert "http" not in figure
    assert "<metadata" not in figure
    assert not re.findall(r"#[0-9a-f]{6}", figure)  # no colour of its own: light and dark both work
    for i in range(3):
        assert f"var(--series-{i})" in figure
    assert ">oracle<" in figure


def test_a_band_needs_two_runs() -> None:
    assert "fill-opacity" in plots.learning_curves(curves(2), start=0.3, oracle=1.0)
    assert "fill-opacity" not in plots.learning_curves(curves(1), start=float("nan"), oracle=float("nan"))


def test_the_same_figure_has_the_same_bytes() -> None:
    first, second = (plots.learning_curves(curves(3), start=0.3, oracle=1.0) for _ in range(2))
    assert first == second


def test_text_in_a_figure_is_text() -> None:
    with plots.matplotlib.rc_context(plots.STYLE):
        figure = Figure()
        figure.text(0.5, 0.5, "$x_1$ </svg><script>alert(1)</script>")
        drawn = plots.svg(figure, 'a "title" <b>')
    root = ElementTree.fromstring(drawn)
    assert "script" not in [element.tag for element in root.iter()]
    assert "$x_1$ </svg><script>alert(1)</script>" in "".join(root.itertext())
    assert root.attrib["aria-label"] == 'a "title" <b>'

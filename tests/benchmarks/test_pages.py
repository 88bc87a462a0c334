"""Pages with figures in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import pages
from convgym.errors import ConfigError

MARKERS = ("<!-- a -->", "<!-- b -->")


def test_text_is_put_between_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- a -->\nold\n<!-- b -->\nbelow\n")
    for _ in range(2):  # the markers stay, so that it can be done again
        pages.put(page, r"new \1", MARKERS)
        assert page.read_text() == "above\n<!-- a -->\nnew \\1\n<!-- b -->\nbelow\n"


@pytest.mark.parametrize("text", ["nothing", "<!-- a -->", "<!-- a --><!-- a --><!-- b -->", "<!-- b --><!-- a -->"])
def test_a_page_without_its_place_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ConfigError, match=r"page\.md: expected one line"):
        pages.put(page, "new", MARKERS)
    assert page.read_text() == text


def test_a_missing_page_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.md: expected one line"):
        pages.put(tmp_path / "none.md", "new")
    assert not list(tmp_path.iterdir())


def test_tables() -> None:
    rows = [("x", "1"), ("y", "2")]
    assert pages.table(("a", "b"), rows) == "| a | b |\n|---|---|\n| x | 1 |\n| y | 2 |"
    assert pages.table(("a", "b"), rows, numbers=True).splitlines()[1] == "|---|---:|"


@pytest.mark.parametrize(("changed", "said"), [(False, "0123456789; "), (True, "0123456789, changed since")])
def test_figures_say_where_they_come_from(changed: bool, said: str) -> None:
    machine, versions = {"processor": "P", "cores": 2}, {"python": "3.11", "torch": "2.13"}
    commit = {"id": "0123456789abcdef", "changed": changed}
    found = pages.source({"machine": machine, "versions": versions, "commit": commit, "started": "2026"})
    assert found.startswith("P, 2 cores; Python 3.11, torch 2.13; ") and said in found and found.endswith("2026")
    assert "commit none" in pages.source({"machine": machine, "versions": versions, "commit": {}, "started": ""})

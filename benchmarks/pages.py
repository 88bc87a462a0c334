"""Pages with figures in them: Markdown tables, text between markers, and where the figures come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convgym.errors import ConfigError

FIGURES = ("<!-- figures:begin -->", "<!-- figures:end -->")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A Markdown table.

    Args:
        header: Names of the columns.
        rows: One text a cell.
        numbers: Whether all columns but the first are right-aligned.
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(rule) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def put(page: Path, text: str, markers: tuple[str, str] = FIGURES) -> None:
    """Replaces what stands between two markers, each on a line of its own; the markers stay.

    Raises:
        ConfigError: if the page does not hold each of them once, in this order.
    """
    begin, end = markers
    before = page.read_text("utf-8") if page.is_file() else ""
    if before.count(begin) != 1 or before.count(end) != 1 or before.index(begin) > before.index(end):
        raise ConfigError(f"{page.name}: expected one line {begin} and, after it, one line {end}; add them.")
    block = f"{begin}\n{text}\n{end}"
    page.write_text(re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: block, before, flags=re.DOTALL), "utf-8")


def source(found: Mapping[str, Any]) -> str:
    """Machine, versions, commit and day of what `provenance.describe` described, as half a sentence."""
    machine, versions, commit = found["machine"], found["versions"], found["commit"]
    changed = ", changed since" if commit.get("changed") else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores; Python {versions['python']}, torch {versions['torch']}; "
        f"commit {commit.get('id', 'none')[:10]}{changed}; {found['started']}"
    )

"""What the commands of the benchmark have in common: a user's mistake is a line of text, not a traceback."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from convgym.errors import ConvgymError


def guarded(command: Callable[[], int | None]) -> int:
    """Runs a command; returns its exit code, and 1 after a named error, which it prints."""
    try:
        return command() or 0
    except (ConvgymError, FileNotFoundError) as problem:
        Console().print(f"[red]{type(problem).__name__}[/]: {escape(str(problem))}")
        return 1

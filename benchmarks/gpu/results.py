"""What was found so far, and how much time is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import pool, provenance

FILE = "gpu.json"


@dataclass(frozen=True)
class Clock:
    """The time of one call.

    Attributes:
        seconds: What it may take.
        started: When it began, on ``time.monotonic``.
    """

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds; below 0 once they are spent."""
        return self.seconds - (time.monotonic() - self.started)


@dataclass(frozen=True)
class Results:
    """A JSON file of parts, each of them entries by name: ``{"machine": ..., "parts": {part: {entry: {...}}}}``.

    Attributes:
        folder: Where it is.
        command: What makes it.
        gpu: Name and memory of the device, empty on a CPU.
    """

    folder: Path
    command: str
    gpu: dict[str, Any]

    def read(self) -> dict[str, Any]:
        """Everything so far."""
        return pool.read_json(self.folder / FILE) or {"parts": {}}

    def entry(self, part: str, name: str) -> dict[str, Any]:
        """An entry; empty if there is none."""
        found: dict[str, Any] = self.read()["parts"].get(part, {}).get(name, {})
        return found

    def put(self, part: str, name: str, entry: dict[str, Any]) -> None:
        """Writes an entry at once, with its day and commit; the others stay."""
        found = self.read()
        facts = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": provenance.commit()}
        found["parts"].setdefault(part, {})[name] = {**entry, "measured": facts}
        self.folder.mkdir(parents=True, exist_ok=True)
        pool.write_json(self.folder / FILE, found | provenance.describe(self.command) | {"gpu": self.gpu})


@dataclass(frozen=True)
class Piece:
    """A piece of work that is done in one go.

    Attributes:
        part: Where its result stands.
        name: Under which name.
        needs: Seconds that should be left when it begins.
        work: Does it.
    """

    part: str
    name: str
    needs: float
    work: Callable[[], dict[str, Any]]


def do(pieces: list[Piece], results: Results, clock: Clock, say: Callable[[str], None]) -> list[str]:
    """Does what is not done yet, as far as the time reaches; returns the names of what is left."""
    left = []
    for piece in pieces:
        name = f"{piece.part}, {piece.name}"
        if results.entry(piece.part, piece.name):
            say(f"{name}: was done before")
        elif clock.left < piece.needs:
            left.append(name)
        else:
            started = time.monotonic()
            results.put(piece.part, piece.name, piece.work())
            say(f"{name}: {time.monotonic() - started:.0f} s")
    return left

"""A world: frozen records, a copy-on-write overlay of changes, and a log of what happened.

The records are generated once an episode and never change; a write goes to the overlay. Forking an episode
therefore copies two small containers and shares everything else, and the reward reads the overlay and the
log, never words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from convgym.types import Event

__all__ = ["World"]


class World:
    """Tables of frozen records with an overlay of writes and an event log.

    Args:
        tables: ``{table: {key: record}}``; records are NamedTuples and are shared, never copied.
    """

    __slots__ = ("log", "overlay", "tables")

    def __init__(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        self.tables = tables
        self.overlay: dict[tuple[str, str], Any] = {}
        self.log: list[Event] = []

    def get(self, table: str, key: str) -> Any | None:
        """Returns the record as it stands now, or None."""
        changed = self.overlay.get((table, key))
        return changed if changed is not None else self.tables[table].get(key)

    def rows(self, table: str) -> Iterator[tuple[str, Any]]:
        """Iterates over ``(key, record)`` of a table as it stands now."""
        records = self.tables[table].items()
        if not self.overlay:
            return iter(records)
        return iter([(key, self.overlay.get((table, key), record)) for key, record in records])

    def put(self, table: str, key: str, record: NamedTuple) -> None:
        """Writes a record into the overlay."""
        self.overlay[table, key] = record

    def happened(self, name: str, /, **arguments: str) -> bool:
        """Whether a successful event with this name and (at least) these arguments is in the log."""
        for event in self.log:
            if event.name == name and event.ok and arguments.items() <= event.arguments.items():
                return True
        return False

    def fork(self) -> World:
        """Returns an independent continuation: the records are shared, the overlay and the log are copied."""
        twin = World(self.tables)
        twin.overlay = dict(self.overlay)
        twin.log = list(self.log)
        return twin

"""A contestant of the standard library alone: says when it played, and breaks down when it is told to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.serve import Play, serve, timed


def prepare(job: Mapping[str, Any]) -> Play:
    """``breaks`` names the ask that it does not survive; ``""`` is the job itself."""
    print("what libraries print is no answer")
    if job.get("breaks") == "":
        raise ValueError("broken before the first round")

    def play(ask: Mapping[str, Any]) -> dict[str, Any]:
        print("nor is this")
        if job.get("breaks") == ask["name"]:
            raise ValueError("broken in a round")
        at = time.monotonic()
        _, took = timed(lambda: sum(range(ask["work"])))
        return {**took, "at": at, "threads": job["threads"]}

    return play


if __name__ == "__main__":
    serve(prepare)

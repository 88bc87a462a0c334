"""Steps a second of the environments, and of text games of others."""

from __future__ import annotations

from typing import Any

from benchmarks.env_speed import measure_envs
from benchmarks.peers.games import GAMES
from benchmarks.throughput.contest import Conditions, Contestant, compete, least, middle


def measure(how: Conditions, *, episodes: int = 300, steps: int = 2_000, ids: tuple[str, ...] = ()) -> dict[str, Any]:
    """Replays the oracle's messages in every environment; plays random legal moves in the games of others."""
    games: dict[str, Any] = {}
    for project in sorted({game.project for game in GAMES}):
        asks = {game.id: {"game": game.id, "steps": steps} for game in GAMES if game.project == project}
        games |= compete([Contestant(project, "benchmarks.peers.games", {"project": project}, project)], asks, how)
    return {"envs": measure_envs(episodes, how.rounds, ids), "games": games, "rounds": how.rounds}


def game_rates(part: dict[str, Any]) -> list[tuple[str, str, float, float]]:
    """Project, game, steps per CPU second and steps an episode, of the games that were there."""
    rows = []
    for project, found in part["games"].items():
        for game, answers in found.get("asks", {}).items():
            took = least(part["games"], project, game)
            resets = middle(part["games"], project, game, "resets")
            if took and resets:
                steps = answers["steps"][0]
                rows.append((project, game, steps / took, steps / resets))
    return rows

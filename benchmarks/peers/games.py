"""Text games of GEM and TextArena, stepped in the same run as our conversations.

They do less a step (a number is compared, a word is checked) and are told random legal moves; what is compared is
how fast a text environment can be had, not what it teaches. Install them with ``pip install "convgym[peers]"``.
"""

from __future__ import annotations

import contextlib
import io
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from convgym.seeding import derive_seed

__all__ = ["measure_games"]


@dataclass(frozen=True)
class Game:
    """One game of another project.

    Attributes:
        project: Its package.
        id: Its name there.
        move: Draws a legal move.
    """

    project: str
    id: str
    move: Callable[[random.Random], str]


def _number(rng: random.Random) -> str:
    return str(rng.randint(1, 20))


def _code(rng: random.Random) -> str:
    return " ".join(str(digit) for digit in rng.sample(range(1, 7), 4))


GAMES = (  # those that need no word lists from the network
    Game("gem", "game:GuessTheNumber-v0-hard", lambda rng: rf"\boxed{{{_number(rng)}}}"),
    Game("gem", "game:Mastermind-v0-hard", lambda rng: rf"\boxed{{{_code(rng).replace(' ', '')}}}"),
    Game("gem", "game:Minesweeper-v0-hard", lambda rng: rf"\boxed{{reveal {rng.randrange(8)} {rng.randrange(8)}}}"),
    Game("textarena", "GuessTheNumber-v0-raw", lambda rng: f"[{_number(rng)}]"),
    Game("textarena", "Mastermind-v0-raw", lambda rng: f"[{_code(rng)}]"),
)


def measure_games(steps: int = 2_000, rounds: int = 3) -> tuple[list[dict[str, Any]], list[str]]:
    """Measures the games whose projects are installed.

    Args:
        steps: Moves a round, resets included.
        rounds: The best of so many.

    Returns:
        Rows ``{"project", "env", "steps_per_second", "steps_per_episode"}``, and the projects that are not here.
    """
    absent = sorted({game.project for game in GAMES if find_spec(game.project) is None})
    rows = []
    for game in GAMES:
        if game.project in absent:
            continue
        with contextlib.redirect_stdout(io.StringIO()):  # TextArena greets
            best, resets = min(_PLAYERS[game.project](game, steps, each) for each in range(rounds))
        rows.append(
            {
                "project": game.project,
                "env": game.id,
                "steps_per_second": steps / best,
                "steps_per_episode": steps / resets,
            }
        )
    return rows, absent


def _moves(game: Game, count: int, round_: int) -> Iterator[str]:
    """Draws the moves beforehand: they are not what is measured."""
    rng = random.Random(derive_seed(0, "games", game.project, game.id, round_))
    return iter([game.move(rng) for _ in range(count)])


def _play_gem(game: Game, steps: int, round_: int) -> tuple[float, int]:
    import gem

    env, resets = gem.make(game.id), 1
    moves = _moves(game, steps, round_)
    start = time.process_time()
    env.reset(seed=resets)
    for move in moves:
        _, _, terminated, truncated, _ = env.step(move)
        if terminated or truncated:
            resets += 1
            env.reset(seed=resets)
    return time.process_time() - start, resets


def _play_textarena(game: Game, steps: int, round_: int) -> tuple[float, int]:
    import textarena

    env, resets = textarena.make(game.id), 1
    moves = _moves(game, steps, round_)
    start = time.process_time()
    env.reset(num_players=1, seed=resets)
    for move in moves:
        env.get_observation()
        done, _ = env.step(move)
        if done:
            resets += 1
            env.reset(num_players=1, seed=resets)
    return time.process_time() - start, resets


_PLAYERS: dict[str, Callable[[Game, int, int], tuple[float, int]]] = {
    "gem": _play_gem,
    "textarena": _play_textarena,
}

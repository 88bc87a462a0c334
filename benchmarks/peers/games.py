"""Text games of GEM and TextArena, stepped in the same run as our conversations.

They do less a step (a number is compared, a word is checked) and are told random legal moves; what is compared is
how fast a text environment can be had, not what it teaches. Install them with ``pip install "convgym[peers]"``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.serve import Link, Play, timed

__all__ = ["GAMES", "Game"]


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
_DISTRIBUTIONS = {"gem": "gem-llm", "textarena": "textarena"}


def main() -> None:
    """Plays the games of one project; asks name the ``game`` and the number of ``steps``."""
    link = Link()
    project = link.job["project"]
    play = {"gem": _gem, "textarena": _textarena}[project]()
    link.ready(_DISTRIBUTIONS[project])
    for ask in link.asks():
        link.answer(play(ask))


def _gem() -> Play:
    import gem

    def play(ask: Mapping[str, Any]) -> dict[str, float]:
        env, moves = gem.make(ask["game"]), _moves(ask)

        def work() -> int:
            resets = 1
            env.reset(seed=resets)
            for move in moves:
                _, _, terminated, truncated, _ = env.step(move)
                if terminated or truncated:
                    resets += 1
                    env.reset(seed=resets)
            return resets

        return _answer(work, ask)

    return play


def _textarena() -> Play:
    import textarena

    def play(ask: Mapping[str, Any]) -> dict[str, float]:
        env, moves = textarena.make(ask["game"]), _moves(ask)

        def work() -> int:
            resets = 1
            env.reset(num_players=1, seed=resets)
            for move in moves:
                env.get_observation()
                done, _ = env.step(move)
                if done:
                    resets += 1
                    env.reset(num_players=1, seed=resets)
            return resets

        return _answer(work, ask)

    return play


def _moves(ask: Mapping[str, Any]) -> list[str]:
    """Draws the moves beforehand: they are not what is measured."""
    game = next(game for game in GAMES if game.id == ask["game"])
    rng = random.Random(f"{game.project} {game.id}")
    return [game.move(rng) for _ in range(ask["steps"])]


def _answer(work: Callable[[], int], ask: Mapping[str, Any]) -> dict[str, float]:
    resets, took = timed(work)
    return {**took, "steps": ask["steps"], "resets": resets}


if __name__ == "__main__":
    main()

"""Named random streams: every draw belongs to a name, and no name can collide with another.

A child seed is the BLAKE2b hash of its parent and its path of names, so that ``derive_seed(42, "episode", 1)`` and
``derive_seed(43, "episode", 0)`` have nothing in common (``seed + i`` would make them equal), and adding a stream never
moves another. The process-wide ``random`` and ``numpy.random`` generators are never touched.
"""

from __future__ import annotations

import random
from hashlib import blake2b

__all__ = ["STREAMS", "Streams", "derive_seed"]

STREAMS = ("scenario", "user", "surface", "noise")
"""What may vary in an episode: the world and goal, the user's choices, the wording, the typing errors."""


def derive_seed(root: int, *names: str | int) -> int:
    """Derives a child seed from a root and a path of names.

    Args:
        root: Any integer, negative ones included.
        *names: The path, e.g. ``("env", 3)``. ``1`` and ``"1"`` are different names.

    Returns:
        An integer in ``[0, 2**63)``, the same in every process and on every platform.

    >>> derive_seed(42, "env", 1) == derive_seed(42, "env", 1)
    True
    >>> derive_seed(42, "env", 1) == derive_seed(43, "env", 0)
    False
    """
    digest = blake2b(repr((int(root), *names)).encode(), digest_size=8).digest()  # repr escapes surrogates
    return int.from_bytes(digest, "little") >> 1


class Streams:
    """The random streams of one episode.

    A stream is keyed by its name and, for the user's side, by the turn rather than by the order of draws: the user of
    every episode in a group makes the same choices at the same turn, whatever the agent said before (common random
    numbers).

    Args:
        scenario_seed: Root of the ``scenario`` stream.
        user_seed: Root of the ``user``, ``surface`` and ``noise`` streams.
    """

    __slots__ = ("scenario_seed", "user_seed")

    def __init__(self, scenario_seed: int, user_seed: int) -> None:
        self.scenario_seed = scenario_seed
        self.user_seed = user_seed

    def stream(self, name: str, turn: int = -1) -> random.Random:
        """Returns a fresh generator for one name and turn.

        Args:
            name: One of :data:`STREAMS`.
            turn: Turn index, or -1 for draws made once an episode.
        """
        root = self.scenario_seed if name == "scenario" else self.user_seed
        return random.Random(derive_seed(root, name, turn))

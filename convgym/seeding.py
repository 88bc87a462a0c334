"""Named random streams: every draw belongs to a name, and no name can collide with another.

A child seed is the BLAKE2b hash of its parent and its path of names, so that ``derive_seed(42, "episode",
1)`` and ``derive_seed(43, "episode", 0)`` have nothing in common (``seed + i`` would make them equal),
and adding a stream never moves another. The process-wide ``random`` and ``numpy.random`` generators are
never touched.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

__all__ = ["STREAMS", "Stream", "Streams", "derive_seed"]

STREAMS = ("scenario", "user", "surface", "noise")
"""What may vary in an episode: the world and goal, the user's choices, the wording, the typing errors."""

Item = TypeVar("Item")


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
    path = repr((int(root), *names)).encode()  # plain: repr escapes what UTF-8 cannot hold
    return int.from_bytes(blake2b(path, digest_size=8).digest(), "little") >> 1


class Stream(random.Random):
    """The generator of one stream.

    Python promises the same ``random()`` in all its versions, but not the same ``choice`` or ``sample``. What
    scenarios draw with is therefore spelled out here.
    """

    def below(self, n: int) -> int:
        """Draws an integer from ``0`` to ``n - 1``."""
        bits = n.bit_length()
        drawn = self.getrandbits(bits)
        while drawn >= n:
            drawn = self.getrandbits(bits)
        return drawn

    def between(self, low: int, high: int) -> int:
        """Draws an integer from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[Item]) -> Item:
        """Draws one of the items."""
        return items[self.below(len(items))]

    def deal(self, items: Sequence[Item], count: int) -> list[Item]:
        """Draws ``count`` of the items without replacement, in random order."""
        left, dealt = list(items), []
        for _ in range(count):
            at = self.below(len(left))
            dealt.append(left[at])
            left[at] = left[-1]
            left.pop()
        return dealt

    def distinct(self, n: int, count: int) -> list[int]:
        """Draws ``count`` different integers below ``n``, which should be much larger than ``count``."""
        found: dict[int, None] = {}  # a set that keeps its order
        while len(found) < count:
            found[self.below(n)] = None
        return list(found)


class Streams:
    """The random streams of one episode.

    A stream is keyed by its name and, for the user's side, by the turn rather than by the order of draws: the
    user of every episode in a group makes the same choices at the same turn, whatever the agent said before
    (common random numbers).

    Args:
        scenario_seed: Root of the ``scenario`` stream.
        user_seed: Root of the ``user``, ``surface`` and ``noise`` streams.
    """

    __slots__ = ("scenario_seed", "user_seed")

    def __init__(self, scenario_seed: int, user_seed: int) -> None:
        self.scenario_seed = scenario_seed
        self.user_seed = user_seed

    def stream(self, name: str, turn: int = -1) -> Stream:
        """Returns a fresh generator for one name and turn.

        Args:
            name: One of :data:`STREAMS`.
            turn: Turn index, or -1 for draws made once an episode.
        """
        root = self.scenario_seed if name == "scenario" else self.user_seed
        return Stream(derive_seed(root, name, turn))

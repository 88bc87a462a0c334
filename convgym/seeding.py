"""Named random streams: every draw belongs to a name, and no name can collide with another.

A child seed is the BLAKE2b hash of its parent and its path of names, so that ``derive_seed(42, "episode",
1)`` and ``derive_seed(43, "episode", 0)`` have nothing in common (``seed + i`` would make them equal),
and adding a stream never moves another. The process-wide ``random`` and ``numpy.random`` generators are
never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct
from typing import Any, Protocol, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random

from convgym.errors import ConfigError

__all__ = ["STREAMS", "Draws", "OwnStreams", "Stream", "Streams", "derive_seed"]

STREAMS = ("scenario", "user", "surface", "noise")
"""What may vary in an episode: the world and goal, the user's choices, the wording, the typing errors."""

Item = TypeVar("Item")
_EIGHT_WORDS = Struct("<8Q")


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
    return _hash((int(root), *[str(name) if isinstance(name, str) else int(name) for name in names]))


def _hash(path: tuple[int | str, ...]) -> int:
    digest = blake2b(repr(path).encode(), digest_size=8).digest()  # repr escapes what UTF-8 cannot hold
    return int.from_bytes(digest, "little") >> 1


class Draws(Protocol):
    """Anything that draws: a :class:`Stream`, or Python's ``random.Random``."""

    def random(self) -> float:
        """Draws a number in [0, 1)."""
        ...


class Stream:
    """The generator of one stream: BLAKE2b in counter mode, eight words of 64 bits a block.

    A stream is made for a turn and drawn from a few times, so that what counts is how fast it begins (seeding a
    Mersenne Twister takes ten times as long). It is the same on every platform and in every version of Python.

    Args:
        path: The stream's root seed and names; other paths give independent streams.
    """

    __slots__ = ("_blocks", "_path", "_words")

    def __init__(self, path: tuple[int | str, ...]) -> None:
        self._path = repr(path).encode()
        self._blocks = 1
        self._words = list(_EIGHT_WORDS.unpack(blake2b(self._path).digest()))  # the salt 0 is the default

    def _refill(self) -> list[int]:
        """Hashes the next block into integers in ``[0, 2**64)``."""
        block = blake2b(self._path, salt=self._blocks.to_bytes(16, "little")).digest()
        self._blocks += 1
        self._words = list(_EIGHT_WORDS.unpack(block))
        return self._words

    def random(self) -> float:
        """Draws a number in [0, 1) with 53 random bits."""
        return ((self._words or self._refill()).pop() >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        """Draws an integer from ``0`` to ``n - 1``; uneven by less than ``n / 2**64``."""
        return ((self._words or self._refill()).pop() * n) >> 64

    def shuffle(self, items: list[Any]) -> None:
        """Brings a list into random order, in place."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]

    def between(self, low: int, high: int) -> int:
        """Draws an integer from ``low`` to ``high``, both included."""
        return low + (((self._words or self._refill()).pop() * (high - low + 1)) >> 64)

    def pick(self, items: Sequence[Item]) -> Item:
        """Draws one of the items."""
        return items[((self._words or self._refill()).pop() * len(items)) >> 64]

    def deal(self, items: Sequence[Item], count: int) -> list[Item]:
        """Draws ``count`` of the items without replacement, in random order."""
        left, dealt = list(items), []
        for _ in range(count):
            at = ((self._words or self._refill()).pop() * len(left)) >> 64
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
        return Stream((self.scenario_seed if name == "scenario" else self.user_seed, name, turn))


class OwnStreams(gym.Env[str, str]):
    """An environment that draws from :class:`Streams` only.

    Gymnasium gives every environment a numpy generator. Seeding it takes as long as drawing a scenario, so it
    is made when somebody asks for it (``env.np_random``), from the seed of the last seeded reset.
    """

    _generator: np.random.Generator | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Notes the seed.

        Raises:
            ConfigError: If the seed is not a non-negative integer.
        """
        if seed is not None:
            if not isinstance(seed, int) or seed < 0:
                raise ConfigError(f"seed: expected an integer of at least 0, got {seed!r}.")
            self._generator, self._np_random_seed = None, seed
        return "", {}

    @property
    def _np_random(self) -> np.random.Generator | None:
        if self._generator is None and self._np_random_seed is not None:
            self._generator, _ = np_random(self._np_random_seed)
        return self._generator

    @_np_random.setter
    def _np_random(self, generator: np.random.Generator | None) -> None:
        self._generator = generator

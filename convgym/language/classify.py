"""What a message probably is, where no pattern finds an act: a small linear classifier over hashed n-grams.

Words, pairs of words and runs of three to five characters are hashed into a fixed number of buckets; one weight
vector an act, softmax over the acts. The weights are made by ``python -m benchmarks.understanding --write`` from the
seen part of the labelled phrasings, and loaded when first needed.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUCKETS", "Guess", "classify", "features", "normalise"]

BUCKETS = 4_096
READ = 400  # characters that are looked at: an act is made in a sentence or two


class Guess(NamedTuple):
    """The likeliest act and its probability."""

    act: str
    probability: float


class _Model(NamedTuple):
    acts: tuple[str, ...]
    weights: NDArray[np.float64]  # (BUCKETS, acts)
    bias: NDArray[np.float64]  # (acts,)


def normalise(text: str) -> str:
    """Brings a text into the form that is read: lower case, one kind of apostrophe and digit, single spaces."""
    return re.sub(r"\d", "0", " ".join(text.replace("’", "'").lower().split()))[:READ]


def features(text: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Hashes a text into buckets.

    Returns:
        The buckets that are not empty, (n,), and their values, (n,), of Euclidean length 1; both empty for a text
        without words.
    """
    text = normalise(text)
    words = re.findall(r"[a-z0-9']+|[?!]", text)
    grams = [f"w {word}" for word in words]
    grams += [f"p {one} {two}" for one, two in zip(["^", *words], [*words, "$"])] if words else []
    for word in words:
        padded = f"<{word}>"
        grams += [f"c {padded[i : i + n]}" for n in (3, 4, 5) for i in range(len(padded) - n + 1)]
    counts: dict[int, float] = {}
    for gram in grams:
        bucket = crc32(gram.encode()) % BUCKETS
        counts[bucket] = counts.get(bucket, 0.0) + 1.0
    values = np.sqrt(np.fromiter(counts.values(), np.float64, len(counts)))
    length = float(np.linalg.norm(values))
    return np.fromiter(counts, np.int64, len(counts)), values / (length or 1.0)


def classify(text: str) -> Guess:
    """Returns the likeliest act of a message; ``Guess("none", 1.0)`` for a text without words."""
    model = _load()
    buckets, values = features(text)
    if not len(buckets):
        return Guess("none", 1.0)
    logits = values @ model.weights[buckets] + model.bias
    odds = np.exp(logits - logits.max())
    best = int(odds.argmax())
    return Guess(model.acts[best], round(float(odds[best] / odds.sum()), 4))  # no machine's last bits decide


@cache
def _load() -> _Model:
    folder = files("convgym").joinpath("language/classifier")
    acts = tuple(json.loads(folder.joinpath("acts.json").read_text("utf-8"))["acts"])
    raw = np.frombuffer(folder.joinpath("weights.f16").read_bytes(), np.float16).astype(np.float64)
    table = raw.reshape(BUCKETS + 1, len(acts))
    return _Model(acts, table[:-1], table[-1])

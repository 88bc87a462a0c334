"""Sampling one token in each of many rows, reproducibly: counter-based uniforms and inversion."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), a function of each pair of seed and position (splitmix64; Steele et al.,
    2014).

    The largest is ``1 - 2**-52``, so that it times a total stays below the total.
    """
    mixed = _mix(_mix(seeds + _GOLDEN) + _GOLDEN * positions.astype(np.uint64))
    return (mixed >> _TOP).astype(np.float64) * 2.0**-52


# Made once: each would cost as much as the operation that uses it.
_GOLDEN, _TOP = np.uint64(0x9E3779B97F4A7C15), np.uint64(12)
_ROUNDS = (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))
_LAST = np.uint64(31)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in _ROUNDS:
        z = (z ^ (z >> shift)) * factor
    return z ^ (z >> _LAST)


@torch.inference_mode()
def sample(
    logits: Tensor, draws: Tensor, temperature: float = 1.0, greedy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Picks tokens by inverting the cumulative distribution.

    Args:
        logits: [n,V].
        draws: Uniforms in [0, 1), float64 [n].
        temperature: Divides the logits.
        greedy: Where to take the likeliest token instead, bool [n].

    Returns:
        Tokens [n], and their log-probabilities at this temperature, float32 [n].
    """
    probabilities = torch.softmax(logits if temperature == 1.0 else logits / temperature, -1)
    cumulative = torch.cumsum(probabilities, -1, dtype=torch.float64)
    # Strictly above the draw: a token of probability 0 is never the first above it.
    tokens = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)
    tokens = tokens.clamp_max_(logits.shape[-1] - 1)
    if greedy is not None:
        tokens = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), tokens)
    return tokens[:, 0], probabilities.gather(-1, tokens)[:, 0].log_()

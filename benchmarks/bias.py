"""How far the mean of noisy directions is from a known gradient: factor, residual, variance, effective sample size.

**How noise is kept out.** The squared length of a mean of I noisy vectors is too large by tr Cov / I. Squared lengths
are therefore means of <r_i, r_j> over pairs of *different* batches, which are unbiased; their error has the linear and
the degenerate part of the U-statistic (Chen and Qin 2010, "A two-sample test for high-dimensional data"). The test of
"residual 0" splits the batches: one half gives a direction, a t-test along it is made in the other half, and the other
way round; the p value is twice the smaller one (Bonferroni).

**Control variates.** Four score-function estimators are computed by the audit itself on each batch: without a
baseline, leave-one-out, with the exact value, and the bare score. Their expectations are theorems: g, g, g and 0. What
they missed on a batch, times coefficients fitted on the *other* half of the batches, is subtracted from d, which moves
no expectation. An algorithm that equals one of them in every batch has an interval without width: an identity is no
estimate. Variance, cosine of a batch and ESS are those of the plain d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from benchmarks import stats

Floats = NDArray[np.float64]
ROUNDING = 1e-6  # what directions that went through float32 may differ by


class Measure(NamedTuple):
    """What is said of an algorithm in a cell. Intervals are 95 %; NaN where there is nothing to say."""

    factor: float
    factor_low: float
    factor_high: float
    factor_p: float  # of "the factor is 1"
    residual: float
    residual_low: float
    residual_high: float
    residual_p: float  # of "the residual is 0"
    distance: float
    variance: float
    cosine: float
    cosine_batch: float
    cosine_batch_low: float
    cosine_batch_high: float
    ess: float
    plain_factor: float  # without control variates
    plain_factor_low: float
    plain_factor_high: float


def measure(found: Floats, truth: Floats, known: Floats | None = None, mean: Floats | None = None) -> Measure:
    """Compares directions [I,P] with the true gradient [P].

    Args:
        found: Directions on independent batches.
        truth: The true gradient.
        known: [C,I,P] control variates on the same batches.
        mean: [C,P] their expectations.
    """
    square = float(truth @ truth)
    unit = float(np.sqrt(square))
    halves = adjusted(found, known, mean)
    better = np.concatenate([half for _, half in halves])
    along = better @ truth / square  # [I]
    c = _t(along)
    size = abs(c.estimate) if c.low > 0 else float("nan")  # without a step along g nothing can be relative to it

    def across(x: Floats) -> Floats:
        """The part orthogonal to g, in units of |g|."""
        return (x - (x @ truth / square)[:, None] * truth) / unit

    u, error = squared_mean(across(better))
    residual, low, high = (float(np.sqrt(max(x, 0.0))) for x in (u, u - 1.96 * error, u + 1.96 * error))
    p = split_test([(across(one), across(other)) for one, other in halves])
    if np.linalg.norm(across(better).mean(0)) < ROUNDING:
        residual, low, high, p = 0.0, 0.0, 0.0, 1.0
    noise = float(found.var(0, ddof=1).sum()) / square
    gap = max((c.estimate - 1) ** 2 - float(along.var(ddof=1)) / len(along), 0.0)
    norms = np.linalg.norm(found, axis=1) * unit
    cosines = np.divide(found @ truth, norms, out=np.zeros(len(found)), where=norms > 0)
    per_batch, raw = _t(cosines), _t(found @ truth / square)
    return Measure(
        *c, _t_test(along, 1.0), residual / size, low / size, high / size, p,
        distance=float(np.sqrt(gap + residual**2)),
        variance=noise,
        cosine=1 / float(np.hypot(1.0, residual / size)),
        cosine_batch=per_batch.estimate, cosine_batch_low=per_batch.low, cosine_batch_high=per_batch.high,
        ess=size**2 / noise if noise > 0 else float("nan"),  # over that of REINFORCE once that is known
        plain_factor=raw.estimate, plain_factor_low=raw.low, plain_factor_high=raw.high,
    )  # fmt: skip


def adjusted(found: Floats, known: Floats | None, mean: Floats | None) -> list[tuple[Floats, Floats]]:
    """Directions less what the control variates missed, for each half of the batches with the other one's coefficients.

    Returns:
        Twice (the half that the coefficients were fitted on, the other half), [I/2,P] each: both with coefficients
        that know nothing of the second one. The second ones together are all batches.
    """
    halves, odd = [], np.arange(len(found)) % 2 == 1
    for fit in (odd, ~odd):
        if known is None or mean is None:
            halves.append((found[fit], found[~fit]))
            continue
        missed = known - mean[:, None]
        x = (known[:, fit] - known[:, fit].mean(1, keepdims=True)).reshape(len(known), -1)
        y = (found[fit] - found[fit].mean(0)).ravel()
        scale = np.linalg.norm(x, axis=1) + 1e-300
        gram = x @ x.T / np.outer(scale, scale)
        coefficients = np.linalg.lstsq(gram, x @ y / scale, rcond=1e-10)[0] / scale  # controls may be collinear
        better = found - np.tensordot(coefficients, missed, 1)
        halves.append((better[fit], better[~fit]))
    return halves


def squared_mean(x: Floats) -> tuple[float, float]:
    """Unbiased |E x|^2 of vectors [I,P], and its standard error: mean of <x_i, x_j> over i != j.

    Var = 4 Var<x, m> / I + 2 tr Cov^2 / I^2 with m = E x, the linear and the degenerate part; both are estimated from
    inner products of different batches.
    """
    n, gram = len(x), x @ x.T
    off = gram.sum(1) - np.diag(gram)
    u = float(off.sum()) / (n * (n - 1))
    centred = x - x.mean(0)
    inner = centred @ centred.T
    trace = float((inner**2).sum() - (np.diag(inner) ** 2).sum()) / (n * (n - 1))
    # each off / (n - 1) has the noise of a mean of n - 1 others: the degenerate part is in it twice
    linear = 4 * float((off / (n - 1)).var(ddof=1)) / n - 4 * trace / n**2
    return u, float(np.sqrt(max(linear, 0.0) + 2 * trace / n**2))


def split_test(halves: Sequence[tuple[Floats, Floats]]) -> float:
    """P value of "E x = 0": a direction from one half, a one-sided t-test along it in the other, and both ways."""
    ps = []
    for one, other in halves:
        direction = one.mean(0)
        ps.append(_t_test(other @ direction / max(float(np.linalg.norm(direction)), 1e-300), 0.0, above=True))
    return min(1.0, 2 * min(ps))


def _t(x: Floats) -> stats.Interval:
    return stats.t_interval([x])


def _t_test(x: Floats, against: float, above: bool = False) -> float:
    """P value of "the mean is ``against``"; numbers that are all equal but for rounding are or are not."""
    gap, spread = float(x.mean()) - against, float(x.std(ddof=1))
    if spread < ROUNDING:
        return 1.0 if abs(gap) < ROUNDING or (above and gap < 0) else 0.0
    t = gap / (spread / np.sqrt(len(x)))
    tail = float(scipy_stats.t.sf(t if above else abs(t), len(x) - 1))
    return tail if above else 2 * tail

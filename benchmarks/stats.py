"""The statistics of the benchmark: pure functions from scores to intervals, tests and tie groups.

Scores come in *strata*: one 1-D array per environment, one number per run. Environments are fixed, runs are
the sample: every interval and every test here generalises over seeds and says nothing about environments that
were not played. Each stratum has the same weight, whatever its number of runs.

With four seeds the percentile bootstrap of the interquartile mean is over-confident, so **decisions are made
by `paired_t_test`**, corrected by `holm`; the bootstrap is for display. `docs/concepts/statistics.md` derives
it all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special
from scipy import stats as scipy_stats

Array = NDArray[np.float64]
Strata = Sequence[ArrayLike]
Alternative = Literal["two-sided", "greater"]
EXACT_FLIPS = 14  # 2^14 sign patterns are enumerated; above that they are sampled
MONTE_CARLO_FLIPS = 20_000


class Interval(NamedTuple):
    """A point estimate with its interval; the bounds are NaN where the data cannot give one."""

    estimate: float
    low: float
    high: float


class MeanError(NamedTuple):
    """A mean over strata with its standard error and Welch-Satterthwaite degrees of freedom."""

    mean: float
    se: float
    df: float


class PairedTest(NamedTuple):
    """A paired test of one mean difference: estimate, 95 % interval, standard error, df and p value."""

    difference: float
    low: float
    high: float
    se: float
    df: float
    p: float


def _clean(strata: Strata) -> list[Array]:
    """Strata as float arrays without NaN (a NaN is a run that is missing) and without empty strata."""
    arrays = [np.asarray(x, dtype=np.float64) for x in strata]
    for x in arrays:
        if x.ndim != 1:
            raise ValueError(f"a stratum is a 1-D array of run scores, got shape {x.shape}")
    arrays = [x[~np.isnan(x)] for x in arrays]
    return [x for x in arrays if x.size]


# --------------------------------------------------------------------------------------------- aggregates


def stratified_mean(strata: Strata) -> float:
    """Mean over strata of the mean over runs (all environments weigh the same); NaN without data."""
    return _mean_statistic(_clean(strata))


def iqm(strata: Strata) -> float:
    """Interquartile mean of all runs of all strata pooled: the 25 % trimmed mean.

    Source: Agarwal et al. 2021, "Deep RL at the Edge of the Statistical Precipice", section 4.3.
    """
    return _iqm_statistic(_clean(strata))


def optimality_gap(strata: Strata, target: float = 1.0) -> float:
    """Mean amount by which runs fall short of `target`; a run above it counts as 0.

    Source: Agarwal et al. 2021, section 4.3: target - E[min(score, target)].
    """
    arrays = _clean(strata)
    return _mean_statistic([np.maximum(target - x, 0.0) for x in arrays])


def gap_closed(score: float, start: float, oracle: float) -> float:
    """(J - J_start) / (J_oracle - J_start): 0 is the untrained start, 1 the oracle, floored at -1.

    NaN if the oracle is no better than the start, because then there is no gap to close.
    """
    if not oracle > start:
        return float("nan")
    return max(-1.0, (score - start) / (oracle - start))


def pass_k(trials: ArrayLike, successes: ArrayLike, k: int) -> float:
    """pass^k: the chance that k fresh attempts at a task *all* succeed, averaged over tasks.

    Unbiased estimate: mean over tasks of C(c, k) / C(n, k), with c successes in n trials.
    Source: Yao et al. 2024, "tau-bench", section 3 (2406.12045).

    Args:
        trials: Attempts per task, each >= k. Shape [tasks].
        successes: Successes per task. Shape [tasks].
        k: Attempts that must all succeed.
    """
    n, c = np.atleast_1d(np.asarray(trials, int)), np.atleast_1d(np.asarray(successes, int))
    if n.shape != c.shape or n.size == 0:
        raise ValueError(f"trials and successes must have one entry per task, got {n.shape} and {c.shape}")
    if k < 1 or n.min() < k or (c > n).any() or c.min() < 0:
        raise ValueError(f"pass^k needs 1 <= k <= trials and 0 <= successes <= trials, got k = {k}")
    return float(np.mean([comb(int(ci), k) / comb(int(ni), k) for ni, ci in zip(n, c)]))


# --------------------------------------------------------------------------------------------- intervals

Statistic = Callable[[list[Array]], Array]  # list of [..., runs_e] -> [...]; works on the last axis


def _mean_statistic(arrays: list[Array]) -> float:
    return float(_mean_of(arrays)) if arrays else float("nan")


def _iqm_statistic(arrays: list[Array]) -> float:
    return float(_iqm_of(arrays)) if arrays else float("nan")


def _mean_of(arrays: list[Array]) -> Array:
    return np.asarray(np.mean([x.mean(axis=-1) for x in arrays], axis=0))


def _iqm_of(arrays: list[Array]) -> Array:
    return np.asarray(scipy_stats.trim_mean(np.concatenate(arrays, axis=-1), 0.25, axis=-1))


STATISTICS: dict[str, Statistic] = {"mean": _mean_of, "iqm": _iqm_of}


def stratified_bootstrap(
    strata: Strata,
    statistic: Literal["mean", "iqm"],
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Percentile interval from resampling runs with replacement inside each stratum.

    Over-confident with few runs per stratum: show it, do not decide on it. A stratum with one run has nothing
    to resample: the bounds are NaN.
    Source: Agarwal et al. 2021, section 4.1.

    Args:
        strata: One array of scores per environment.
        statistic: A key of `STATISTICS`.
        level: Coverage aimed at.
        resamples: Bootstrap draws.
        seed: Seed of the resampling, so that a report can be made again bit for bit.
    """
    arrays, of = _clean(strata), STATISTICS[statistic]
    if not arrays or min(x.size for x in arrays) < 2:
        return Interval(float(of(arrays)) if arrays else float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = [x[rng.integers(0, x.size, size=(resamples, x.size))] for x in arrays]  # each [resamples, runs_e]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(of(drawn), [tail, 1.0 - tail])
    return Interval(float(of(arrays)), float(low), float(high))


def mean_error(strata: Strata) -> MeanError:
    """Mean over strata, its standard error, and the Welch-Satterthwaite degrees of freedom.

    With E strata of n_e runs and sample variances s_e^2: se^2 = sum_e s_e^2 / n_e / E^2 and
    df = (sum_e v_e)^2 / sum_e (v_e^2 / (n_e - 1)), v_e = s_e^2 / n_e. A stratum with one run gives no
    variance: se is NaN.
    Source: Satterthwaite 1946; Welch 1947.
    """
    arrays = _clean(strata)
    mean = _mean_statistic(arrays)
    if not arrays or min(x.size for x in arrays) < 2:
        return MeanError(mean, float("nan"), float("nan"))
    v = np.array([x.var(ddof=1) / x.size for x in arrays])
    if v.sum() <= 1e-24 * max(1.0, mean * mean):  # rounding noise of identical scores is no variance
        return MeanError(mean, 0.0, float(sum(x.size - 1 for x in arrays)))
    share = v / v.sum()  # dividing first keeps the squares of tiny variances from underflowing to 0
    df = 1.0 / float(np.sum(share**2 / [x.size - 1 for x in arrays]))
    return MeanError(mean, float(np.sqrt(v.sum())) / len(arrays), df)


def t_interval(
    strata: Strata, *, level: float = 0.95, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Interval:
    """Student's t interval of the (stratified) mean, honest on small n; cut to `bounds`, e.g. (0, 1).

    Source: Student 1908; degrees of freedom as in `mean_error`.
    """
    mean, se, df = mean_error(strata)
    half = _t_quantile(0.5 + level / 2.0, df) * se if se > 0 else se
    low, high = mean - half, mean + half
    return Interval(mean, float(np.maximum(low, bounds[0])), float(np.minimum(high, bounds[1])))


def _t_quantile(q: float, df: float) -> float:
    return float(scipy_stats.t.ppf(q, df))


# --------------------------------------------------------------------------------------------- paired tests


def paired_differences(a: Strata, b: Strata) -> list[Array]:
    """a - b per stratum, paired by position (= seed); a pair with a missing run (NaN) is left out."""
    if len(a) != len(b):
        raise ValueError(f"paired scores need the same strata, got {len(a)} and {len(b)}")
    pairs = [(np.asarray(x, float), np.asarray(y, float)) for x, y in zip(a, b)]
    for x, y in pairs:
        if x.shape != y.shape:
            raise ValueError(f"paired scores need the same seeds, got {x.size} and {y.size} in a stratum")
    return _clean([x - y for x, y in pairs])


def paired_correlation(a: Strata, b: Strata) -> float:
    """Correlation of paired scores inside strata: what sharing seeds bought. NaN without variation.

    Stratum means are removed first, so that easy and hard environments alone do not look like correlation.
    """
    x, y = [], []
    for xi, yi in zip(a, b, strict=True):
        both = np.stack([np.asarray(xi, float), np.asarray(yi, float)])
        both = both[:, ~np.isnan(both).any(axis=0)]
        if both.shape[1] > 1:
            both = both - both.mean(axis=1, keepdims=True)
            x.append(both[0])
            y.append(both[1])
    if not x:
        return float("nan")
    x_all, y_all = np.concatenate(x), np.concatenate(y)
    scale = float(np.sqrt((x_all @ x_all) * (y_all @ y_all)))
    return float(x_all @ y_all) / scale if scale > 1e-15 else float("nan")


def paired_t_test(
    differences: Strata, *, alternative: Alternative = "two-sided", level: float = 0.95
) -> PairedTest:
    """Stratified paired t test that the mean difference is 0: the decision test of the benchmark.

    t = mean_e(mean_i d_ei) / se with `mean_error`'s se and df. The pairing's correlation enters through the
    variance of the differences, so it is estimated and not assumed. One run in a stratum: p is NaN (no test).
    Differences that are all equal inside strata give no scale for t; then the exact sign-flip p is returned,
    which four seeds in one environment cannot push below 1/8.

    Args:
        differences: One array of paired differences per environment, from `paired_differences`.
        alternative: "two-sided", or "greater" for H1: mean difference > 0.
        level: Coverage of the (always two-sided) interval.
    """
    mean, se, df = mean_error(differences)
    if np.isnan(se):
        return PairedTest(mean, float("nan"), float("nan"), se, df, float("nan"))
    if se == 0.0:
        return PairedTest(mean, mean, mean, 0.0, df, permutation_test(differences, alternative=alternative))
    half = _t_quantile(0.5 + level / 2.0, df) * se
    t = mean / se
    p = scipy_stats.t.sf(t, df) if alternative == "greater" else 2.0 * scipy_stats.t.sf(abs(t), df)
    return PairedTest(mean, mean - half, mean + half, se, df, min(1.0, float(p)))


def permutation_test(differences: Strata, *, alternative: Alternative = "two-sided", seed: int = 0) -> float:
    """p value of the stratified sign-flip test: under H0 each paired difference is symmetric about 0.

    Exact up to `EXACT_FLIPS` pairs; else (1 + hits) / (1 + draws) over random flips, so never 0.
    Source: Fisher 1935, section 21; Phipson and Smyth 2010 for the added 1.
    """
    arrays = _clean(differences)
    if not arrays:
        return float("nan")
    # the statistic is linear in the signs: sum_i sign_i * weighted_i, with weighted_i = d_i / n_e / E
    weighted = np.concatenate([x / x.size / len(arrays) for x in arrays])
    n, exact = weighted.size, weighted.size <= EXACT_FLIPS
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # [2^n, n]
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(MONTE_CARLO_FLIPS, n))
    observed, null = weighted.sum(), signs @ weighted
    if alternative == "two-sided":
        observed, null = abs(observed), np.abs(null)
    hits = int(np.sum(null >= observed - 1e-12 * np.abs(weighted).sum()))  # ties count, rounding aside
    return float(hits / null.size if exact else (1 + hits) / (1 + null.size))


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p values, in the order given; NaN (no test) stays NaN and is not counted.

    Source: Holm 1979: p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)).
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order])) if order.size else []
    return adjusted


def probability_of_improvement(a: Strata, b: Strata) -> float:
    """P(a run of `a` beats a run of `b`), ties half, averaged over strata: the Mann-Whitney U over n m.

    Source: Agarwal et al. 2021, section 4.3; Mann and Whitney 1947.
    """
    x_strata, y_strata = _both(a, b)
    return float(np.mean([_wins(x, y) for x, y in zip(x_strata, y_strata)])) if x_strata else float("nan")


def probability_of_improvement_interval(
    a: Strata, b: Strata, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`probability_of_improvement` with a stratified percentile-bootstrap interval, both sides resampled."""
    x_strata, y_strata = _both(a, b)
    if not x_strata or min(x.size for x in (*x_strata, *y_strata)) < 2:
        return Interval(probability_of_improvement(a, b), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    draws = [
        _wins(
            x[rng.integers(0, x.size, (resamples, x.size))], y[rng.integers(0, y.size, (resamples, y.size))]
        )
        for x, y in zip(x_strata, y_strata)
    ]  # each [resamples]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.mean(draws, axis=0), [tail, 1.0 - tail])
    return Interval(probability_of_improvement(a, b), float(low), float(high))


def _both(a: Strata, b: Strata) -> tuple[list[Array], list[Array]]:
    """The strata in which both sides have at least one run, NaN removed."""
    kept = [(_clean([x]), _clean([y])) for x, y in zip(a, b, strict=True)]
    kept = [(x, y) for x, y in kept if x and y]
    return [x[0] for x, _ in kept], [y[0] for _, y in kept]


def _wins(x: Array, y: Array) -> Array:
    """Share of pairs in which x wins, ties half; [..., n] and [..., m] -> [...]."""
    delta = x[..., :, None] - y[..., None, :]
    return np.asarray(np.mean(delta > 0, axis=(-2, -1)) + 0.5 * np.mean(delta == 0, axis=(-2, -1)))


# --------------------------------------------------------------------------------------------- power


def minimum_detectable_difference(se: float, df: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided t test with this standard error finds with this power.

    Solves power = P(|Z + nc| > t_{1 - alpha/2, df} sqrt(W / df)) for nc = difference / se, Z normal and W
    chi-squared with df degrees of freedom: the power of the t test, as an average over quantiles of W
    (scipy's non-central t returns NaN in its far tail). Source: Cohen 1988, section 2.3.
    """
    if not se > 0 or not df > 0:
        return 0.0 if se == 0 else float("nan")
    quantiles = (np.arange(2000) + 0.5) / 2000
    bar = _t_quantile(1.0 - alpha / 2.0, df) * np.sqrt(scipy_stats.chi2.ppf(quantiles, df) / df)  # [2000]

    def shortfall(nc: float) -> float:
        return float(np.mean(special.ndtr(nc - bar) + special.ndtr(-nc - bar))) - power

    upper = 8.0
    while shortfall(upper) < 0:
        upper *= 2.0
    return se * float(optimize.brentq(shortfall, 0.0, upper))


# --------------------------------------------------------------------------------------------- the decision


@dataclass(frozen=True)
class Pair:
    """One comparison of two algorithms; `a` has the higher mean.

    `p` decides after Holm's correction (`p_holm`); the other numbers are shown beside it.
    """

    a: str
    b: str
    test: PairedTest
    p_holm: float
    p_permutation: float
    improvement: Interval
    correlation: float
    detectable: float
    separated: bool


def compare_all(scores: Mapping[str, Strata], *, alpha: float = 0.05) -> list[Pair]:
    """Every pair of algorithms, tested on paired seeds and corrected together by Holm.

    Args:
        scores: Algorithm name -> strata; the same environments and seeds in the same order, NaN = missing.
        alpha: Family-wise error rate over all pairs.

    Returns:
        One `Pair` for each two algorithms, those with the smallest p value first.
    """
    order = sorted(scores, key=lambda name: -np.nan_to_num(stratified_mean(scores[name]), nan=-np.inf))
    pairs = list(combinations(order, 2))
    differences = [paired_differences(scores[a], scores[b]) for a, b in pairs]
    tests = [paired_t_test(d) for d in differences]
    p_holm = holm([test.p for test in tests])
    compared = [
        Pair(
            a=a, b=b, test=test, p_holm=float(p),
            p_permutation=permutation_test(d),
            improvement=probability_of_improvement_interval(scores[a], scores[b]),
            correlation=paired_correlation(scores[a], scores[b]),
            detectable=minimum_detectable_difference(test.se, test.df, alpha=alpha / max(1, len(pairs))),
            separated=bool(p < alpha and test.difference > 0),
        )
        for (a, b), d, test, p in zip(pairs, differences, tests, p_holm)
    ]  # fmt: skip
    return sorted(compared, key=lambda pair: np.nan_to_num(pair.test.p, nan=2.0))


def tie_groups(order: Sequence[str], separated: Callable[[str, str], bool]) -> dict[str, str]:
    """Compact letters: two names share a letter if and only if they are *not* separated.

    Insert-and-absorb: start with one group of all; each separated pair splits every group that holds both;
    groups inside another are dropped. Letters go by the best-ranked member, so the winner carries "a".
    Source: Piepho 2004, "An algorithm for a letter-based representation of all-pairwise comparisons".

    Args:
        order: Names, best first.
        separated: Says if the test told two names apart.
    """
    groups: list[frozenset[str]] = [frozenset(order)]
    for a, b in combinations(order, 2):
        if not separated(a, b):
            continue
        split = {part for g in groups for part in ((g - {a}, g - {b}) if {a, b} <= g else (g,))}
        groups = [g for g in split if not any(g < h for h in split)]
    ranks = {name: i for i, name in enumerate(order)}
    groups.sort(key=lambda g: sorted(ranks[name] for name in g))
    return {name: "".join(letter(i) for i, g in enumerate(groups) if name in g) for name in order}


def letter(index: int) -> str:
    """a ... z, then A ... Z, then (53), (54) ...: enough for any suite."""
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return alphabet[index] if index < len(alphabet) else f"({index + 1})"

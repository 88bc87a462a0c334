"""Rows to conclusions: the ranking, its tests, and the controls.

One metric decides (`suite.decision`), by paired tests with Holm's correction over all pairs of competitors.
The other metrics are tested the same way and shown, so that a reader sees if the order depends on the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import stats, verdict
from benchmarks.results import NAN, Results, Row, plain
from benchmarks.stats import Interval, Pair
from benchmarks.suites import METRICS, Entry, EnvSpec, Metric

ALPHA = 0.05
COLLAPSED = 0.5  # a run that ends below this share of its start's success has collapsed
SHARES = (0.0, 1.0)  # success is a share: intervals are cut to it
ORACLE_MINIMUM = 0.95  # an oracle below this says that the environment is not sound
START = "untrained start"


@dataclass(frozen=True)
class Cell:
    """An entry in one environment, or in all (`env == ""`). Intervals are 95 % t intervals over seeds."""

    env: str
    entry: str
    runs: int
    missing: int
    diverged: int
    collapsed: int
    final: Interval
    final_greedy: Interval
    last_fifth: Interval
    area: Interval
    gap_closed: Interval
    final_return: Interval
    cpu_seconds: float
    seconds: float
    peak_memory_mb: float
    action_tokens: float


@dataclass(frozen=True)
class Standing:
    """A line of the ranking: an entry over all environments.

    Attributes:
        rank: 1 is best; 0 for a control.
        letters: Tie groups; two competitors that share a letter cannot be separated.
        score: Mean of the deciding metric with its t interval.
        iqm: Interquartile mean with its bootstrap interval (over-confident on few seeds: shown only).
        optimality_gap: Mean shortfall from a success of 1.
    """

    rank: int
    entry: str
    letters: str
    score: Interval
    iqm: Interval
    optimality_gap: float
    overall: Cell


@dataclass(frozen=True)
class Gain:
    """A trained entry against its own untrained start, on held-out success, paired by seed."""

    entry: str
    start: Interval
    final: Interval
    test: stats.PairedTest
    p_holm: float
    beats: bool
    intervals_apart: bool


@dataclass(frozen=True)
class Check:
    """A control that must come out right. `passed` is None if this suite could not test it."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Analysis:
    """Everything that a report says, as numbers and sentences."""

    verdict: str
    notes: list[str]
    standings: list[Standing]
    controls: list[Standing]
    cells: list[Cell]
    starts: list[Cell]
    pairs: dict[Metric, list[Pair]]
    gains: list[Gain]
    checks: list[Check]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return plain(asdict(self))  # type: ignore[no-any-return]


def analyse(results: Results) -> Analysis:
    """All conclusions of a comparison; the same rows give the same numbers, bit for bit."""
    suite = results.suite
    competitors = [entry for entry in suite.entries if entry.control == "none"]
    pairs = {
        metric: stats.compare_all({e.name: results.scores(e.name, metric) for e in competitors}, alpha=ALPHA)
        for metric in METRICS
    }
    standings = _rank(results, competitors, pairs[suite.decision])
    controls = [_standing(results, entry, 0, "") for entry in suite.entries if entry.control != "none"]
    gains = _gains(results, competitors)
    checks = _checks(results)
    return Analysis(
        verdict=verdict.sentence(results, standings, pairs, checks),
        notes=verdict.notes(results, standings, pairs, gains, _greedy_gains(results, competitors)),
        standings=standings,
        controls=controls,
        cells=[_cell(results, [env], entry) for env in suite.envs for entry in suite.entries],
        starts=[_start_cell(results, [env]) for env in suite.envs] + [_start_cell(results, list(suite.envs))],
        pairs=pairs,
        gains=gains,
        checks=checks,
    )


# ------------------------------------------------------------------------------------------------- numbers


def _over_seeds(groups: Sequence[Sequence[float]], bounds: tuple[float, float] = SHARES) -> Interval:
    return stats.t_interval([np.asarray(group, float) for group in groups], bounds=bounds)


def _mean(values: Sequence[float]) -> float:
    kept = [v for v in values if not np.isnan(v)]
    return float(np.mean(kept)) if kept else NAN


def _cell(results: Results, envs: Sequence[EnvSpec], entry: Entry) -> Cell:
    """Numbers of one entry over some environments, each environment with the same weight."""
    groups = [results.of(env.id, entry.name) for env in envs]
    rows = [row for group in groups for row in group]
    done = [row for row in rows if row.done]
    gaps = [[_gap(row, _oracle(results, env)) for row in group] for group, env in zip(groups, envs)]
    return Cell(
        env=envs[0].id if len(envs) == 1 else "",
        entry=entry.name,
        runs=len(rows),
        missing=sum(not row.done and not row.diverged for row in rows),
        diverged=sum(row.diverged for row in rows),
        collapsed=sum(row.final.success < COLLAPSED * row.start.success for row in done),
        final=_over_seeds([[row.metric("final") for row in group] for group in groups]),
        final_greedy=_over_seeds(
            [[row.final_greedy.success for row in group if row.done] for group in groups]
        ),
        last_fifth=_over_seeds([[row.metric("last_fifth") for row in group] for group in groups]),
        area=_over_seeds([[row.metric("area") for row in group] for group in groups]),
        gap_closed=_over_seeds(gaps, bounds=(-1.0, np.inf)),
        final_return=_over_seeds(
            [[row.final.episode_return for row in group if row.done] for group in groups], (-np.inf, np.inf)
        ),
        cpu_seconds=_mean([row.cpu_seconds for row in done]),
        seconds=_mean([row.seconds for row in done]),
        peak_memory_mb=max((row.peak_memory_mb for row in done), default=NAN),
        action_tokens=_mean([float(row.action_tokens) for row in done]),
    )


def _gap(row: Row, oracle: float) -> float:
    score = row.metric("final")
    return NAN if np.isnan(score) else stats.gap_closed(score, row.start.success, oracle)


def _oracle(results: Results, env: EnvSpec) -> float:
    """The measured success of the scripted oracle; 1, the bound of a share, where it was not measured."""
    return results.oracle.get(env.id, 1.0)


def _starts(results: Results, env: EnvSpec) -> list[Row]:
    """One row per seed with an evaluation of the untrained start; they agree between entries (a check)."""
    by_seed: dict[int, Row] = {}
    for row in sorted(results.rows, key=lambda row: row.seed):
        if row.env == env.id and not np.isnan(row.start.success):
            by_seed.setdefault(row.seed, row)
    return list(by_seed.values())


def _start_cell(results: Results, envs: Sequence[EnvSpec]) -> Cell:
    """The untrained start as an entry; it has no training curve, and closes no gap by definition."""
    groups = [_starts(results, env) for env in envs]
    nothing = Interval(NAN, NAN, NAN)
    gaps = [[stats.gap_closed(r.start.success, r.start.success, _oracle(results, env)) for r in rows]
            for rows, env in zip(groups, envs)]  # fmt: skip
    return Cell(
        env=envs[0].id if len(envs) == 1 else "",
        entry=START,
        runs=sum(map(len, groups)),
        missing=0,
        diverged=0,
        collapsed=0,
        final=_over_seeds([[row.start.success for row in rows] for rows in groups]),
        final_greedy=_over_seeds([[row.start_greedy.success for row in rows] for rows in groups]),
        last_fifth=nothing,
        area=nothing,
        gap_closed=_over_seeds(gaps, bounds=(-1.0, np.inf)),
        final_return=_over_seeds(
            [[r.start.episode_return for r in rows] for rows in groups], (-np.inf, np.inf)
        ),
        cpu_seconds=NAN,
        seconds=NAN,
        peak_memory_mb=NAN,
        action_tokens=NAN,
    )


def _standing(results: Results, entry: Entry, rank: int, letters: str) -> Standing:
    scores = results.scores(entry.name, results.suite.decision)
    return Standing(
        rank=rank,
        entry=entry.name,
        letters=letters,
        score=_over_seeds([list(stratum) for stratum in scores]),
        iqm=stats.stratified_bootstrap(scores, "iqm"),
        optimality_gap=stats.optimality_gap(scores),
        overall=_cell(results, results.suite.envs, entry),
    )


def _rank(results: Results, competitors: Sequence[Entry], pairs: Sequence[Pair]) -> list[Standing]:
    means = {
        e.name: stats.stratified_mean(results.scores(e.name, results.suite.decision)) for e in competitors
    }
    order = sorted(competitors, key=lambda entry: -np.nan_to_num(means[entry.name], nan=-np.inf))
    separated = {frozenset((pair.a, pair.b)) for pair in pairs if pair.separated}
    letters = stats.tie_groups([entry.name for entry in order], lambda a, b: frozenset((a, b)) in separated)
    return [_standing(results, entry, i + 1, letters[entry.name]) for i, entry in enumerate(order)]


def _gain_test(
    results: Results, entry: Entry, alternative: stats.Alternative, *, greedy: bool = False
) -> stats.PairedTest:
    """Held-out success after training minus before, paired by run; sampled at temperature 1, or greedy."""
    groups = [results.of(env.id, entry.name) for env in results.suite.envs]
    gains = [[_gain_of(row, greedy) for row in group] for group in groups]
    return stats.paired_t_test(
        stats.paired_differences(gains, [np.zeros(len(group)) for group in gains]), alternative=alternative
    )


def _gain_of(row: Row, greedy: bool) -> float:
    if greedy:
        return (row.final_greedy.success if row.done else NAN) - row.start_greedy.success
    return row.metric("final") - row.start.success


def _greedy_gains(results: Results, competitors: Sequence[Entry]) -> dict[str, tuple[stats.PairedTest, float]]:
    """Test and Holm-corrected p of each competitor's gain by greedy decoding."""
    tests = [_gain_test(results, entry, "two-sided", greedy=True) for entry in competitors]
    adjusted = stats.holm([test.p for test in tests])
    return {entry.name: (test, float(p)) for entry, test, p in zip(competitors, tests, adjusted)}


def _gains(results: Results, competitors: Sequence[Entry]) -> list[Gain]:
    envs = results.suite.envs
    tests = [_gain_test(results, entry, "two-sided") for entry in competitors]
    adjusted = stats.holm([test.p for test in tests])
    start = _start_cell(results, envs).final
    gains = []
    for entry, test, p in zip(competitors, tests, adjusted):
        final = _cell(results, envs, entry).final
        beats = bool(p < ALPHA and test.difference > 0)
        gains.append(Gain(entry.name, start, final, test, float(p), beats, bool(final.low > start.high)))
    return gains


# -------------------------------------------------------------------------------------------------- checks


def _checks(results: Results) -> list[Check]:
    shuffled = [_control_check(results, e) for e in results.suite.entries if e.control != "none"]
    return [
        _complete_check(results),
        _start_check(results),
        _gap_check(results),
        _oracle_check(results),
        *shuffled,
    ]


def _complete_check(results: Results) -> Check:
    lost = [row for row in results.rows if not row.done and not row.diverged]
    total, diverged = len(results.rows), sum(row.diverged for row in results.rows)
    if not lost:
        extra = f"; {diverged} of them diverged" if diverged else ""
        return Check("Every run finished", True, f"All {total} runs came to their end{extra}.")
    names = ", ".join(f"{row.entry} on {row.env} seed {row.seed} ({row.status})" for row in lost[:5])
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    return Check("Every run finished", False, f"{total - len(lost)} of {total}; not: {names}{more}.")


def _start_check(results: Results) -> Check:
    """Common random numbers: on one environment and seed, all entries must have evaluated the same start."""
    name, compared, apart = "All entries share one start", 0, []
    for env in results.suite.envs:
        for seed in range(results.suite.seeds):
            starts = [(r.start, r.start_greedy) for r in results.rows if r.env == env.id and r.seed == seed]
            known = [s[0].success for s in starts if not np.isnan(s[0].success)]
            compared += len(known) > 1
            if known and max(known) - min(known) > 1e-9:
                apart.append(f"{env.short} seed {seed}")
    if apart:
        return Check(name, False, f"The untrained agents differ on {', '.join(apart)}: seeds are not shared.")
    if not compared:
        return Check(name, None, "No environment and seed was started by two entries.")
    return Check(name, True, f"Equal held-out success before training in all {compared} comparisons.")


def _gap_check(results: Results) -> Check:
    """The scale of 'gap closed': the start must be 0 and below the oracle everywhere."""
    name = "The start closes no gap"
    cells = [(env, _start_cell(results, [env])) for env in results.suite.envs]
    known = [(env, cell) for env, cell in cells if cell.runs]
    if not known:
        return Check(name, None, "No evaluation of the untrained start.")
    bad = [env.short for env, cell in known if not abs(cell.gap_closed.estimate) < 1e-12]
    if bad:
        return Check(name, False, f"No gap to close, or a gap that is not 0, on {', '.join(bad)}.")
    return Check(name, True, "Gap closed is 0 at the start, and the oracle is above it, everywhere.")


def _oracle_check(results: Results) -> Check:
    """An environment that its own oracle cannot solve measures something else than agents."""
    name = "The oracle solves every environment"
    measured = [(env, results.oracle[env.id]) for env in results.suite.envs if env.id in results.oracle]
    if not measured:
        return Check(name, None, "The oracle was not measured; gap closed takes it for 1.")
    said = ", ".join(f"{env.short} {success:.3f}" for env, success in measured)
    return Check(name, all(success >= ORACLE_MINIMUM for _, success in measured), f"Success: {said}.")


def _control_check(results: Results, entry: Entry) -> Check:
    """Rewards without information must teach nothing."""
    name = f"{entry.name} does not improve"
    test = _gain_test(results, entry, "greater")
    if np.isnan(test.p):
        return Check(name, None, "One seed or no finished run: not testable.")
    detail = (
        f"Held-out success changed by {test.difference:+.3f} "
        f"(95 % interval {test.low:+.3f} to {test.high:+.3f}; one-sided p = {test.p:.3f})."
    )
    return Check(name, test.p >= ALPHA, detail)

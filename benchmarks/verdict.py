"""Conclusions in words. Every sentence is exact: "ahead of" and "beats" stand only where the test said so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import stats
from benchmarks.stats import Pair
from benchmarks.suites import METRICS, Metric

if TYPE_CHECKING:
    from benchmarks.analysis import Check, Gain, Standing
    from benchmarks.results import Results


def sentence(
    results: Results,
    standings: Sequence[Standing],
    pairs: Mapping[Metric, Sequence[Pair]],
    checks: Sequence[Check],
) -> str:
    """The ranking in a sentence, after a warning if a control came out wrong."""
    failed = [check.name for check in checks if check.passed is False]
    warning = f"Do not trust this ranking yet: a check failed ({'; '.join(failed)}). " if failed else ""
    return warning + _ranking(results, standings, pairs)


def _ranking(
    results: Results, standings: Sequence[Standing], by_metric: Mapping[Metric, Sequence[Pair]]
) -> str:
    pairs = by_metric[results.suite.decision]
    if not standings or np.isnan(standings[0].score.estimate):
        return "No run has finished: nothing to rank."
    best, metric = standings[0], METRICS[results.suite.decision]
    scored = f"{best.score.estimate:.3f} {metric}"
    if len(standings) == 1:
        return f"Only {best.entry} was run: {scored}. A ranking needs two algorithms."
    if all(np.isnan(pair.test.p) for pair in pairs):
        return f"No ranking: too few seeds to test anything. {best.entry} was highest: {scored}."
    behind = [p.b for p in pairs if p.a == best.entry and p.separated]
    others = [standing.entry for standing in standings[1:]]
    tied = [name for name in others if name not in behind]
    behind = [name for name in others if name in behind]
    if not tied:
        interval = f"95 % interval {best.score.low:.3f} to {best.score.high:.3f}"
        held_out = _held_out(results, best.entry, by_metric)
        return f"{best.entry} wins: {scored} ({interval}), ahead of {listed(behind)}.{held_out}"
    ahead = f" It is ahead of {listed(behind)}." if behind else ""
    return (
        f"No single winner: {best.entry} is highest ({scored}), but {size(results)} cannot separate it from "
        f"{listed(tied, 'or')}.{ahead}"
    )


def _held_out(results: Results, best: str, by_metric: Mapping[Metric, Sequence[Pair]]) -> str:
    """Whether conversations that were not trained on confirm the winner; nothing where they decided."""
    if results.suite.decision == "final":
        return ""
    confirmed = [pair.b for pair in by_metric["final"] if pair.a == best and pair.separated]
    return f" Held out, it is ahead of {listed(confirmed)}." if confirmed else " Held out, no lead is confirmed."


def notes(
    results: Results,
    standings: Sequence[Standing],
    pairs: Mapping[Metric, Sequence[Pair]],
    gains: Sequence[Gain],
    greedy: Mapping[str, tuple[stats.PairedTest, float]],
) -> list[str]:
    """What else a reader must know: who is apart, who is not, who beats the start, what was lost."""
    return [
        *_pairs(results, pairs[results.suite.decision]),
        *_gains(gains),
        *_greedy(greedy),
        *_metrics(results, standings, pairs),
        *_losses(standings),
    ]


def _pairs(results: Results, pairs: Sequence[Pair]) -> list[str]:
    tested = [pair for pair in pairs if not np.isnan(pair.test.p)]
    apart = [
        f"{p.a} over {p.b} by {p.test.difference:.3f} ({p_text(p.p_holm)})" for p in tested if p.separated
    ]
    tied = [
        f"{p.a} and {p.b} (difference {p.test.difference:.3f}, {p_text(p.p_holm)}; "
        f"a true difference of {p.detectable:.3f} would be found four times in five)"
        for p in tested
        if not p.separated
    ]
    found = [f"Separated: {'; '.join(apart)}."] if apart else []
    return found + ([f"Cannot separate with {size(results)}: {'; '.join(tied)}."] if tied else [])


def _gains(gains: Sequence[Gain]) -> list[str]:
    tested = [gain for gain in gains if not np.isnan(gain.test.p)]
    if not tested:
        return []
    start = tested[0].start
    at = f"held-out success ({start.estimate:.3f}, {start.low:.3f} to {start.high:.3f})"
    clear = [gain.entry for gain in tested if gain.beats and gain.intervals_apart]
    close = [gain.entry for gain in tested if gain.beats and not gain.intervals_apart]
    unproven = [gain.entry for gain in tested if not gain.beats]
    found = []
    if clear:
        verb = "beats" if len(clear) == 1 else "beat"
        found.append(f"{listed(clear)} {verb} the untrained start's {at}: the intervals do not overlap.")
    if close:
        found.append(f"{listed(close)}: better than the start by the paired test, but the intervals overlap.")
    if unproven:
        found.append(f"{listed(unproven)}: not shown to beat the untrained start's {at}.")
    return found


def _greedy(gains: Mapping[str, tuple[stats.PairedTest, float]]) -> list[str]:
    """Sampling gets better by sharpening alone; greedy decoding only by deciding otherwise."""
    tested = {name: (test, p) for name, (test, p) in gains.items() if not np.isnan(p)}
    if not tested:
        return []
    said = [
        f"{name} {test.difference:+.3f} ({p_text(p)}{'' if p < 0.05 and test.difference > 0 else ', not shown'})"
        for name, (test, p) in tested.items()
    ]
    return [f"Greedy decoding, held-out success against the greedy start: {'; '.join(said)}."]


def _metrics(
    results: Results, standings: Sequence[Standing], pairs: Mapping[Metric, Sequence[Pair]]
) -> list[str]:
    """Does the order depend on the metric? Said for each metric that did not decide."""
    order = [standing.entry for standing in standings]
    found = []
    for metric in METRICS:
        means = {name: stats.stratified_mean(results.scores(name, metric)) for name in order}
        unknown = any(np.isnan(mean) for mean in means.values())
        if metric == results.suite.decision or len(order) < 2 or unknown:
            continue
        other = sorted(order, key=lambda name: -means[name])
        apart = sum(pair.separated for pair in pairs[metric])
        same = "the same order" if other == order else f"the order {' > '.join(other)}"
        found.append(f"By {METRICS[metric]}: {same}, {apart} of {len(pairs[metric])} pairs separated.")
    return found


def _losses(standings: Sequence[Standing]) -> list[str]:
    found = []
    for cell in (standing.overall for standing in standings):
        if cell.diverged:
            found.append(
                f"{cell.entry}: {cell.diverged} of {cell.runs} runs diverged and count as success 0."
            )
        if cell.missing:
            found.append(f"{cell.entry}: {cell.missing} of {cell.runs} runs are missing and left out.")
        if cell.collapsed:
            found.append(f"{cell.entry}: {cell.collapsed} of {cell.runs} runs ended below half their start.")
    return found


def size(results: Results) -> str:
    """`4 seeds on 2 environments`."""
    seeds, envs = results.suite.seeds, len(results.suite.envs)
    return f"{seeds} seed{'s' * (seeds != 1)} on {envs} environment{'s' * (envs != 1)}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def p_number(p: float) -> str:
    """`0.012`, `< 0.001`, or a dash."""
    if np.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_text(p: float) -> str:
    """`p = 0.012`, `p < 0.001`, or `not tested`."""
    if np.isnan(p):
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"

"""Whom does each algorithm praise? Its advantages of every turn against the true ones.

``python -m benchmarks.credit_audit --write docs/benchmarks/credit-audit.md`` has groups of conversations, finds the
true advantage of every turn under the policy that spoke (:mod:`benchmarks.true_credit`: exactly in the solved games,
by forks in the others), and asks every algorithm's own ``credit`` about the same conversations. An algorithm's
advantage of a turn is the mean over the turn's tokens; it is 0 in rows that the algorithm does not train on.

- **Correlation** (Pearson) with the truth over all turns. Noise in an estimated truth would lower it; it is divided out
  by the covariance of two halves of the continuations, whose errors are independent.
- **Sign**: share of the turns whose truth is clearly not 0 in which the advantage has its sign; an advantage of 0
  counts half, as a coin would.
- **Bias**: mean advantage less mean truth, both scaled to a root mean square of 1. An algorithm above 0 praises
  whatever was done. (Scaled by least squares, an advantage that knows nothing would shrink to 0, bias and all.)

Intervals are percentiles of a bootstrap over groups.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.stats import rankdata

import algos
from algos.base import Algorithm, Batch
from algos.maths.advantages import spread_turns, sum_turns
from algos.policies.load import load_policy
from algos.ppo import PPO
from algos.rollout.episodes import collate
from benchmarks import pages, provenance
from benchmarks.command import guarded
from benchmarks.pages import table
from benchmarks.stats import Interval
from benchmarks.suites import CUSTOMER_SERVICE, SLOT_FILLING
from benchmarks.true_credit import GAMES, GROUP_SIZE, Array, Sample, fork_conversations, play_game

FORKED = (CUSTOMER_SERVICE, SLOT_FILLING)
ITERATION = 8  # groups that `credit` sees at once, as in the quick suite
RESAMPLES = 2000
CLEAR = 0.1  # of the truth's root mean square: what is clearly not 0 where the truth is exact
CLEAR_ERRORS = 2.0  # standard errors: what is clearly not 0 where it is estimated

Critic = Literal["none", "exact", "zero"]
CRITICS: dict[Critic, str] = {"none": "", "exact": ", exact V", "zero": ", V = 0"}


class Size(NamedTuple):
    """How much is sampled.

    Attributes:
        groups: Groups of 8 conversations in each game.
        forked: Groups of 8 conversations in each environment that is forked.
        pairs: Pairs of continuations at each turn of these.
    """

    groups: int
    forked: int
    pairs: int


FULL, QUICK = Size(256, 12, 16), Size(32, 4, 4)


@dataclass(frozen=True)
class Contestant:
    """A row of the table.

    Attributes:
        name: What it is called.
        algorithm: Whose ``credit`` is asked.
        critic: What it is told about values: nothing, the true ones, or 0 (as a critic that has not learnt).
    """

    name: str
    algorithm: Algorithm
    critic: Critic = "none"

    @property
    def label(self) -> str:
        """Name and critic."""
        return self.name + CRITICS[self.critic]


def contestants(names: Sequence[str] = ()) -> list[Contestant]:
    """All algorithms, or those named; each one with a critic twice; and two settings that say what could be had.

    ``one-step`` is r + V' - V: what a single step tells whoever knows V. ``grpo, process`` credits a turn with the
    return from it on.
    """
    found = []
    for name in names or algos.names():
        algorithm = algos.make(name)
        critics: tuple[Critic, ...] = ("exact", "zero") if "critic" in algorithm.needs else ("none",)
        found += [Contestant(name, algorithm, critic) for critic in critics]
    if not names:
        one_step = PPO(gamma_turn=1.0, lam=0.0, whiten=False)
        found += [
            Contestant("grpo, process", algos.make("grpo", assignment="process")),
            Contestant("one-step", one_step, "exact"),
        ]
    return found


# Advantages of turns -----------------------------------------------------------------------------------------


def turn_advantages(algorithm: Algorithm, sample: Sample, critic: Critic) -> Array:
    """What the algorithm thinks of every turn, [B,K]; 0 past the last turn and where it does not train.

    Conversations come in iterations of ``ITERATION`` groups, and running baselines pass from one to the next.
    """
    batch = _observed(collate(sample.episodes), sample, critic)
    turns, step = batch.reward.shape[1], ITERATION * GROUP_SIZE
    state: Mapping[str, float] = {}
    parts = []
    for start in range(0, batch.size, step):
        part = dataclasses.replace(batch.rows(torch.arange(start, min(start + step, batch.size))), state=state)
        credit = algorithm.credit(part)
        state = credit.state
        told = credit.advantage if credit.keep is None else credit.advantage * credit.keep[:, None]
        tokens = sum_turns(part.action.to(told.dtype), part.turn, turns)
        parts.append(sum_turns(told, part.turn, turns) / tokens.clamp(min=1))
    return torch.cat(parts).double().numpy()


def _observed(batch: Batch, sample: Sample, critic: Critic) -> Batch:
    """The batch with everything that an algorithm may need; the reference and the old policy are the policy itself."""
    values = np.zeros(batch.reward.shape) if sample.value is None or critic != "exact" else sample.value
    return dataclasses.replace(
        batch,
        old_logp=batch.behaviour_logp,
        ref_logp=batch.behaviour_logp,
        old_entropy=torch.zeros_like(batch.behaviour_logp),
        value=spread_turns(torch.from_numpy(values).float(), batch.turn),
        bootstrap=torch.zeros(batch.size),
        greedy_return=torch.tensor([sample.greedy[int(group)] for group in batch.group], dtype=torch.float32),
    )


# Scores ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Truth:
    """True advantages of turns that are laid end to end; see :class:`~benchmarks.true_credit.Sample`."""

    first: Array  # [N]
    second: Array  # [N]
    clear: Array  # [N] 1 where the truth is clearly not 0
    group: np.ndarray  # [N] index of the group, from 0

    @classmethod
    def of(cls, sample: Sample) -> tuple[Truth, np.ndarray]:
        """The truth of the turns that there are, and where they stand, [B,K] bool."""
        lengths = np.array([len(episode.rewards) for episode in sample.episodes])
        real = np.arange(sample.first.shape[1]) < lengths[:, None]
        first, second, mean, error = (x[real] for x in (sample.first, sample.second, sample.truth, sample.error))
        size = np.sqrt(np.mean(mean**2))
        clear = np.abs(mean) > np.where(error > 0, CLEAR_ERRORS * error, CLEAR * size)
        row = np.nonzero(real)[0]
        return cls(first, second, clear.astype(float), row // GROUP_SIZE), real

    @property
    def mean(self) -> Array:
        """[N] the best estimate."""
        return (self.first + self.second) / 2


@dataclass(frozen=True, eq=False)
class Score:
    """How well advantages match the truth.

    Attributes:
        correlation: Pearson's, with its interval; NaN where the advantages are all equal.
        spearman: Of ranks; noise in the truth is not divided out.
        sign: Share of right signs.
        bias: Mean advantage less mean truth, both of size 1.
        live: Share of the turns whose advantage is not 0.
        draws: Statistic -> its bootstrap values [RESAMPLES].
    """

    correlation: Interval
    spearman: float
    sign: Interval
    bias: Interval
    live: float
    draws: Mapping[str, Array]


def score(x: Array, truth: Truth, *, seed: int = 0) -> Score:
    """Scores advantages [N] against the truth.

    All three statistics are functions of sums over turns, so that the bootstrap only weighs the groups' sums.
    """
    size = np.sqrt(np.mean(x**2))
    x = np.where(np.abs(x) > 1e-6 * size, x / max(size, 1e-300), 0.0)  # rounding is no praise; scale is no matter
    right = truth.clear * np.where(x == 0, 0.5, np.sign(x) == np.sign(truth.mean))
    columns = np.stack(
        [np.ones_like(x), x, x**2, truth.first, truth.second, truth.first * truth.second, x * truth.mean,
         truth.clear, right]
    )  # fmt: skip
    groups = int(truth.group.max()) + 1
    sums = np.stack([np.bincount(truth.group, each, groups) for each in columns], 1)  # [groups, sums]
    weights = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    estimates, draws = _statistics(sums.sum(0)), _statistics(np.asarray(weights, float) @ sums)
    found = {name: _interval(float(estimates[name]), draws[name]) for name in draws}
    varies = np.isfinite(estimates["correlation"])
    ranks = np.corrcoef(rankdata(x), rankdata(truth.mean))[0, 1] if varies else float("nan")
    return Score(**found, spearman=float(ranks), live=float(np.mean(x != 0)), draws=draws)


def _statistics(sums: Array) -> dict[str, Array]:
    """Correlation, sign accuracy and bias from sums [..., 9] over turns."""
    n, x, xx, first, second, halves, xt, clear, right = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        truth = (first + second) / (2 * n)
        var_x, var_truth = xx / n - (x / n) ** 2, halves / n - first * second / n**2
        var_x = np.where(var_x > 1e-9 * xx / n, var_x, np.nan)  # advantages that are all equal say nothing
        var_truth = np.where(var_truth > 0, var_truth, np.nan)
        covariance = xt / n - x / n * truth
        return {
            "correlation": covariance / np.sqrt(var_x * var_truth),
            "sign": right / np.where(clear > 0, clear, np.nan),
            "bias": x / n / np.sqrt(np.where(xx > 0, xx, np.nan) / n) - truth / np.sqrt(np.maximum(halves, 0) / n),
        }


def _interval(estimate: float, draws: Array) -> Interval:
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(estimate) or not len(finite):
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def mean_score(scores: Sequence[Score], statistic: str) -> Interval:
    """The mean over environments, each of which weighs the same; its groups are drawn on their own."""
    if not scores:
        return Interval(float("nan"), float("nan"), float("nan"))
    estimate = float(np.mean([getattr(each, statistic).estimate for each in scores]))
    return _interval(estimate, np.mean([each.draws[statistic] for each in scores], axis=0))


# The audit ---------------------------------------------------------------------------------------------------

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Audit:
    """What came out.

    Attributes:
        truths: Environment -> number of turns, size of the truth (root mean square), its mean with standard error,
            and its reliability (share of the variance that is no noise).
        scores: Environment -> label of the contestant -> score.
        settings: Environment -> ``sparse``, ``dense`` or ``forked``.
    """

    truths: dict[str, dict[str, float]]
    scores: dict[str, dict[str, Score]]
    settings: dict[str, str]

    def row(self, label: str, settings: Sequence[str] = ("sparse", "dense")) -> list[Score]:
        """Scores of a contestant in the environments of some settings, the games by default: all play these."""
        return [scores[label] for env, scores in self.scores.items() if self.settings[env] in settings]

    @property
    def labels(self) -> list[str]:
        """Contestants, those whose advantages are closest to the truth first."""
        found = dict.fromkeys(label for scores in self.scores.values() for label in scores)
        means = {label: mean_score(self.row(label), "correlation").estimate for label in found}
        return sorted(found, key=lambda label: means[label] if np.isfinite(means[label]) else -2.0, reverse=True)


def audit(rows: Sequence[Contestant], size: Size, *, model: str, seed: int, tick: Tick | None = None) -> Audit:
    """Samples conversations, finds their truth and scores all contestants.

    Args:
        rows: Whose advantages are looked at.
        size: How much is sampled.
        model: Who speaks in the environments that are forked.
        seed: Root of all seeds.
        tick: Called with (what, done, total).
    """
    found = Audit({}, {}, {})

    def add(env: str, setting: str, sample: Sample) -> None:
        truth, real = Truth.of(sample)
        found.truths[env], found.settings[env], scores = _describe(truth), setting, {}
        for at, row in enumerate(rows, 1):
            if row.critic != "exact" or sample.value is not None:
                told = turn_advantages(row.algorithm, sample, row.critic)[real]
                scores[row.label] = score(told, truth, seed=seed)
            if tick is not None:
                tick(f"credit, {env}", at, len(rows))
        found.scores[env] = scores

    for name in GAMES:
        sample = play_game(name, size.groups, seed)
        add(f"{name}, sparse", "sparse", sample.sparse())
        add(f"{name}, dense", "dense", sample)
    if not size.forked:
        return found
    policy = load_policy(model)
    for spec in FORKED:
        forks = partial(tick, f"forks, {spec.short}") if tick is not None else None
        add(spec.short, "forked", fork_conversations(policy, spec, size.forked, size.pairs, seed, forks))
    return found


def _describe(truth: Truth) -> dict[str, float]:
    mean = float(truth.mean.mean())
    spread = np.sqrt(np.sum(np.bincount(truth.group, truth.mean - mean) ** 2)) / len(truth.mean)
    halves = float(np.corrcoef(truth.first, truth.second)[0, 1])
    return {
        "turns": len(truth.mean),
        "size": max(float(np.mean(truth.first * truth.second)), 0.0) ** 0.5,
        "mean": mean,
        "mean_error": float(spread),
        "reliability": 2 * halves / (1 + halves),  # Spearman and Brown: of the mean of both halves
        "clear": float(truth.clear.mean()),
    }


# The page ----------------------------------------------------------------------------------------------------


def number(x: float) -> str:
    """Two digits, a dash where there is no number."""
    return f"{x:.2f}" if np.isfinite(x) else "–"


def interval(x: Interval) -> str:
    """``0.62 (0.59 to 0.65)``."""
    return f"{x.estimate:.2f} ({x.low:.2f} to {x.high:.2f})" if np.isfinite(x.low) else number(x.estimate)


SETTINGS = {"sparse": "games, paid at the end", "dense": "games, paid at once"}


def summary(found: Audit) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the one table; sign, bias and live are those of the games."""
    forked = [env for env, setting in found.settings.items() if setting == "forked"]
    header = ["algorithm", *(f"r: {name}" for name in SETTINGS.values()), *(f"r: {env}" for env in forked)]
    rows = []
    for label in found.labels:
        means = [interval(mean_score(found.row(label, [setting]), "correlation")) for setting in SETTINGS]
        own = [interval(found.scores[env][label].correlation) if label in found.scores[env] else "" for env in forked]
        sign, bias = (mean_score(found.row(label), statistic).estimate for statistic in ("sign", "bias"))
        live = float(np.mean([each.live for each in found.row(label)]))
        rows.append([label, *means, *own, number(sign), number(bias), number(live)])
    return [*header, "sign", "bias", "live"], rows


def details(found: Audit, env: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one environment."""
    rows = [
        [label, interval(s.correlation), number(s.spearman), interval(s.sign), interval(s.bias), number(s.live)]
        for label in found.labels
        if (s := found.scores[env].get(label)) is not None
    ]
    return ["algorithm", "r", "Spearman", "sign", "bias", "live"], rows


def render(found: Audit, source: Mapping[str, Any], figure: str | None) -> str:
    """Figures of the page as Markdown."""
    truths = [
        [env, f"{t['turns']:,.0f}", f"{t['size']:.3f}", f"{t['mean']:+.4f} ± {1.96 * t['mean_error']:.4f}",
         number(t["reliability"]), number(t["clear"])]
        for env, t in found.truths.items()
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"{pages.source(source)}. `{source['command']}`.",
            table(*summary(found), numbers=True),
            *([f"![Correlation with the true advantages]({figure})"] if figure else []),
            "**The truth.** Its mean is 0 under the policy that spoke, whatever the environment: a check.",
            table(["environment", "turns", "size", "mean", "reliability", "clearly not 0"], truths, numbers=True),
            *(f"**{env}**\n\n{table(*details(found, env), numbers=True)}" for env in found.scores),
        ]
    )


def plain(found: Audit) -> dict[str, Any]:
    """The figures as JSON; NaN becomes null."""

    def clean(x: float) -> float | None:
        return round(float(x), 6) if np.isfinite(x) else None

    def of(each: Score) -> dict[str, Any]:
        intervals = {name: [clean(x) for x in getattr(each, name)] for name in ("correlation", "sign", "bias")}
        return {**intervals, "spearman": clean(each.spearman), "live": clean(each.live)}

    return {
        "truth": {env: {name: clean(x) for name, x in truth.items()} for env, truth in found.truths.items()},
        "scores": {env: {label: of(each) for label, each in scores.items()} for env, scores in found.scores.items()},
    }


def draw(found: Audit, path: Path) -> None:
    """Correlations as a heat map, contestants against environments."""
    labels, envs = found.labels, list(found.scores)
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    values = np.array(
        [
            [(found.scores[env][label].correlation if label in found.scores[env] else nothing).estimate for env in envs]
            for label in labels
        ]
    )
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "convgym", "font.size": 8.0}):
        figure = Figure(figsize=(2.6 + 0.62 * len(envs), 1.5 + 0.2 * len(labels)), layout="constrained")
        axes = figure.subplots()
        axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        axes.set_xticks(range(len(envs)), envs, rotation=40, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for (y, x), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.65 else "black"
            axes.text(x, y, number(float(value)), ha="center", va="center", color=colour, fontsize=7)
        figure.savefig(path, metadata={"Date": None})


def write(page: Path, found: Audit, source: Mapping[str, Any]) -> None:
    """Replaces the figures of a page; the JSON and the drawing go beside it.

    Raises:
        ConfigError: If the page has no markers.
    """
    drawing = page.with_suffix(".svg")
    pages.put(page, render(found, source, drawing.name))
    page.with_suffix(".json").write_text(json.dumps({**source, **plain(found)}, indent=1) + "\n", "utf-8")
    draw(found, drawing)


@dataclass(frozen=True)
class Options:
    """How well each algorithm's advantages match the true ones."""

    write: Path | None = None
    """Page whose figures are replaced; the JSON and the drawing go beside it."""
    quick: bool = False
    """Few conversations and continuations, to see that it works: with 4 groups no interval can be trusted."""
    games_only: bool = False
    """Leave out the environments that are forked."""
    algorithms: tuple[str, ...] = ()
    """Algorithms to look at; all of them if empty."""
    model: str = "nano"
    """Who speaks in the environments that are forked."""
    seed: int = 0
    """Root of all seeds."""


def main() -> None:
    """Command line."""
    options, console = tyro.cli(Options, description=__doc__), Console()
    torch.set_num_threads(1)
    command = "python -m benchmarks.credit_audit" + (" --quick" if options.quick else "")
    source, size = provenance.describe(command), QUICK if options.quick else FULL
    size = size._replace(forked=0) if options.games_only else size
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("games")

        def tick(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        found = audit(contestants(options.algorithms), size, model=options.model, seed=options.seed, tick=tick)
    header, rows = summary(found)
    shown = Table(title="correlation (r) of advantages with the true ones, per turn; 95 % intervals over groups")
    for at, name in enumerate(header):
        shown.add_column(name, justify="left" if at == 0 else "right")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    if options.write is not None:
        write(options.write, found, {**source, "size": size._asdict(), "model": options.model, "seed": options.seed})


if __name__ == "__main__":
    sys.exit(guarded(main))

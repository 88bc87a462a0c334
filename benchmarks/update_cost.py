"""What an update costs: ``python -m benchmarks.update_cost --write docs/benchmarks/update-cost.md``.

Every algorithm of ``algos.names()`` updates the same policy on the same conversations, always from the same weights,
taking turns with ``grpo``. Figures are ratios of CPU time within a few seconds of each other, since times of a shared
machine say more about the neighbours:

- **defaults**: the algorithm's own epochs and minibatches, over ``grpo``.
- **one step**: the same with ``epochs=1, minibatches=1``.
- **equal work**: one step, over a ``grpo`` with the same needs (a critic, if it has one), on the conversations of
  groups whose returns differ, so that nothing is skipped. What is left is how well the algorithm is written.
- **mathematics**: share of the update that goes into ``credit``, ``loss_weights``, ``loss`` and the backward pass of
  the loss. It is taken inside the measured updates: the clock of a micro-batch starts when the learner calls ``loss``,
  and stops when the gradient has come back to the scores, where the model's own backward pass begins.

Medians over rounds, with the smallest and the largest round as interval. A round has conversations of its own.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

import algos
from algos.base import Algorithm, Batch, Credit, Minibatch, Scores
from algos.learner import learner as learning
from algos.learner.checkpoint import Checkpoint
from algos.learner.learner import Learner, LearnerConfig
from algos.policies.load import Policy, load_policy, make_policy
from algos.rollout.collect import Collector, group_requests
from algos.rollout.episodes import TokenEpisode
from algos.training.envs import make_envs
from benchmarks import provenance
from benchmarks.command import guarded
from benchmarks.pages import put, table
from benchmarks.suites import CUSTOMER_SERVICE, EnvSpec
from convgym.errors import ConfigError, UnknownNameError

REFERENCE = "grpo"
GROUP_SIZE = 8
BLOCK = 4  # updates between two of the reference
SLOWER, MATHEMATICS = 1.10, 0.05  # what is demanded: at most this ratio at equal work, less than this share
MORE_ROWS = 1.02  # from this ratio of trained conversations on, they are named as a reason


# One update ------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Conversations of one iteration.

    Attributes:
        episodes: What the policy sampled.
        greedy: Group -> return of its greedy episode.
        seconds: CPU time of sampling them.
        greedy_seconds: CPU time of the greedy episodes.
    """

    episodes: Sequence[TokenEpisode]
    greedy: Mapping[int, float]
    seconds: float = float("nan")
    greedy_seconds: float = float("nan")

    def teaching(self) -> Sample:
        """The conversations of groups whose returns differ: nobody's advantage is 0 for want of a difference.

        Raises:
            ConfigError: if there is no such group.
        """
        returns: dict[int, set[float]] = {}
        for episode in self.episodes:
            returns.setdefault(episode.group, set()).add(episode.episode_return)
        kept = [episode for episode in self.episodes if len(returns[episode.group]) > 1]
        if not kept:
            raise ConfigError("Expected a group whose returns differ, found none; sample more episodes.")
        return self._replace(episodes=kept)


@dataclass
class Cost:
    """CPU seconds of one update.

    Attributes:
        update: All of it.
        credit: Advantages, and what else ``credit`` does.
        weights: The one normaliser, ``loss_weights``.
        loss: From each call of ``loss`` until its gradient has come back to the scores.
        rows: Conversations that passed the model with gradient, all epochs together.
    """

    update: float = 0.0
    credit: float = 0.0
    weights: float = 0.0
    loss: float = 0.0
    rows: int = 0

    @property
    def mathematics(self) -> float:
        """What is the algorithm's own."""
        return self.credit + self.weights + self.loss


def watched_copy(algorithm: Algorithm, cost: Cost) -> Algorithm:
    """The same algorithm, whose two functions add what they cost to ``cost``."""

    def credit(batch: Batch) -> Credit:
        start = time.process_time()
        found = algorithm.credit(batch)
        cost.credit += time.process_time() - start
        return found

    def loss(scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        mark = time.process_time()

        def arrived(_: Tensor) -> None:
            nonlocal mark
            now = time.process_time()
            cost.loss, mark = cost.loss + now - mark, now

        # Autograd walks back the latest operations first: when the gradient has come to the last of the scores, all of
        # the loss is behind it, and all of the model before it.
        for tensor in scores:
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(arrived)  # type: ignore[no-untyped-call]
        cost.rows += batch.size
        return algorithm.loss(scores, batch)

    seen = copy.copy(algorithm)
    vars(seen).update(credit=credit, loss=loss)  # it is frozen, and of its own class still
    return seen


@contextlib.contextmanager
def watched(learner: Learner) -> Iterator[Cost]:
    """Takes the times of the updates inside."""
    cost, algorithm = Cost(), learner.algorithm
    weigh: Callable[..., Tensor] = learning.loss_weights  # type: ignore[attr-defined]

    def loss_weights(*given: Any) -> Tensor:
        start = time.process_time()
        weights = weigh(*given)
        cost.weights += time.process_time() - start
        return weights

    learner.algorithm = watched_copy(algorithm, cost)
    try:
        with mock.patch.object(learning, "loss_weights", loss_weights):
            yield cost
    finally:
        learner.algorithm = algorithm


class Contestant:
    """An algorithm with a learner of its own that begins every update from the same weights.

    Args:
        policy: Copied, not trained.
        algorithm: What to optimise.
    """

    def __init__(self, policy: Policy, algorithm: Algorithm) -> None:
        own = make_policy(copy.deepcopy(policy.model), policy.tokenizer, name=policy.name)
        self.learner = Learner(own, algorithm, LearnerConfig(device="cpu"))
        tensors, state = copy.deepcopy(self.learner.snapshot())
        self._start = Checkpoint(Path("start"), 0, tensors, {"learner": state})

    def update(self, sample: Sample) -> Cost:
        """What one update costs; afterwards all is as it was before."""
        with watched(self.learner) as cost:
            start = time.process_time()
            self.learner.update(sample.episodes, sample.greedy)
            cost.update = time.process_time() - start
        self.learner.restore(self._start)
        return cost


# Heats -----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One update beside the reference's."""

    cost: Cost
    ratio: float  # of the CPU time of the whole update
    reference: Cost


class Heat(NamedTuple):
    """Algorithms that are compared with one reference.

    Attributes:
        mode: ``published``, ``one_step`` or ``equal``.
        reference: Divides.
        entries: Name -> algorithm.
    """

    mode: str
    reference: Algorithm
    entries: Mapping[str, Algorithm]


def heats(names: Sequence[str]) -> list[Heat]:
    """Everything that a round measures."""
    grpo, zoo = algos.make(REFERENCE), {name: algos.make(name) for name in names}
    several = {name: one_step(a) for name, a in zoo.items() if one_step(a) != a}
    made = [Heat("published", grpo, zoo), Heat("one_step", grpo, several)]
    alike = sorted(zoo, key=lambda name: ("critic" in zoo[name].needs, name))
    for _, members in groupby(alike, lambda name: (zoo[name].kl, "critic" in zoo[name].needs)):
        entries = {name: one_step(zoo[name]) for name in members}
        made.append(Heat("equal", reference_like(next(iter(entries.values()))), entries))
    return [heat for heat in made if heat.entries]


def one_step(algorithm: Algorithm) -> Algorithm:
    """The algorithm with one optimiser step an update."""
    return dataclasses.replace(algorithm, epochs=1, minibatches=1)


def reference_like(algorithm: Algorithm) -> Algorithm:
    """``grpo`` with what the algorithm needs: a critic, a reference policy."""
    critic = {"assignment": "gae"} if "critic" in algorithm.needs else {}
    return algos.make(REFERENCE, kl=algorithm.kl, **critic)


def race(
    reference: Contestant, contestants: Mapping[str, Contestant], sample: Sample, block: int = BLOCK
) -> dict[str, Run]:
    """One update of each; the reference runs before and after every ``block`` of them, and its mean divides."""
    names, runs = list(contestants), dict[str, Run]()
    before = reference.update(sample)
    for start in range(0, len(names), block):
        costs = {name: contestants[name].update(sample) for name in names[start : start + block]}
        after = reference.update(sample)
        usual = (before.update + after.update) / 2
        runs |= {name: Run(cost, cost.update / usual, after) for name, cost in costs.items()}
        before = after
    return runs


def measure(policy: Policy, samples: Sequence[Sample], names: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Measures algorithms, one round for each sample.

    Args:
        policy: Whose weights every update starts from; it must have sampled the conversations.
        samples: Conversations of a round each.
        names: Algorithms.
        seed: Of the order in a round.

    Returns:
        A row for each algorithm, JSON-plain; see :func:`summary`.
    """
    made: dict[Algorithm, Contestant] = {}

    def contestant(algorithm: Algorithm) -> Contestant:
        if algorithm not in made:
            made[algorithm] = Contestant(policy, algorithm)
        return made[algorithm]

    order, plan = np.random.default_rng(seed), heats(names)
    for heat in plan:  # not counted: whatever happens only once in a process
        contestant(heat.reference).update(samples[0])
    runs: dict[tuple[str, str], list[Run]] = {}
    for sample in samples:
        for heat in plan:
            entries = {name: contestant(heat.entries[name]) for name in order.permutation(list(heat.entries)).tolist()}
            given = sample.teaching() if heat.mode == "equal" else sample
            for name, run in race(contestant(heat.reference), entries, given).items():
                runs.setdefault((heat.mode, name), []).append(run)
    return [summary(name, {mode: r for (mode, n), r in runs.items() if n == name}) for name in names]


def collect(policy: Policy, spec: EnvSpec, rounds: int, episodes: int) -> list[Sample]:
    """Conversations of as many iterations as there are rounds, each with the greedy ones of its groups."""
    collector, groups = Collector(make_envs(spec.id, episodes, spec.kwargs), policy), episodes // GROUP_SIZE
    samples = []
    for first in range(0, rounds * groups, groups):
        start = time.process_time()
        made = collector.collect(group_requests(0, first, groups, GROUP_SIZE)).episodes
        middle = time.process_time()
        greedy = collector.collect(group_requests(0, first, groups, 1), greedy=True).episodes
        end = time.process_time()
        returns = {episode.group: episode.episode_return for episode in greedy}
        samples.append(Sample(made, returns, middle - start, end - middle))
    return samples


# What it says ----------------------------------------------------------------------------------------------


def summary(name: str, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """A row: ratios and shares with their intervals, rows an epoch, and what the algorithm does more than ``grpo``.

    Args:
        name: The algorithm.
        runs: Mode -> rounds. Without ``one_step`` the algorithm has but one step as published.
    """
    algorithm, published = algos.make(name), runs["published"]
    rows = float(np.mean([run.cost.rows / algorithm.epochs for run in published]))
    usual = float(np.mean([run.reference.rows for run in published]))
    every = [run.cost for rounds in runs.values() for run in rounds]
    return {
        "algorithm": name,
        "needs": sorted(algorithm.needs),
        "epochs": algorithm.epochs,
        "minibatches": algorithm.minibatches,
        "rows": rows,
        "rows_reference": usual,
        "rows_equal": float(np.mean([run.cost.rows for run in runs["equal"]])),
        "rows_equal_reference": float(np.mean([run.reference.rows for run in runs["equal"]])),
        "update_cpu_seconds": float(np.median([run.cost.update for run in published])),
        "reference_cpu_seconds": float(np.median([run.reference.update for run in published])),
        "published": interval([run.ratio for run in published]),
        "one_step": interval([run.ratio for run in runs.get("one_step", published)]),
        "equal": interval([run.ratio for run in runs["equal"]]),
        "mathematics": interval([run.cost.mathematics / run.cost.update for run in published]),
        "mathematics_equal": interval([run.cost.mathematics / run.cost.update for run in runs["equal"]]),
        "credit": float(np.median([run.cost.credit / run.cost.update for run in published])),
        "weights": float(np.median([run.cost.weights / run.cost.update for run in published])),
        "loss": float(np.median([run.cost.loss / run.cost.update for run in published])),
        "mathematics_worst": max(cost.mathematics / cost.update for cost in every),
        "reasons": reasons(algorithm, rows, usual),
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest and largest. Of n rounds they hold the true median with probability 1 - 2^(1-n)."""
    return {
        "median": float(np.median(values)), "low": min(values), "high": max(values), "rounds": list(values)
    }  # fmt: skip


def reasons(algorithm: Algorithm, rows: float, usual: float) -> list[str]:
    """What an algorithm does in an update that ``grpo`` does not.

    Args:
        algorithm: As published.
        rows: Conversations it trained on, an epoch.
        usual: Conversations that ``grpo`` trained on.
    """
    steps, found = algorithm.epochs * algorithm.minibatches, []
    if algorithm.epochs > 1:
        found.append(f"{algorithm.epochs} passes over the conversations, in {steps} optimiser steps")
    elif steps > 1:
        found.append(f"{steps} optimiser steps")
    if "critic" in algorithm.needs:
        found.append("a critic: a pass of the model before the first step for the values, and its own loss")
    if "reference" in algorithm.needs:
        found.append("a pass of the reference policy")
    if "entropy" in algorithm.needs:
        found.append("a pass of the model before the first step for the entropies")
    if rows > MORE_ROWS * usual:
        found.append(f"trains on {rows:.0f} conversations, `grpo` on the {usual:.0f} whose groups have a difference")
    return found


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The two demands, met or not, in sentences."""
    dear = max(rows, key=lambda row: row["mathematics"]["median"])
    slow = max(rows, key=lambda row: row["equal"]["median"])
    bare = [f"`{r['algorithm']}`" for r in rows if r["published"]["median"] > SLOWER and not r["reasons"]]
    cheap = "met" if dear["mathematics"]["median"] < MATHEMATICS else "not met"
    quick = "met" if slow["equal"]["median"] <= SLOWER and not bare else "not met"
    return [
        f"Advantages and loss mathematics below {MATHEMATICS:.0%} of an update: **{cheap}**. The most is "
        f"{percent(dear['mathematics'])}, by `{dear['algorithm']}`; the most in any single update is "
        f"{100 * max(row['mathematics_worst'] for row in rows):.1f} %.",
        f"Nobody more than {SLOWER - 1:.0%} slower than `{REFERENCE}` without more work: **{quick}**. The slowest at "
        f"equal work is `{slow['algorithm']}` with {ratio(slow['equal'])}. Slower at its defaults, and no reason found "
        f"in its data: {', '.join(bare) or 'none'}.",
    ]


def ratio(found: Mapping[str, Any]) -> str:
    """``1.05 [0.98, 1.09]``."""
    return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def percent(found: Mapping[str, Any]) -> str:
    """``1.2 % [1.1, 1.4]``."""
    return f"{100 * found['median']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    return [
        row["algorithm"], f"{row['epochs']} x {row['minibatches']}", f"{row['rows']:.0f}", ratio(row["published"]),
        ratio(row["one_step"]), ratio(row["equal"]), percent(row["mathematics"]),
    ]  # fmt: skip


def why_more(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each reason, with the algorithms whose updates cost more and that have it."""
    who: dict[str, list[str]] = {}
    for row in by_cost(rows):
        for reason in row["reasons"] if row["published"]["median"] > SLOWER else ():
            who.setdefault(reason, []).append(f"`{row['algorithm']}`")
    return [f"{reason}: {', '.join(names)}" for reason, names in who.items()]


HEADER = ("algorithm", "epochs x minibatches", "rows", "defaults", "one step", "equal work", "mathematics")


def render(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    machine, versions, rows = found["machine"], found["versions"], found["rows"]
    cover = 1 - 2.0 ** (1 - found["rounds"])
    return "\n\n".join(
        (
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load_at_start']} at the start; Python "
            f"{versions['python']}, torch {versions['torch']}; commit {found['commit'].get('id', 'none')[:10]}"
            f"{' and changes' if found['commit'].get('changed') else ''}; {found['started']}. One thread, CPU time. "
            f"{found['rounds']} rounds of {found['episodes']} conversations of `nano` on {found['env']}; intervals "
            f"span all rounds, and hold the true median with {cover:.0%}. An update of `{REFERENCE}` takes "
            f"{found['reference_cpu_seconds']:.2f} CPU seconds. `{found['command']}`.",
            "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(verdicts(rows), 1)),
            table(HEADER, [cells(row) for row in by_cost(rows)], numbers=True),
            f"**What those above {SLOWER:.2f} do more**, at their defaults:",
            "\n".join(f"- {line}" for line in why_more(rows)) or "- nobody is above",
            f"`remax` needs one greedy episode for each scenario, which belongs to the rollout: "
            f"{found['greedy_of_rollout']:.0%} of the CPU time of the sampled ones.",
        )
    )


def by_cost(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The dearest first."""
    return sorted(rows, key=lambda row: -row["published"]["median"])


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the table and the verdicts."""
    shown = Table(*HEADER, title=f"CPU time of an update, {REFERENCE} = 1")
    for row in by_cost(rows):
        shown.add_row(*map(escape, cells(row)))
    console.print(shown)
    for text in (*why_more(rows), *verdicts(rows)):
        console.print(escape(text.replace("**", "")))


def write(page: Path, found: Mapping[str, Any]) -> None:
    """Puts the figures between the markers of a page, and the JSON beside it.

    Raises:
        ConfigError: if the page has no markers.
    """
    put(page, render(found))
    page.with_suffix(".json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")


# The command -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Measure what an update of each algorithm costs, relative to grpo."""

    write: Path | None = None
    """Page whose figures are replaced; the JSON goes beside it."""
    rounds: int = 5
    """Rounds, each with conversations of its own; a round takes about a minute of one core."""
    episodes: int = 64
    """Conversations an update."""
    algorithms: tuple[str, ...] = ()
    """Only these (default: all)."""

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        if self.rounds < 1:
            raise ConfigError(f"--rounds: expected at least 1, got {self.rounds}.")
        if self.episodes < GROUP_SIZE or self.episodes % GROUP_SIZE:
            raise ConfigError(f"--episodes: expected a multiple of {GROUP_SIZE}, got {self.episodes}.")
        unknown = sorted(set(self.algorithms) - set(algos.names()))
        if unknown:
            raise UnknownNameError.of("algorithm", unknown[0], algos.names())


def audit(options: Options, command: str) -> dict[str, Any]:
    """All figures, JSON-plain."""
    torch.set_num_threads(1)
    here, policy = provenance.describe(command), load_policy("nano")
    samples = collect(policy, CUSTOMER_SERVICE, options.rounds, options.episodes)
    rows = measure(policy, samples, options.algorithms or algos.names())
    return {
        **here,
        "env": CUSTOMER_SERVICE.short,
        "rounds": options.rounds,
        "episodes": options.episodes,
        "group_size": GROUP_SIZE,
        "greedy_of_rollout": float(np.median([s.greedy_seconds / s.seconds for s in samples])),
        "reference_cpu_seconds": float(np.median([row["reference_cpu_seconds"] for row in rows])),
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=given, prog="python -m benchmarks.update_cost")
    found = audit(options, shlex.join(["python", "-m", "benchmarks.update_cost", *given]))
    show(found["rows"], Console())
    if options.write is not None:
        write(options.write, found)


if __name__ == "__main__":
    sys.exit(guarded(main))

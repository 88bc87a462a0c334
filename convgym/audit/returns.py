"""What agents are paid: all to the oracle, nothing to the cheats, and never more than there is.

A figure is the mean return as a share of the mean best possible one. In the *worst* of the levels that were
played, it must not exceed the scenario's ``ceiling``. Where a cheat is right in one class of templates by design
(always to refuse, always to comply, a coin between the two), ``by_class`` says so, and the figure is what it gets
beyond chance over the classes. An exploiter that is right in one of many outcomes may state a ceiling of its own,
and has to say why.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from convgym import agents
from convgym.audit.episodes import Episode, Subject, play
from convgym.audit.report import EPS, Finding, Share, share
from convgym.core import SPLITS, ConversationEnv

__all__ = ["cheats", "idle", "paid", "played_well", "solvable"]

ENOUGH = 0.95  # share of the best possible return that an oracle has to reach
TRIES = 5  # wordings with which an oracle may try a seed
SHOWN = 5  # seeds that a finding names


def solvable(subject: Subject) -> Iterator[Finding]:
    """Every seed, over all splits and levels, is solved by an oracle.

    Where the best return is an expectation over luck, as in the micro environments, a single seed proves
    nothing; there the oracle's mean is looked at, see :func:`played_well`.
    """
    unsolved, tried = [], 0
    for level in subject.budget.levels:
        env = subject.env(difficulty=level)
        oracles = [subject.agent("oracle", env, seed) for seed in range(TRIES)]
        for seed in subject.seeds(level, subject.budget.episodes):
            split = SPLITS[seed % len(SPLITS)]
            tried += 1
            if not any(_solved(play(env, oracle, seed, {"split": split}), env) for oracle in oracles):
                unsolved.append(f"{seed} (difficulty {level}, {split})")
        if env.task.exact is not None:
            yield Finding("solvable", True, "the best return is an expectation over luck: see the oracle's mean")
            return
    detail = f"{tried} seeds, {len(unsolved)} unsolved"
    yield Finding(
        "solvable", not unsolved, f"{detail}: {', '.join(unsolved[:SHOWN])}" if unsolved else detail,
        figure=1 - len(unsolved) / tried, limit=1.0,
    )  # fmt: skip


def _solved(episode: Episode, env: ConversationEnv) -> bool:
    return episode.info["success"] or episode.total >= ENOUGH * episode.best


def played_well(subject: Subject) -> Iterator[Finding]:
    """The oracle gets what there is; the greedy script, which reads only text, does not get more."""
    oracle, script = (_by_level(subject, name) for name in ("oracle", "greedy"))
    worst = min(oracle.values(), key=lambda found: found.figure)
    # Where luck decides, an optimal agent's mean may fall short of its expectation: then 1 is in the interval.
    yield _finding("oracle", worst.figure >= ENOUGH or worst.high >= 1, oracle, worst, ENOUGH)
    best = max(script.values(), key=lambda found: found.figure)
    beaten = [level for level in script if script[level].low > oracle[level].high]
    yield _finding("greedy", not beaten, script, best, None)


def cheats(subject: Subject) -> Iterator[Finding]:
    """No exploiter, the scenario's own ones included, exceeds the ceiling at any level."""
    env = subject.env()
    for name, exploiter in agents.exploiters(env, subject.family).items():
        ceiling = getattr(exploiter, "ceiling", None) or env.ceiling
        found, whole = {}, 0.0
        for level in subject.budget.levels:
            played = subject.play(name, level, subject.budget.episodes)
            found[level] = _beyond_chance(played) if env.by_class else _share(played)
            whole = max(whole, _share(played).figure)
        worst = max(found.values(), key=lambda each: each.figure)
        check = "floor" if name == "silent" else f"exploiter:{name}"
        finding = _finding(check, worst.figure <= ceiling, found, worst, ceiling)
        # What lies beyond chance decides, and the whole is shown: that is what the design leaves to this cheat.
        yield replace(finding, detail=f"{finding.detail}; all classes {whole:.3f}") if env.by_class else finding


def idle(subject: Subject) -> Iterator[Finding]:
    """No goal is met before the first message."""
    met = []
    for level in subject.budget.levels:
        env = subject.env(difficulty=level)
        for seed in subject.seeds(level, subject.budget.episodes):
            env.reset(seed=seed)
            if env.task.judge(env.task.world).success:
                met.append(f"{seed} (difficulty {level})")
    first = f"{len(met)} goals are met before a word is said: {', '.join(met[:SHOWN])}"
    yield Finding("untouched", not met, first if met else "no goal is met before a word is said")


def paid(subject: Subject) -> Iterator[Finding]:
    """Nobody is paid more than the best possible: neither experts, nor those who spray calls."""
    over = []
    highest = None
    for level in subject.budget.levels:
        for name in ("oracle", "greedy", "clerk", "first-tool", "random-calls", "random"):
            found = _share(subject.play(name, level, subject.budget.episodes))
            highest = found if highest is None or found.figure > highest.figure else highest
            if found.low > 1 + EPS:
                over.append(f"{name} at difficulty {level}: {found}")
    assert highest is not None  # there is at least one level
    detail = f"above the best possible: {'; '.join(over)}" if over else "no agent's mean is above the best possible"
    yield Finding("bounded", not over, detail, highest.figure, highest.low, highest.high, 1.0)


def _by_level(subject: Subject, name: str) -> dict[int, Share]:
    return {
        level: _share(subject.play(name, level, subject.budget.episodes)) for level in subject.budget.levels
    }


def _beyond_chance(played: Sequence[Episode]) -> Share:
    """The sum of the classes' figures minus 1, over the number of classes minus 1; 0 for chance and below.

    Whoever is right in one class, or flips a coin between classes, gets 0, and who is right in all of them 1: with
    two classes it is Youden's (1950) J. The interval adds the classes' variances.
    """
    classes = defaultdict(list)
    for episode in played:
        classes[episode.kind.partition("/")[0]].append(episode)
    shares = [_share(each) for each in classes.values()]
    if len(shares) == 1:
        return shares[0]
    others = len(shares) - 1
    figure = (math.fsum(each.figure for each in shares) - 1) / others
    error = math.sqrt(math.fsum(((each.high - each.low) / 2) ** 2 for each in shares)) / others
    return Share(max(0.0, figure), max(0.0, figure - error), max(0.0, figure + error))


def _share(played: Sequence[Episode]) -> Share:
    return share([episode.total for episode in played], [episode.best for episode in played])


def _finding(check: str, ok: bool, found: dict[int, Share], shown: Share, limit: float | None) -> Finding:
    levels = ", ".join(f"{level}: {each.figure:.3f}" for level, each in found.items())
    return Finding(check, ok, f"difficulty {levels}", shown.figure, shown.low, shown.high, limit)

"""Equal runs are bitwise equal: alone, side by side, copied in the middle, after others, in other processes."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator

import numpy as np

from convgym.audit.content import content, content_elsewhere
from convgym.audit.episodes import Step, Subject, plain, play, replay, say
from convgym.audit.report import Finding
from convgym.core import ConversationEnv

__all__ = ["copies", "generators", "hash_seeds", "interleaving", "replays", "resets"]

WILD = ("random-calls", "random", "injector")  # what may leave something behind


def replays(subject: Subject) -> Iterator[Finding]:
    """The same seed and messages give the same episode in another env."""
    different, count = [], 0
    for level in subject.budget.levels:
        for name in ("oracle", "clerk", "random"):
            for episode in subject.play(name, level, subject.budget.copies):
                again = replay(subject.env(difficulty=level), episode.actions, episode.seed)
                count += 1
                if (plain(again.steps), again.keys) != (plain(episode.steps), episode.keys):
                    different.append(f"{episode.seed} ({name}, difficulty {level})")
    yield _finding("replay", different, f"{count} episodes are bitwise the same in another env")


def interleaving(subject: Subject) -> Iterator[Finding]:
    """Envs that take turns are as envs alone."""
    different = []
    for level in subject.budget.levels:
        alone = subject.play("clerk", level, subject.budget.copies)
        envs = [subject.env(difficulty=level) for _ in alone]
        together: list[list[Step]] = [[env.reset(seed=episode.seed)] for env, episode in zip(envs, alone)]
        for turn in range(max(len(episode.actions) for episode in alone)):
            for env, episode, steps in zip(envs, alone, together):
                if turn < len(episode.actions):
                    steps.append(env.step(episode.actions[turn]))
        for episode, steps in zip(alone, together):
            if plain(steps) != plain(episode.steps):
                different.append(f"{episode.seed} (difficulty {level})")
    yield _finding("interleaving", different, "envs that take turns do not feel each other")


def copies(subject: Subject) -> Iterator[Finding]:
    """A fork, a restored snapshot, a deep copy and a pickle go on bitwise the same, and on their own."""
    different, count = [], 0
    for level in subject.budget.levels:
        env = subject.env(difficulty=level)
        others = subject.play("random-calls", level, 1)[0].actions
        for name in ("clerk", "random"):
            for episode in subject.play(name, level, max(2, subject.budget.copies // 4)):
                env.reset(seed=episode.seed)
                say(env, episode.actions)
                following = env.reset()  # without a seed: the stream of seeds is part of what is copied
                for turn in range(len(episode.actions)):
                    env.reset(seed=episode.seed)
                    say(env, episode.actions[:turn])
                    count += 1
                    whole = turn == len(episode.actions) // 2  # the dear ways to copy, once an episode
                    rest, expected = episode.actions[turn:], plain([*episode.steps[turn + 1 :], following])
                    wrong = _wrong_copy(env, rest, expected, others, whole=whole)
                    if wrong:
                        different.append(f"{wrong} at turn {turn} of {episode.seed} ({name}, difficulty {level})")
    yield _finding("copies", different, f"copies at {count} turns go on bitwise the same, and on their own")


def _wrong_copy(env: ConversationEnv, rest: list[str], expected: str, others: list[str], *, whole: bool) -> str:
    """Names the copy of an env that does not go on as it should, or that is not independent."""
    snapshot = env.snapshot()
    made = {"fork": env.fork()}
    if whole:
        made |= {"deepcopy": copy.deepcopy(env), "pickle": pickle.loads(pickle.dumps(env))}
    say(env.fork(), others)  # what is said to one copy must not be heard by the others
    say(env.fork(), ["Hello.", *rest])
    for name, twin in made.items():
        if plain([*say(twin, rest), twin.reset()]) != expected:
            return name
    say(env, others)
    for _ in range(2):  # a snapshot can be restored many times
        env.restore(snapshot)
        if plain([*say(env, rest), env.reset()]) != expected:
            return "snapshot"
    return ""


def resets(subject: Subject) -> Iterator[Finding]:
    """An episode after wild ones, one of them left in the middle, is as in a new env."""
    different = []
    for level in subject.budget.levels:
        env = subject.env(difficulty=level)
        for episode in subject.play("clerk", level, max(2, subject.budget.copies // 4)):
            for name in WILD:
                play(env, subject.agent(name, env), episode.seed)
            env.reset(seed=episode.seed + 1)
            env.step("Could you tell me more?")
            if plain(replay(env, episode.actions, episode.seed).steps) != plain(episode.steps):
                different.append(f"{episode.seed} (difficulty {level})")
    yield _finding("reset", different, "a reset leaves nothing behind")


def generators(subject: Subject) -> Iterator[Finding]:
    """The generators that a process shares are left as they are."""
    before = _generators()
    for level in subject.budget.levels:
        env = subject.env(difficulty=level)
        env.reset()
        for name in ("oracle", "greedy", "clerk", *WILD):
            play(env, subject.agent(name, env), 0)
        env.observation_space.sample()
    moved = [name for name, state in _generators().items() if state != before[name]]
    yield Finding("generators", not moved, f"moved: {', '.join(moved)}" if moved else "global generators are untouched")


def _generators() -> dict[str, bytes]:
    shared = {"random": random.getstate(), "numpy.random": np.random.get_state()}  # noqa: NPY002
    return {name: pickle.dumps(state) for name, state in shared.items()}


def hash_seeds(subject: Subject) -> Iterator[Finding]:
    """The content is the same in interpreters that order their sets otherwise."""
    ours = content(subject)
    other = [seed for seed in subject.budget.hash_seeds if content_elsewhere(subject, seed) != ours]
    same = f"the content is the same under the hash seeds {', '.join(subject.budget.hash_seeds)}"
    yield Finding("hash seeds", not other, f"other content under PYTHONHASHSEED {', '.join(other)}" if other else same)


def _finding(check: str, different: list[str], well: str) -> Finding:
    if not different:
        return Finding(check, True, well)
    return Finding(check, False, f"{len(different)} differ, first: {', '.join(different[:3])}")

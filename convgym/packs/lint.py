"""What loads but should not be played yet: rules that never bite, goals that cannot be met, words that are not heard.

:func:`linted` is the audit's check of a pack; for every other environment it has nothing to say.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from convgym import agents
from convgym.audit.episodes import Episode, Subject, play
from convgym.audit.report import Finding
from convgym.core import SPLITS
from convgym.packs import Pack, Script, schema
from convgym.packs.conditions import fill, named
from convgym.packs.hearing import hear
from convgym.packs.source import FILE, Problem
from convgym.rules import violations
from convgym.tools import Tool, format_call
from convgym.types import Act

if TYPE_CHECKING:
    from convgym.world import World

__all__ = ["lint", "linted"]

FEWEST = 3  # wordings of an act: one to train with, one to validate, one to hold out
SEEDS = 24  # of each outcome and agent
FILLED = 12  # worlds whose values are put into the wordings
SHOWN = 4  # problems that a finding names


def linted(subject: Subject) -> Iterator[Finding]:
    """The audit's check: one finding a kind of problem."""
    env = subject.env()
    if isinstance(env, Pack):
        make: Any = subject.env  # which makes packs, as the line above has seen
        for kind, problems in lint(make, env.script).items():
            said = [f"{FILE}:{env.script.source.says(problem)}" for problem in problems]
            more = f" (and {len(said) - SHOWN} more)" if len(said) > SHOWN else ""
            yield Finding(f"lint:{kind}", not said, "; ".join(said[:SHOWN]) + more if said else WELL[kind])


WELL = {
    "wordings": f"every act has at least {FEWEST} wordings",
    "used": "everything that is declared is used",
    "heard": "every wording of an agent is heard as its act",
    "rules": "every rule can be kept and broken",
    "goals": "every outcome is reached by the oracle, and by nobody who is silent",
    "leaks": "nothing private stands in instructions and openings",
}


def lint(make: Callable[..., Pack], script: Script) -> Mapping[str, list[Problem]]:
    """Looks for what is wrong with a pack that loads.

    Args:
        make: Makes its environment from settings.
        script: The pack.

    Returns:
        The problems of each kind; empty lists where all is well.
    """
    checks: dict[str, Iterator[Problem]] = {
        "wordings": _few(script),
        "used": _unused(script),
        "heard": _misheard(make, script),
        "rules": _idle_rules(make, script),
        "goals": _bad_goals(make, script),
        "leaks": _leaks(make, script),
    }
    return {kind: list(dict.fromkeys(problems)) for kind, problems in checks.items()}


def _few(script: Script) -> Iterator[Problem]:
    words = script.scenario.words
    for speaker, bank in (("user", words.user), ("agent", words.agent)):
        for act, texts in bank.items():
            if len(set(texts)) < FEWEST:
                yield Problem(("words", speaker, act), f"expected at least {FEWEST} wordings, got {len(set(texts))}.")


def _unused(script: Script) -> Iterator[Problem]:
    s = script.scenario
    columns = [column for table in s.records.values() for column in table.fields.values()]
    for pool in s.pools.keys() - {column.pool for column in columns if isinstance(column, schema.Pool)}:
        yield Problem(("pools", pool), "expected a field that takes its words.")
    texts = [rule.brief + rule.full for rule in s.rules.values()]
    texts += [rule.only_if for rule in s.rules.values() if isinstance(rule, schema.OnlyIf)]
    for parameter in s.parameters.keys() - {name for text in texts for name in named(text)}:
        yield Problem(("parameters", parameter), f"expected a rule that says {{{parameter}}}.")
    for rule, condition in script.conditions.items():
        for name in named(condition.value):
            for style in ("brief", "full"):
                if name not in named(getattr(s.rules[rule], style)):
                    yield Problem(("rules", rule, style), f"expected {{{name}}} in it, or nobody can know its value.")
    reasons = {rule.reason for rule in s.rules.values() if isinstance(rule, schema.OnlyIf)}
    for reason in s.language.reasons.keys() - reasons:
        yield Problem(("language", "reasons", reason), "expected a rule with this reason.")


# -- words -----------------------------------------------------------------------------------------------


def _misheard(make: Callable[..., Pack], script: Script) -> Iterator[Problem]:
    """Yields the wordings that are not heard as the one act that they are meant for."""
    facts = []
    env = make(difficulty=5)
    for seed in range(FILLED):
        env.reset(seed=seed, options={"split": SPLITS[seed % len(SPLITS)]})
        facts.append(env.privileged()["facts"])
    told = {dotted.partition(".")[2]: dotted for dotted in script.told}
    for act, texts in script.scenario.words.agent.items():
        kind, _, about = act.partition("_")
        for i, text in enumerate(texts):
            for values in facts if named(text) else facts[:1]:
                values = {**values, **({about: _example(script, told[about])} if kind == "tell" else {})}
                said = fill(text, values)
                heard = hear(script, told[about] if kind == "tell" else "", said)
                wrong = _wrong(kind, about, values, heard.acts)
                if wrong:
                    yield Problem(("words", "agent", act, i), f"expected to be heard as {act}, but {said!r} {wrong}.")
                    break


def _example(script: Script, dotted: str) -> str:
    column = script.column(dotted)
    if isinstance(column, schema.Number):
        return str(column.high)
    return (column.choice if isinstance(column, schema.Choice) else script.words_of(column.pool, "train"))[-1]  # type: ignore[union-attr]


def _wrong(kind: str, about: str, values: Mapping[str, str], acts: tuple[Act, ...]) -> str:
    """Says how a wording was heard otherwise; "" if it was heard well."""
    found = [act for act in acts if act.name in ("request", "confirm", "done", "refuse", "tell")]
    slots = {"ask": ("request", "slot"), "offer": ("confirm", "intent"), "refuse": ("refuse", "reason")}
    if kind in slots:
        name, slot = slots[kind]
        good = [act.name for act in found] == [name] and found[0].slots[slot] == about
    elif kind == "tell":
        good = [(act.name, act.slots.get("value")) for act in found] == [("tell", values[about])]
    else:
        good = kind != "done" or [act.name for act in found] == ["done"]
    if good:
        return ""
    said = ", ".join(f"{act.name}({', '.join(filter(None, act.slots.values()))})" for act in found)
    return f"is heard as {said or 'nothing'}"


# -- episodes --------------------------------------------------------------------------------------------


class Prober:
    """Calls every tool about the records in question, then again about others, and refuses and tells unasked."""

    def __init__(self, env: Pack, rng: random.Random) -> None:
        self.env, self.rng = env, rng

    def reset(self, obs: str, info: Mapping[str, object]) -> None:
        """Plans its calls: writes last, and those that end at the very end."""
        script, goal = self.env.script, self.env.privileged()
        values = dict(goal["facts"])
        for _, arguments in goal["calls"]:
            values |= arguments
        values |= goal["keys"]
        others = {table: self.rng.choice(list(rows)) for table, rows in self.env.task.world.tables.items()}
        mixed = {**values, **{table: key for table, key in others.items() if self.rng.random() < 0.5}}
        writes = [tool for tool in script.tools.values() if not tool.ends]
        ends = [tool for tool in script.tools.values() if tool.ends]
        texts = [lines[0] for act, lines in script.agent.items() if act.startswith(("refuse_", "tell_"))]
        self.rng.shuffle(texts)
        first, then = (texts[:2], []) if self.rng.random() < 0.5 else ([], texts[:2])
        calls = [_called(tool, values) for tool in self.rng.sample(writes, len(writes))]
        self.plan = iter([*first, *calls, *(_called(tool, mixed) for tool in writes), *then,
                          *(_called(tool, values) for tool in ends)])  # fmt: skip

    def act(self, obs: str, info: Mapping[str, object]) -> str:
        """Takes the next step."""
        text = next(self.plan, "")
        return fill(text, dict.fromkeys(named(text), "1"))


def _called(tool: Tool, values: Mapping[str, str]) -> str:
    return format_call(tool.name, {argument: values.get(argument, "1") for argument in tool.arguments.model_fields})


def _idle_rules(make: Callable[..., Pack], script: Script) -> Iterator[Problem]:
    """Yields the rules that nothing ever breaks, or that no oracle ever has to keep."""
    kept, broken = set[str](), set[str]()
    for level in sorted({1, *(rule.from_level for rule in script.scenario.rules.values())}):
        env = make(difficulty=level, max_turns=60)
        for ending in script.endings_at(level):
            for seed in range(SEEDS // 4):
                options = {"scenario": ending.template, "split": "train"}
                play(env, agents.make("oracle", env, seed=seed), seed, options)
                found = set(violations(env.task.rules, env.task.world))
                kept |= {rule.id for rule in env.task.rules if _concerned(rule.check.names, env.task.world)} - found
                for number in range(2):
                    play(env, Prober(env, random.Random(2 * seed + number)), seed, options)
                    broken |= set(violations(env.task.rules, env.task.world))
    for name, rule in script.scenario.rules.items():
        if name not in broken:
            yield Problem(("rules", name), "expected a rule that can be broken, but no call ever breaks it.")
        elif name not in kept and not isinstance(rule, schema.Never):
            yield Problem(("rules", name), "expected a rule that some goal has to keep, but none comes near it.")


def _concerned(names: frozenset[str], world: World) -> bool:
    return any(event.ok and event.name in names for event in world.log)


def _bad_goals(make: Callable[..., Pack], script: Script) -> Iterator[Problem]:
    """Yields the goals that the oracle does not reach, and those that are reached in silence."""
    failed: dict[str, list[str]] = defaultdict(list)
    for level in range(1, schema.LEVELS + 1):
        env = make(difficulty=level)
        for ending in script.endings_at(level):
            for seed in range(SEEDS // 6):
                options = {"scenario": ending.template, "split": "train"}
                for name in ("oracle", "silent"):
                    episode = play(env, agents.make(name, env, seed=seed), seed, options)
                    if episode.info["success"] is not (name == "oracle"):
                        failed[ending.goal].append(_failure(name, level, ending.template, episode, env))
    for goal, said in failed.items():
        yield Problem(("goals", goal), f"{said[0]} ({len(said)} such episodes).")


def _failure(name: str, level: int, template: str, episode: Episode, env: Pack) -> str:
    if name == "silent":
        return f"expected effort, but {template!r} is a success at level {level} for an agent that is silent"
    missing = ", ".join(env.task.judge(env.task.world).missing)
    return f"expected the oracle to reach {template!r} at level {level}, seed {episode.seed}, but: {missing}"


def _leaks(make: Callable[..., Pack], script: Script) -> Iterator[Problem]:
    """Yields the openings and instructions in which something private stands."""
    for level in (1, schema.LEVELS):
        env = make(difficulty=level, instructions="full")
        for ending in script.endings_at(level):
            for seed in range(SEEDS // 2):
                _, info = env.reset(seed=seed, options={"scenario": ending.template, "split": "train"})
                instructions, opening = (message["content"] for message in info["messages"])
                private = {str(env.task.world.tables[t][env.privileged()["keys"][t]][f]) for t, f in script.private}
                for secret in env.task.secrets:
                    where = f"{instructions}\n{opening}" if secret in private else opening
                    if re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", where, re.IGNORECASE):
                        said = "has to be asked for" if secret not in private else "is private"
                        yield Problem(("goals", ending.goal), f"expected no {secret!r} in a text, for it {said}.")

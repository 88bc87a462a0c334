"""Reward mutation: an expert's episode is damaged in one place and played again; its return must drop.

What can be demanded depends on the damage. The oracles make no needless writes and no needless claims, so

- another value in a successful write (``alter``) must *always* cost, whether it is a value that does not exist
  or one that the same argument has in another episode,
- a write left out (``omit``) must always cost,
- another value in a claim (``misstate``: the ``value`` of a logged ``tell``) must always cost,
- a turn left out (``drop``), or replaced by a message of another class's episode (``replace``), need not: a
  courtesy may be missing, and a replay that already knows the answer loses nothing when it does not ask. But
  in every episode there must be a turn whose loss costs: what no turn has earned is paid for nothing,
- two neighbours swapped (``swap``) need not cost: questions may come in any order.

No damage may ever *pay* more than the best possible. After a shorter episode the agent is silent to the end.
Where the best return is an expectation over luck, single episodes prove nothing, and the mean change over the
damaged ones is looked at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

from convgym.audit.episodes import Episode, Subject, replay
from convgym.audit.report import EPS, Finding
from convgym.tools import canonical_number, format_call, parse_call
from convgym.types import Event, ToolCall

__all__ = ["damaged"]

POSITIONS = 12  # turns of an episode that one kind of damage tries, at most
Pool = Mapping[tuple[str, str], Sequence[str]]
"""``{(event, argument): values}`` that experts wrote in other episodes."""


class Mutant(NamedTuple):
    """An expert's episode with one damaged place, played again."""

    expert: Episode
    what: str
    total: float

    @property
    def change(self) -> float:
        """The damaged return minus the expert's."""
        return self.total - self.expert.total


def damaged(subject: Subject) -> Iterator[Finding]:
    """Damages experts' episodes, one finding a kind of damage."""
    mutants: dict[str, list[Mutant]] = {kind: [] for kind in KINDS}
    luck = False
    for level in subject.budget.levels:
        experts = subject.play("oracle", level, subject.budget.copies)
        env = subject.env(difficulty=level)
        env.reset(seed=0)
        luck |= env.task.exact is not None or any(e.total > e.best + EPS and e.best < 1 for e in experts)
        pool = _pool(experts)
        rng = subject.rng("damage", level)
        for kind, (damage, _, _) in KINDS.items():
            for number, expert in enumerate(experts):
                others = [e for e in experts[number + 1 :] + experts[:number] if e.kind != expert.kind] or experts
                for what, actions in damage(expert, others[0], pool, rng):
                    if actions != expert.actions:
                        total = replay(env, actions, expert.seed).total
                        mutants[kind].append(Mutant(expert, f"difficulty {level}, {what}", total))
    for kind, (_, always, must) in KINDS.items():
        yield _verdict(kind, mutants[kind], always, must, luck)


def _verdict(kind: str, mutants: list[Mutant], always: bool, must: bool, luck: bool) -> Finding:
    check = f"damage:{kind}"
    if not mutants:
        return Finding(check, True, "nothing of this kind to damage")
    costly = sum(mutant.change < -EPS for mutant in mutants) / len(mutants)
    if luck:
        change = sum(mutant.change for mutant in mutants) / len(mutants)
        ok = change < 0 or not must
        return Finding(check, ok, f"{len(mutants)} mutants, mean change {change:+.3f}, {costly:.0%} cost", costly)
    gains = [mutant for mutant in mutants if mutant.total > mutant.expert.best + EPS]
    if gains:
        detail = f"{len(gains)} pay more than the best possible, first: {_where(gains[0])}"
        return Finding(check, False, detail, costly)
    if always:
        free = [mutant for mutant in mutants if mutant.change >= -EPS]
        figure, unit = costly, "mutants"
    else:
        by_episode = defaultdict(list)
        for mutant in mutants:
            by_episode[id(mutant.expert)].append(mutant)
        spared = [each for each in by_episode.values() if all(mutant.change >= -EPS for mutant in each)]
        free = [each[0] for each in spared]
        figure, unit = 1 - len(spared) / len(by_episode), "episodes"
    detail = f"{len(mutants)} mutants, {costly:.0%} cost"
    if not must:
        return Finding(check, True, detail, costly)
    if free:
        detail += f"; {len(free)} {unit} lose nothing, first: {_where(free[0])}"
    return Finding(check, not free, detail, figure, limit=1.0)


def _where(mutant: Mutant) -> str:
    return f"seed {mutant.expert.seed}, {mutant.what}: return {mutant.total:g} of {mutant.expert.total:g}"


# -- kinds of damage -------------------------------------------------------------------------------------

Damage = Callable[[Episode, Episode, Pool, Random], Iterator[tuple[str, list[str]]]]


def _alter(expert: Episode, other: Episode, pool: Pool, rng: Random) -> Iterator[tuple[str, list[str]]]:
    for turn in _places(expert, _wrote, rng):
        call = parse_call(expert.actions[turn])
        assert isinstance(call, ToolCall)  # see _wrote
        write = next(event for event in expert.events[turn] if event.write and event.ok)
        for argument, value in call.arguments.items():
            if argument in write.arguments:
                for wrong in _wrong(write.name, argument, str(value), pool, rng):
                    altered = format_call(call.name, {**call.arguments, argument: wrong})
                    yield f"{argument} {value!r} -> {wrong!r} at turn {turn}", _with(expert, turn, altered)


def _misstate(expert: Episode, other: Episode, pool: Pool, rng: Random) -> Iterator[tuple[str, list[str]]]:
    for turn in _places(expert, _told, rng):
        told = next(event for event in expert.events[turn] if event.name == "tell")
        value = told.arguments.get("value", "")
        pattern = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)", re.IGNORECASE)
        if value and pattern.search(expert.actions[turn]):
            for wrong in _wrong(told.name, "value", value, pool, rng):
                text = pattern.sub(wrong.replace("\\", r"\\"), expert.actions[turn])
                yield f"{value!r} -> {wrong!r} at turn {turn}", _with(expert, turn, text)


def _omit(expert: Episode, other: Episode, pool: Pool, rng: Random) -> Iterator[tuple[str, list[str]]]:
    for turn in _places(expert, _wrote, rng):
        yield f"without the write of turn {turn}", expert.actions[:turn] + expert.actions[turn + 1 :]


def _drop(expert: Episode, other: Episode, pool: Pool, rng: Random) -> Iterator[tuple[str, list[str]]]:
    for turn in _places(expert, _any, rng):
        yield f"without turn {turn}", expert.actions[:turn] + expert.actions[turn + 1 :]


def _replace(expert: Episode, other: Episode, pool: Pool, rng: Random) -> Iterator[tuple[str, list[str]]]:
    for turn in _places(expert, _any, rng):
        text = other.actions[min(turn, len(other.actions) - 1)]
        if text != expert.actions[turn]:
            yield f"turn {turn} -> {text[:60]!r}", _with(expert, turn, text)


def _swap(expert: Episode, other: Episode, pool: Pool, rng: Random) -> Iterator[tuple[str, list[str]]]:
    for turn in _places(expert, _any, rng):
        if turn:
            before, after = expert.actions[turn - 1], expert.actions[turn]
            swapped = [*expert.actions[: turn - 1], after, before, *expert.actions[turn + 1 :]]
            yield f"turns {turn - 1} and {turn} swapped", swapped


KINDS: dict[str, tuple[Damage, bool, bool]] = {
    # the damage; whether every mutant has to cost, or one of each episode; whether anything is demanded
    "alter": (_alter, True, True),
    "omit": (_omit, True, True),
    "misstate": (_misstate, True, True),
    "drop": (_drop, False, True),
    "replace": (_replace, False, True),
    "swap": (_swap, False, False),
}


# -- where, and with what --------------------------------------------------------------------------------


def _places(expert: Episode, fits: Callable[[str, Sequence[Event]], bool], rng: Random) -> list[int]:
    """Draws turns that fit; the last one is always among them, because it often decides."""
    turns = [turn for turn, events in enumerate(expert.events) if fits(expert.actions[turn], events)]
    if len(turns) <= POSITIONS:
        return turns
    return [*sorted(rng.sample(turns[:-1], POSITIONS - 1)), turns[-1]]


def _any(action: str, events: Sequence[Event]) -> bool:
    return True


def _wrote(action: str, events: Sequence[Event]) -> bool:
    """Whether it was a call that changed the world; what speech moves in a user is no write of the agent's."""
    return isinstance(parse_call(action), ToolCall) and any(event.write and event.ok for event in events)


def _told(action: str, events: Sequence[Event]) -> bool:
    return any(event.name == "tell" for event in events)


def _with(expert: Episode, turn: int, text: str) -> list[str]:
    return [*expert.actions[:turn], text, *expert.actions[turn + 1 :]]


def _pool(experts: Sequence[Episode]) -> Pool:
    pool: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for expert in experts:
        for event in (event for events in expert.events for event in events):
            for argument, value in event.arguments.items():
                pool[event.name, argument][value] = None
    return {key: tuple(values) for key, values in pool.items()}


def _wrong(event: str, argument: str, value: str, pool: Pool, rng: Random) -> list[str]:
    """Draws other values: one that no episode knows, and one that another episode has."""
    known = [other for other in pool.get((event, argument), ()) if other and _canonical(other) != _canonical(value)]
    return [_unknown(value), *([rng.choice(known)] if known else [])]


def _unknown(value: str) -> str:
    """Makes a value of the same shape: other digits, or else another word."""
    if any(c.isdecimal() for c in value):
        return "".join(str((int(c) + 3) % 10) if c.isdecimal() else c for c in value)
    return f"{value}x"


def _canonical(value: str) -> str:
    words = " ".join(sorted(value.lower().split()))  # "tall white cup" is a "white tall cup"
    return canonical_number(words) or words

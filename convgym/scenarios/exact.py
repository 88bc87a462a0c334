"""Exact solutions of games that are small enough to enumerate.

A :class:`Model` says everything that can happen: a fact that the agent cannot see, states that it can, and a
law over (fact, state, action). :func:`solve` follows every action and every turn of luck from the starts,
forward with Bayes' rule and back with Bellman's equation. What comes out is an MDP over what the agent knows,

    Q(s, a) = sum over s', r of P(s', r | s, a) [r + V(s')],    V(s) = max over a of Q(s, a),

with the chances of :attr:`Solution.moves`: all that an enumeration of every episode needs, or of every policy.
A game without a hidden fact is one whose fact is always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["PASS", "Branch", "Model", "Solution", "State", "landing", "solve"]

State = tuple[int | str, ...]
"""What the agent knows, the turn included, so that no state comes back. Equal knowledge is an equal state."""

PASS = "pass"  # the action of a message that says nothing of use; it costs the turn


class Branch(NamedTuple):
    """One way in which a turn can go."""

    chance: float
    state: State
    reward: float = 0.0


@dataclass(frozen=True, eq=False)
class Model:
    """The rules of a game of a few turns.

    Attributes:
        actions: What can be done in every state, :data:`PASS` included.
        starts: ``{state: chance}`` of the beginnings.
        prior: Start -> ``{fact: chance}`` of what the agent cannot see.
        law: ``law(fact, state, action)`` -> the branches, whose chances sum to 1. Their order is what common
            random numbers act on: one uniform number picks the branch, the first ones at small numbers.
        over: Whether nothing more can happen in a state.
    """

    actions: tuple[str, ...]
    starts: Mapping[State, float]
    prior: Callable[[State], Mapping[str, float]]
    law: Callable[[str, State, str], tuple[Branch, ...]]
    over: Callable[[State], bool]


@dataclass(frozen=True, eq=False)
class Solution:
    """A solved game, as tables; the states stand in the order of their turns.

    Attributes:
        actions: The model's.
        starts: The model's.
        values: ``{state: V}``, the best expected sum of the rewards to come; 0 where the game is over.
        q: ``{state: {action: Q}}``; a state where the game is over is not in it.
        beliefs: ``{state: {fact: chance}}``, what the agent may conclude about the fact.
        moves: ``{(state, action): branches}`` as the agent sees them, not knowing the fact.
        law: ``{(fact, state, action): branches}``, the model's law where the fact is possible.
    """

    actions: tuple[str, ...]
    starts: Mapping[State, float]
    values: Mapping[State, float]
    q: Mapping[State, Mapping[str, float]]
    beliefs: Mapping[State, Mapping[str, float]]
    moves: Mapping[tuple[State, str], tuple[Branch, ...]]
    law: Mapping[tuple[str, State, str], tuple[Branch, ...]]

    def __deepcopy__(self, memo: object) -> Solution:
        """Tables never change: a copy of an environment shares them."""
        return self

    @property
    def optimum(self) -> float:
        """The best expected return, over all starts."""
        return sum(chance * self.values[start] for start, chance in self.starts.items())


def solve(model: Model) -> Solution:
    """Enumerates a game and computes its values.

    Raises:
        ValueError: If the chances of a law do not sum to 1, or two pasts lead to the same state and to
            different beliefs, so that the state is not what the agent knows.
    """
    beliefs = {start: dict(model.prior(start)) for start in model.starts}
    law: dict[tuple[str, State, str], tuple[Branch, ...]] = {}
    moves: dict[tuple[State, str], tuple[Branch, ...]] = {}
    order = list(model.starts)
    for state in order:  # grows on the way: every turn lies behind the ones before it
        if model.over(state):
            continue
        for action in model.actions:
            for fact in beliefs[state]:
                law[fact, state, action] = _checked(model.law(fact, state, action))
            joint = _joint(beliefs[state], {fact: law[fact, state, action] for fact in beliefs[state]})
            moves[state, action] = tuple(Branch(sum(facts.values()), *key) for key, facts in joint.items())
            for (after, _), facts in joint.items():
                belief = {fact: weight / sum(facts.values()) for fact, weight in facts.items()}
                if after not in beliefs:
                    beliefs[after] = belief
                    order.append(after)
                elif not _close(beliefs[after], belief):
                    raise ValueError(f"state {after}: expected one belief, got {beliefs[after]} and {belief}.")
    values: dict[State, float] = {}
    q: dict[State, dict[str, float]] = {}
    for state in reversed(order):
        if not model.over(state):
            q[state] = {
                action: sum(b.chance * (b.reward + values[b.state]) for b in moves[state, action])
                for action in model.actions
            }
        values[state] = max(q[state].values()) if state in q else 0.0
    return Solution(model.actions, model.starts, values, q, beliefs, moves, law)


def landing(chances: Iterable[float], luck: float) -> int:
    """Returns the index in which a uniform number falls when the chances are laid end to end.

    >>> [landing((0.25, 0.75), luck) for luck in (0.0, 0.24, 0.25, 0.99)]
    [0, 0, 1, 1]
    """
    at = 0
    for at, chance in enumerate(chances):  # noqa: B007
        luck -= chance
        if luck < 0.0:
            break
    return at


def _joint(
    belief: Mapping[str, float], branches: Mapping[str, tuple[Branch, ...]]
) -> dict[tuple[State, float], dict[str, float]]:
    """``{(next state, reward): {fact: P(fact, next state, reward)}}``."""
    joint: dict[tuple[State, float], dict[str, float]] = {}
    for fact, weight in belief.items():
        for chance, state, reward in branches[fact]:
            facts = joint.setdefault((state, reward), {})
            facts[fact] = facts.get(fact, 0.0) + weight * chance
    return joint


def _checked(branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """Drops what cannot happen."""
    total = sum(branch.chance for branch in branches)
    if abs(total - 1.0) > 1e-9:
        raise ValueError(f"expected chances that sum to 1, got {total} of {branches}.")
    return tuple(branch for branch in branches if branch.chance > 0.0)


def _close(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(abs(one[fact] - other[fact]) < 1e-9 for fact in one)

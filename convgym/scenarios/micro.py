"""Micro environments: a solved game, and a conversation in which it is played.

The user's replies and the exact values come from one :class:`~convgym.scenarios.exact.Solution`, so that they
cannot disagree. Success is to play without regret: luck decides what is earned, and never whether the play
was right.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

from convgym.core import ConversationEnv, _Episode, expect
from convgym.scenarios.exact import PASS, Branch, Solution, State, landing
from convgym.seeding import Streams
from convgym.types import Act, EndReason, Event, Heard, Outcome, Reply, Turn
from convgym.world import World

__all__ = ["Game", "MicroConversation", "Player", "Standing"]

EXACT = 1e-9  # values closer than this are equal


class Standing(NamedTuple):
    """How a game stands; the one record of its world.

    Attributes:
        state: What the agent knows.
        pay: Sum of the rewards so far.
        last: Reward of the last move.
        regret: Sum of V(s) - Q(s, a) over the moves so far.
    """

    state: State
    pay: float = 0.0
    last: float = 0.0
    regret: float = 0.0


@dataclass(frozen=True, eq=False)
class Game:
    """One round of a solved game.

    Attributes:
        solution: The game.
        start: The state it begins in.
        fact: What the agent cannot see.
        dense: Whether a reward is paid when it is earned, or all of them at the end.
    """

    solution: Solution
    start: State
    fact: str
    dense: bool

    def world(self) -> World:
        """Returns the world before the first move."""
        return World({"game": {"standing": Standing(self.start)}})

    def standing(self, world: World) -> Standing:
        """Returns how the game stands."""
        found = world.get("game", "standing")
        assert isinstance(found, Standing)
        return found

    def over(self, state: State) -> bool:
        """Whether nothing more can happen."""
        return state not in self.solution.q

    def move(self, world: World, action: str, turn: int, streams: Streams) -> tuple[State, Branch]:
        """Makes a move; one uniform number of the turn decides, whatever the move is.

        Returns:
            The state before, and how it went.
        """
        state, pay, _, regret = self.standing(world)
        branches = self.solution.law[self.fact, state, action]
        branch = branches[0]
        if len(branches) > 1:
            luck = streams.stream("user", turn).random()
            branch = branches[landing([each.chance for each in branches], luck)]
        regret += self.solution.values[state] - self.solution.q[state][action]
        world.put("game", "standing", Standing(branch.state, pay + branch.reward, branch.reward, regret))
        world.log.append(Event(turn, action, _written(branch.state, branch.reward), write=True))
        return state, branch

    def __call__(self, world: World) -> Outcome:
        """Judges: the share of the optimum that the moves so far are worth, luck aside.

        Each move is worth ``Q(s, a) - V(s')`` on average over the luck, and the sum of it telescopes to the
        optimum less the regret and less what could still be earned.
        """
        state, _, _, regret = self.standing(world)
        best, left = self.solution.values[self.start], self.solution.values[state]
        if regret < EXACT and left < EXACT:
            return Outcome(True, 1.0)
        return Outcome(False, min(max((best - regret - left) / best, 0.0), 1.0 - EXACT))

    def rewards(self, world: World, start: int, ended: bool) -> dict[str, float]:
        """Pays what the last turn earned (dense), or everything at the end (sparse); the returns are equal."""
        if self.dense:
            return {"pay": self.standing(world).last if len(world.log) > start else 0.0}
        return {"pay": self.standing(world).pay} if ended else {}

    def exact(self, world: World) -> dict[str, Any]:
        """Returns the value ``v`` of what is still to be paid, and ``q`` of each action but passing.

        With sparse rewards, what is earned and not yet paid is part of both.
        """
        state, pay, _, _ = self.standing(world)
        if self.over(state):
            return {"v": 0.0, "q": dict.fromkeys(self._named(), 0.0)}
        due = 0.0 if self.dense else pay
        q = self.solution.q[state]
        return {"v": due + self.solution.values[state], "q": {name: due + q[name] for name in self._named()}}

    def _named(self) -> list[str]:
        return [action for action in self.solution.actions if action != PASS]


@lru_cache(maxsize=4_096)
def _written(state: State, reward: float) -> Mapping[str, str]:
    """What the log says of a move: where it led, and what it brought."""
    return {"to": " ".join([str(part) for part in state]), "pay": f"{reward:g}"}


@dataclass(kw_only=True)
class Player:
    """A user who plays a game; its whole state is in the world.

    Attributes:
        game: The game.
    """

    game: Game

    def fork(self) -> Self:
        """Returns an independent copy."""
        return copy.copy(self)

    def key(self) -> str:
        """The log says where the game stands."""
        return ""

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Plays the one move that it heard; anything else is a turn that is lost."""
        action = heard.acts[0].name if len(heard.acts) == 1 and self.means(heard.acts[0], world) else PASS
        before, branch = self.game.move(world, action, turn, streams)
        end = EndReason.CONCLUDED if self.game.over(branch.state) else None
        return self.answer(before, action, branch, turn, streams, end)

    def means(self, act: Act, world: World) -> bool:
        """Whether an act is a move of the game as it stands."""
        return act.name in self.game.solution.actions

    @abstractmethod
    def answer(
        self, before: State, action: str, branch: Branch, turn: int, streams: Streams, end: EndReason | None
    ) -> Reply:
        """Puts into words what came of a move.

        Args:
            before: The state before it.
            action: The move.
            branch: How it went.
            turn: The turn, which keys the streams.
            streams: The episode's streams.
            end: Set if the game is over.
        """


class MicroConversation(ConversationEnv):
    """A conversation whose task is judged by a :class:`Game`, and whose user is its :class:`Player`.

    Args:
        reward: ``"dense"`` pays what is earned at once, ``"sparse"`` pays all of it at the end.
        **settings: Those of every conversation.
    """

    def __init__(self, *, reward: Literal["sparse", "dense"] = "sparse", **settings: Any) -> None:
        expect("reward", reward, ("sparse", "dense"))
        super().__init__(**settings)
        self.dense = reward == "dense"

    def _answer(self, episode: _Episode, action: str) -> tuple[Turn, EndReason | None]:
        """There are no tools: after a call and its error, the game goes on as after silence."""
        turn, end = super()._answer(episode, action)
        if turn.heard is not None:
            return turn, end
        silence, end = super()._answer(episode, "")
        if len(episode.turns) + 1 == self.max_turns:
            end = None  # where the turns run out on a call, the conversation is cut, as everywhere else
        return turn._replace(replies=(*turn.replies, *silence.replies), acts=silence.acts), end

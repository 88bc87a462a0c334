"""TextBandit: a micro env, a bandit whose arms are words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from convgym.core import Split, Task, expect
from convgym.scenarios.exact import PASS, Branch, Model, Solution, State, solve
from convgym.scenarios.micro import Game, MicroConversation, Player
from convgym.seeding import Streams
from convgym.types import Act, EndReason, Heard, Reply

__all__ = ["ARMS", "MEANS", "Payer", "TextBandit", "model"]

ARMS = ("red", "blue", "green", "gold", "pink", "grey", "black", "white")
MEANS = (0.1, 0.3, 0.8, 0.2, 0.5, 0.1, 0.4, 0.3)  # the third word pays best at every difficulty above 1
COUNTS = (2, 3, 4, 6, 8)  # words on offer
PULLS = 3
ACTS = {arm: Act(arm, {}) for arm in ARMS}
_WORDS = re.compile(r"[a-z]+")


def listen(text: str) -> Heard:
    """Finds the arms named in a message; several are as good as none."""
    named = {word for word in _WORDS.findall(text[:2_000].lower()) if word in ACTS}
    return Heard(tuple(ACTS[arm] for arm in sorted(named)), len(named) == 1 or not text.strip())


def model(difficulty: int = 2, pulls: int = PULLS) -> Model:
    """The rules: a state is ``(turn,)``, and a word that is not on offer never pays."""
    means = dict(zip(ARMS[: COUNTS[difficulty - 1]], MEANS))

    def law(fact: str, state: State, action: str) -> tuple[Branch, ...]:
        chance, after = means.get(action, 0.0), (int(state[0]) + 1,)
        return Branch(chance, after, 1.0 / pulls), Branch(1.0 - chance, after)

    return Model((*ARMS, PASS), {(0,): 1.0}, lambda start: {"": 1.0}, law, lambda state: state[0] == pulls)


@lru_cache(maxsize=64)
def solved(difficulty: int, pulls: int) -> Solution:
    """The exact values."""
    return solve(model(difficulty, pulls))


@dataclass(kw_only=True)
class Payer(Player):
    """Pays 1 with the probability of the word that was named.

    The draw of a turn belongs to the turn and not to the word: in a group, one uniform number decides for all
    words.

    Attributes:
        arms: The words on offer.
    """

    arms: tuple[str, ...]

    def open(self, streams: Streams) -> Reply:
        """Names the arms in a random order."""
        order = list(self.arms)
        streams.stream("surface").shuffle(order)
        return Reply(f"Say one: {', '.join(order)}.", tuple([ACTS[arm] for arm in order]))

    def answer(
        self, before: State, action: str, branch: Branch, turn: int, streams: Streams, end: EndReason | None
    ) -> Reply:
        """Says what it pays."""
        paid = branch.reward > 0.0
        return Reply("It pays 1." if paid else "It pays 0.", (Act("pays", {"pay": str(int(paid))}),), end)


class TextBandit(MicroConversation):
    """Which word pays? The smallest conversation in which there is something to learn.

    Description:
        A bandit whose arms are words with fixed chances to pay. The chances are the same in every episode, so
        that the agent has to find the best word by trying, over episodes. Enumerable: the exact optimum is
        known, and with ``reveal=True`` the value of each word at each turn.
    Observation:
        Text: the words at reset, in random order, and then whether the last word paid.
    Action:
        Text that names exactly one word; anything else is a pull that pays nothing.
    Tools:
        None.
    Reward:
        The mean pay over the pulls: at each pull (``reward="dense"``) or at the end (``"sparse"``, the
        default). Success is to name the best word at every pull, whatever it pays.
    Episode end:
        After ``max_turns`` pulls, 3 by default.
    Difficulty:
        2, 3, 4, 6, 8 words.
    Splits:
        The same bandit in all of them.
    Audit:
        Naming all the words pays nothing. A random word pays up to two thirds of what the best one does, so
        that the ceiling of cheats is .7 of the optimum.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = PULLS
    ceiling: ClassVar[float] = 0.7
    canned_acts: ClassVar[tuple[str, ...]] = ARMS
    user_acts: ClassVar[tuple[str, ...]] = (*ARMS, "pays:0", "pays:1")

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """The world is always the same; only the order of the words and the luck vary."""
        if template is not None:
            expect("scenario", template, ("bandit",))
        arms, pulls = ARMS[: COUNTS[self.difficulty - 1]], self.max_turns
        game = Game(solved(self.difficulty, pulls), (0,), "", self.dense)
        brief = "Find the word that pays."
        full = (
            f"You play {pulls} rounds. In each, say exactly one of the words that the user names. "
            "Each word pays with a chance of its own. Find the word that pays best."
        )
        return Task(
            template="bandit", world=game.world(), rules=(), tools={}, user=Payer(game=game, arms=arms),
            instructions=brief if self.style == "brief" else full, understand=listen, judge=game,
            turn_reward=game.rewards, exact=game.exact, canned=ARMS,
            privileged={
                "means": dict(zip(arms, MEANS)), "optimal_return": game.solution.values[game.start],
            },
        )  # fmt: skip

"""AskOrAct: a micro env on the value of information; ask first, or act on what is known?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import ClassVar, NamedTuple

from convgym.core import Split, Task, expect
from convgym.language.speak import load_bank
from convgym.scenarios.exact import PASS, Branch, Model, Solution, State, landing, solve
from convgym.scenarios.micro import Game, MicroConversation, Player
from convgym.seeding import Streams
from convgym.types import Act, EndReason, Heard, Reply
from convgym.users.base import PERSONAS, Speaker

__all__ = ["DRINKS", "TRUST", "AskOrAct", "Guest", "Knowledge", "model"]

DRINKS = ("tea", "coffee", "milk", "juice")
TURNS = 3
TRUST = (
    # P(the usual is wanted), P(an answer is true)
    (0.9, 1.0),
    (0.8, 0.95),
    (0.7, 0.9),
    (0.6, 0.8),
    (0.5, 0.65),
)
KINDS = ("any", *(f"usual/{drink}" for drink in DRINKS))


class Knowledge(NamedTuple):
    """What the agent knows: equal knowledge, equal state.

    Attributes:
        turn: Turns that are over.
        usual: The guest's usual drink, "" if it has none.
        said: The answers heard, in alphabetical order.
        wrong: The drinks turned down, in alphabetical order.
        right: The drink that was right; nothing else matters then.
    """

    turn: int
    usual: str
    said: str = ""
    wrong: str = ""
    right: str = ""


def model(difficulty: int = 2, turns: int = TURNS) -> Model:
    """The rules: the hidden fact is the drink that the guest wants, the same all the time."""
    usual_holds, answer_holds = TRUST[difficulty - 1]
    rest = len(DRINKS) - 1

    def prior(start: State) -> dict[str, float]:
        usual = start[1]
        if not usual:
            return dict.fromkeys(DRINKS, 1.0 / len(DRINKS))
        return {drink: usual_holds if drink == usual else (1.0 - usual_holds) / rest for drink in DRINKS}

    def law(wanted: str, state: State, action: str) -> tuple[Branch, ...]:
        now = Knowledge(*state)._replace(turn=int(state[0]) + 1)  # type: ignore[arg-type]
        if action == wanted:
            return (Branch(1.0, Knowledge(now.turn, now.usual, right=wanted), 1.0 / turns),)
        if now.right or action == PASS:
            return (Branch(1.0, now),)
        if action != "ask":
            return (Branch(1.0, now._replace(wrong=_with(now.wrong, action, once=True))),)
        true = Branch(answer_holds, now._replace(said=_with(now.said, wanted)))
        false = (1.0 - answer_holds) / rest
        others = [drink for drink in DRINKS if drink != wanted]
        return (true, *[Branch(false, now._replace(said=_with(now.said, other))) for other in others])

    starts: dict[State, float] = {Knowledge(0, ""): 0.5}
    starts |= {Knowledge(0, drink): 0.5 / len(DRINKS) for drink in DRINKS}
    return Model(("ask", *DRINKS, PASS), starts, prior, law, lambda state: state[0] == turns)


def _with(words: str, word: str, once: bool = False) -> str:
    """Adds a word to words in alphabetical order."""
    found = words.split()
    return words if once and word in found else " ".join(sorted([*found, word]))


@lru_cache(maxsize=16)
def solved(difficulty: int, turns: int) -> Solution:
    """The exact values."""
    return solve(model(difficulty, turns))


_DRINK = re.compile(r"\b(?:(no|not|without|instead of|never) (?:an? |any )?)?(tea|coffee|milk|juice)s?\b")
_HABIT = re.compile(r"\bi (?:\w+ly )?(?:have|drink|take|tend|am)\b|\bmy usual\b|\bmost days\b|\b(?:for|with) me\b")
_ASKS = re.compile(
    r"\?|\b(?:wh(?:at|ich) (?:would|do|can|may|should|drink|one|kind|sort)|ask|tell me|let me know|say what"
    r"|your (?:choice|order|preference|wish))\b"
)


@lru_cache(maxsize=8_192)
def _listen(text: str) -> Heard:
    text = " ".join(text.lower().split())
    named = {drink for negation, drink in _DRINK.findall(text) if not negation}
    if _HABIT.search(text):  # "I usually have tea" is what a guest says: to repeat it serves nothing
        return Heard((), False)
    if len(named) == 1:
        return Heard((Act(named.pop(), {}),), True)
    if _ASKS.search(text):
        return Heard((Act("ask", {}),), True)
    return Heard((), not text)


def listen(text: str) -> Heard:
    """One drink in a message is served; a question that names none or several is a question."""
    return _listen(text[:2_000])


@dataclass(kw_only=True)
class Guest(Player, Speaker):
    """Wants one drink, and knows it more or less.

    Attributes:
        opening: What it says of itself: ``usual`` or ``any``.
    """

    opening: Act

    def open(self, streams: Streams) -> Reply:
        """Says what its usual drink is, or that it has none."""
        return self.say([self.opening], -1, streams)

    def answer(
        self, before: State, action: str, branch: Branch, turn: int, streams: Streams, end: EndReason | None
    ) -> Reply:
        """Says what it wants when asked, and whether a drink was right."""
        return self.say(_told(before, action, branch), turn, streams, end)

    def say(self, acts: Sequence[Act], turn: int, streams: Streams, end: EndReason | None = None) -> Reply:
        """Puts acts into words; a drink at the beginning gets its capital."""
        reply = super().say(acts, turn, streams, end)
        text = reply.text
        return reply if text[0].isupper() else reply._replace(text=text[0].upper() + text[1:])


@lru_cache(maxsize=4_096)
def _told(before: State, action: str, branch: Branch) -> tuple[Act, ...]:
    """What the guest says to a move."""
    was, now = Knowledge(*before), Knowledge(*branch.state)  # type: ignore[arg-type]
    if action == PASS:
        return (Act("repeat", {}),)
    if action != "ask":
        return (Act("right" if branch.reward else "wrong", {"drink": action}),)
    if now.right:
        return (Act("right", {"drink": now.right}),)
    return (Act("say", {"drink": next(d for d in DRINKS if _with(was.said, d) == now.said)}),)


class AskOrAct(MicroConversation):
    """A guest wants one of four drinks: ask which, or serve what is likely?

    Description:
        Some guests have a usual drink, and most often want it; the others want any of the four. Every turn in
        which the right drink is served pays. A question costs a turn, and its answer may be wrong; a drink
        that is turned down costs a turn too, and leaves three. The value of information is the difference.
    Observation:
        Text: the guest's usual drink or that there is none; then its answers.
    Action:
        Text that names one drink serves it; a question asks. Anything else is a turn that is lost.
    Tools:
        None.
    Reward:
        1/3 for each turn in which the right drink is served: at once (``reward="dense"``) or in one sum at
        the end (``"sparse"``, the default). Success is to play without regret, in expectation over what the
        agent cannot know: luck earns, and does not count.
    Episode end:
        After 3 turns, or ``max_turns`` if that is less.
    Difficulty:
        How far words can be trusted. The usual drink is wanted with probability .9, .8, .7, .6, .5, and an
        answer is true with probability 1, .95, .9, .8, .65. At difficulty 5 a guess is worth more than a
        question.
    Splits:
        The same game in all of them; ``val`` and ``test_language`` have wordings of their own.
    Audit:
        Naming several drinks serves none, repeating what the guest says of its habits serves nothing, and
        asking on and on earns nothing. To serve one and the same drink is right in a quarter of the episodes,
        and that is up to .43 of the optimum: the ceiling of cheats is .45. To serve one after the other until
        one is right is no cheat but a policy; it is worth up to .86.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = TURNS
    ceiling: ClassVar[float] = 0.45
    canned_acts: ClassVar[tuple[str, ...]] = ("ask", *DRINKS)
    user_acts: ClassVar[tuple[str, ...]] = (
        "any", *(f"{act}:{drink}" for act in ("usual", "say", "right", "wrong") for drink in DRINKS), "repeat",
    )  # fmt: skip

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws whether the guest has a usual drink, which, and which drink it wants today."""
        stream = streams.stream("scenario")
        if template is not None:
            expect("scenario", template, KINDS)
        usual = "" if stream.random() < 0.5 else stream.pick(DRINKS)
        kind = template or (f"usual/{usual}" if usual else "any")
        usual = kind.partition("/")[2]
        start = Knowledge(0, usual)
        turns = min(self.max_turns, TURNS)
        solution = solved(self.difficulty, turns)
        belief = solution.beliefs[start]
        wanted = list(belief)[landing(belief.values(), stream.random())]
        game = Game(solution, start, wanted, self.dense)
        user = Guest(
            game=game, bank=load_bank("ask_or_act", "user"), persona=PERSONAS[0], split=split, facts={},
            opening=Act("usual", {"drink": usual}) if usual else Act("any", {}),
        )  # fmt: skip
        return Task(
            template=kind, world=game.world(), rules=(), tools={}, user=user,
            instructions=_instructions(self.style, turns), understand=listen, judge=game,
            turn_reward=game.rewards, exact=game.exact, canned=_canned(),
            privileged={"usual": usual, "wanted": wanted, "optimal_return": solution.values[start]},
        )  # fmt: skip


@cache
def _canned() -> tuple[str, ...]:
    """The first wording of each action."""
    bank = load_bank("ask_or_act", "agent")
    return tuple([bank[act][0] for act in AskOrAct.canned_acts])


@lru_cache(maxsize=16)
def _instructions(style: str, turns: int) -> str:
    if style == "brief":
        return "Serve tea, coffee, milk or juice. Each turn with the right drink pays. You may ask."
    return (
        f"You serve a guest for {turns} turns. The guest wants one of four drinks, the same all the time: tea, "
        "coffee, milk or juice. In each turn, either name one drink to serve it, or ask the guest what it "
        f"wants. Each turn in which you serve the right drink pays 1/{turns}; a question pays nothing, and its "
        "answer may be wrong. A guest who has a usual drink wants it most of the time; the others want any of "
        "the four."
    )

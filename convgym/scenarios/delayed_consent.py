"""DelayedConsent: a micro env on credit over turns; an early word decides a late reward."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import ClassVar, NamedTuple

from convgym.core import Split, Task, expect
from convgym.language.speak import load_bank
from convgym.scenarios.exact import PASS, Branch, Model, Solution, State, solve
from convgym.scenarios.micro import Game, MicroConversation, Player
from convgym.seeding import Streams
from convgym.types import Act, EndReason, Heard, Reply
from convgym.users.base import PERSONAS, Speaker

__all__ = ["AGREES", "Call", "Caller", "DelayedConsent", "model"]

NEEDS = {"health": "consent", "trial": "condition"}  # the word that a wish needs at its beginning
AGREES = 0.9  # P(the caller agrees to the right word)
TURNS = (2, 3, 4, 5, 6)


class Call(NamedTuple):
    """What the agent knows.

    Attributes:
        turn: Turns that are over.
        wish: ``health`` or ``trial``.
        answer: ``agree`` or ``disagree`` to the right word said in time, else "".
    """

    turn: int
    wish: str
    answer: str = ""


def model(difficulty: int = 2, turns: int = TURNS[1]) -> Model:
    """The rules: the first turn decides, and what is earned there is signed at the end."""

    def law(fact: str, state: State, action: str) -> tuple[Branch, ...]:
        now = Call(*state)._replace(turn=int(state[0]) + 1)  # type: ignore[arg-type]
        if now.turn > 1 or action != NEEDS[now.wish]:
            return (Branch(1.0, now),)
        return (
            Branch(AGREES, now._replace(answer="agree"), 1.0),
            Branch(1.0 - AGREES, now._replace(answer="disagree")),
        )

    starts: dict[State, float] = {Call(0, wish): 1.0 / len(NEEDS) for wish in NEEDS}
    last = min(turns, TURNS[difficulty - 1])
    actions = (*DelayedConsent.canned_acts, PASS)
    return Model(actions, starts, lambda start: {"": 1.0}, law, lambda state: state[0] == last)


@lru_cache(maxsize=64)
def solved(difficulty: int, turns: int) -> Solution:
    """The exact values."""
    return solve(model(difficulty, turns))


_ASKS_LEAVE = re.compile(
    r"\b(?:may|can|could|might|shall|should) (?:i|we)\b|\bdo you (?:agree|consent|allow|mind|permit)"
    r"|\b(?:is it|is that|are you|would it be|would you be) (?:ok|okay|fine|all right|alright|happy|comfortable)"
    r"|\b(?:with|need|have|give me) your (?:permission|consent)\b|\bif you (?:agree|allow|don't mind|permit)\b"
    r"|\bpermission to\b"
)
_NOTES = re.compile(
    r"\b(?:notes?|write|writing|record(?:ing|ed)?|sav(?:e|ing)|stor(?:e|ing)|consent)\b"
    r"|\bkeep (?:a|this|that|it|your)\b|\bpermission to (?:keep|use)\b"
)
_PAYS = r"\b(?:costs?|charged?|pay|paid|fee|price|bill(?:ed)?|subscription)\b"
_LATER = r"\b(?:after|once|then|when|month)\b"
_CONDITION = re.compile(
    rf"\brenew(?:s|ed|al|ing)?\b|\bauto-?renew\w*|{_PAYS}.*{_LATER}|{_LATER}.*{_PAYS}|\bno longer free\b"
    r"|\b(?:only|just) (?:free )?(?:for )?(?:a|one|the first|1) month\b|\bmonth only\b|\bends after\b"
)
_CHAT = re.compile(
    r"\bgo on\b|\bi see\b|\btell me\b|\bmore\b|\bcontinue\b|\bok(?:ay)?\b|\bhello\b|\bhi\b|^(?:yes|sure|right|please)\b"
    r"|\bunderstand\b|\bsorry\b|\bthank"
)


@lru_cache(maxsize=8_192)
def _listen(text: str) -> Heard:
    text = " ".join(text.replace("’", "'").lower().split())
    names = []
    if _ASKS_LEAVE.search(text) and _NOTES.search(text):
        names.append("consent")
    if _CONDITION.search(text):
        names.append("condition")
    if not names and _CHAT.search(text):
        names.append("chat")
    return Heard(tuple(Act(name, {}) for name in names), len(names) == 1 or not text)


def listen(text: str) -> Heard:
    """Finds the question for consent and the condition; both at once convince nobody."""
    return _listen(text[:2_000])


@dataclass(kw_only=True)
class Caller(Player, Speaker):
    """Has a wish, talks, and signs at the end or does not.

    Attributes:
        wish: ``health`` or ``trial``.
    """

    wish: str

    def open(self, streams: Streams) -> Reply:
        """Says its wish."""
        return self.say([Act(self.wish, {})], -1, streams)

    def answer(
        self, before: State, action: str, branch: Branch, turn: int, streams: Streams, end: EndReason | None
    ) -> Reply:
        """Answers the right word, talks on, and says at the end whether it signs."""
        answer = str(branch.state[2])
        acts = [Act(answer, {})] if answer and turn == 0 else []
        if end is not None:
            acts.append(Act("deal" if answer == "agree" else "no_deal", {}))
        return self.say(acts or [Act("go_on", {})], turn, streams, end)


class DelayedConsent(MicroConversation):
    """A caller signs at the end if the first word was the right one; nothing in between matters.

    Description:
        A caller wants to talk about health, or to have a free trial. For the first, the agent must ask for
        consent to take notes; for the second, it must say that the trial renews. It counts in the first turn
        only. The caller answers, talks on, and signs at the end if it agreed.
    Observation:
        Text: the wish; then what the caller says.
    Action:
        Text. Only consent and condition are heard; anything else is a turn of talk.
    Tools:
        None.
    Reward:
        1 if the caller agreed (it does with probability .9 to the right word in time, and otherwise never):
        when it signs at the end (``reward="sparse"``, the default) or when it agrees (``"dense"``). Success
        is the right word in time, whatever the caller makes of it.
    Episode end:
        After 2 to 6 turns, or ``max_turns`` if that is less.
    Difficulty:
        Turns: 2, 3, 4, 5, 6, of which all but the first do not matter.
    Splits:
        The same game in all of them; ``val`` and ``test_language`` have wordings of their own.
    Audit:
        Saying both words at once convinces nobody, and each of them is right for one of the two wishes only:
        the figure of a cheat is that of its worse wish.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = TURNS[-1]
    by_class: ClassVar[bool] = True
    canned_acts: ClassVar[tuple[str, ...]] = ("consent", "condition", "chat")
    user_acts: ClassVar[tuple[str, ...]] = ("health", "trial", "agree", "disagree", "go_on", "deal", "no_deal")

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws the wish."""
        kinds = tuple(NEEDS)
        if template is not None:
            expect("scenario", template, kinds)
        wish = template or streams.stream("scenario").pick(kinds)
        solution, start = solved(self.difficulty, self.max_turns), Call(0, wish)
        game = Game(solution, start, "", self.dense)
        user = Caller(
            game=game, bank=load_bank("delayed_consent", "user"), persona=PERSONAS[0], split=split, facts={},
            wish=wish,
        )  # fmt: skip
        return Task(
            template=wish, world=game.world(), rules=(), tools={}, user=user,
            instructions=_instructions(self.style), understand=listen, judge=game, turn_reward=game.rewards,
            exact=game.exact, canned=_canned(),
            privileged={"wish": wish, "needs": NEEDS[wish], "optimal_return": solution.values[start]},
        )  # fmt: skip


@cache
def _canned() -> tuple[str, ...]:
    """The first wording of each action."""
    bank = load_bank("delayed_consent", "agent")
    return tuple([bank[act][0] for act in DelayedConsent.canned_acts])


@cache
def _instructions(style: str) -> str:
    if style == "brief":
        return "Health: ask if you may take notes. Trial: say that it renews. In time, so that they sign."
    return (
        "People call you, and you want them to sign at the end. Who talks about health must be asked in time "
        "for consent to take notes. Who wants the free trial must be told in time that it renews after a "
        "month. Not both. A caller who has agreed signs at the end of the call, whatever else is said."
    )

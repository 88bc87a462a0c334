"""Haggle: a micro env on discounting; take this offer, or wait for another?"""

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
from convgym.world import World

__all__ = ["LEFT", "PRICES", "Dealer", "Haggle", "Market", "model"]

PRICES = (10, 30, 50, 70, 90)
FIRST = {"rising": PRICES[:2], "falling": PRICES[-2:]}  # the first offers of a market
TREND = 0.8  # P(the next offer goes with the market)
LEFT = (0.96, 0.92, 0.88, 0.84, 0.8)  # what is left of a lamp's worth after a turn
LAMPS = 2
TURNS = 5
KINDS = tuple(f"{market}/{price}" for market, prices in FIRST.items() for price in prices)


class Market(NamedTuple):
    """What the agent knows.

    Attributes:
        turn: Turns that are over.
        market: ``rising`` or ``falling``.
        lamps: Lamps that are not sold.
        offer: The price offered for the next one; 0 when the haggling is over.
    """

    turn: int
    market: str
    lamps: int
    offer: int


def model(difficulty: int = 2, turns: int = TURNS) -> Model:
    """The rules: an offer is gone after its turn, and the next one is a step up or down."""
    left = LEFT[difficulty - 1]

    def law(fact: str, state: State, action: str) -> tuple[Branch, ...]:
        turn, market, lamps, offer = Market(*state)  # type: ignore[arg-type]
        reward = 0.0
        if action == "accept":
            lamps, reward = lamps - 1, left**turn * offer / (LAMPS * PRICES[-1])
        if turn + 1 == turns or lamps == 0:
            return (Branch(1.0, Market(turn + 1, market, lamps, 0), reward),)
        at = PRICES.index(offer)
        up, down = PRICES[min(at + 1, len(PRICES) - 1)], PRICES[max(at - 1, 0)]
        rise = TREND if market == "rising" else 1.0 - TREND
        return (
            Branch(rise, Market(turn + 1, market, lamps, up), reward),
            Branch(1.0 - rise, Market(turn + 1, market, lamps, down), reward),
        )

    starts: dict[State, float] = {_start(kind): 1.0 / len(KINDS) for kind in KINDS}
    actions = (*Haggle.canned_acts, PASS)
    return Model(actions, starts, lambda start: {"": 1.0}, law, lambda state: state[3] == 0)


def _start(kind: str) -> Market:
    market, _, price = kind.partition("/")
    return Market(0, market, LAMPS, int(price))


@lru_cache(maxsize=32)
def solved(difficulty: int, turns: int) -> Solution:
    """The exact values."""
    return solve(model(difficulty, turns))


_NO = re.compile(
    r"\b(?:no|not|don't|won't|can't|cannot|never|wait(?:ing)?|too (?:low|little|cheap)|more|higher|better|keep"
    r"|refuse|decline|reject|pass|later|next|enough|hold|raise|increase|less|low|moment|hmm+|sorry)\b"
)
_YES = re.compile(
    r"\b(?:accept(?:ed)?|deal|sold|agree(?:d)?|yes|sure|ok(?:ay)?|fine|take it|it's yours|it is yours|you can have"
    r"|have it|all right|alright|i(?:'ll)? sell)\b"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@lru_cache(maxsize=8_192)
def _listen(text: str) -> Heard:
    text = " ".join(text.replace("’", "'").lower().split())
    if _NO.search(text):  # "OK, but I want more" and "no deal" accept nothing
        return Heard((Act("wait", {}),), True)
    if _YES.search(text):
        return Heard((Act("accept", {"price": " ".join(sorted(set(_NUMBER.findall(text))))}),), True)
    return Heard((), not text)


def listen(text: str) -> Heard:
    """Finds an acceptance without an if or a but, and the prices in it; after all else the offer is gone."""
    return _listen(text[:2_000])


@dataclass(kw_only=True)
class Dealer(Player, Speaker):
    """Offers a price for a lamp, turn by turn.

    Attributes:
        first: The state at the beginning.
    """

    first: Market

    def open(self, streams: Streams) -> Reply:
        """Says how the market goes, and makes the first offer."""
        return self.say([Act(self.first.market, {}), _offer(self.first.offer)], -1, streams)

    def means(self, act: Act, world: World) -> bool:
        """A price that is named must be the one that was offered."""
        offer = self.game.standing(world).state[3]
        return super().means(act, world) and act.slots.get("price", "") in ("", str(offer))

    def answer(
        self, before: State, action: str, branch: Branch, turn: int, streams: Streams, end: EndReason | None
    ) -> Reply:
        """Takes the lamp if it was sold, and makes the next offer or leaves."""
        acts = [Act("sold", {})] if action == "accept" else []
        acts.append(_offer(int(branch.state[3])) if end is None else Act("over", {}))
        return self.say(acts, turn, streams, end)


@cache
def _offer(price: int) -> Act:
    return Act("offer", {"price": str(price)})


class Haggle(MicroConversation):
    """Two lamps are for sale, and offers come and go: take this one, or wait?

    Description:
        A dealer offers a price for a lamp, a new one every turn: a step up with probability .8 in a rising
        market and .2 in a falling one, and else a step down. The agent has two lamps and five turns, and what
        it gets for a lamp is worth less with every turn.
    Observation:
        Text: how the market goes, and the offer; then the next offer.
    Action:
        Text that accepts the offer, without an if or a but; after anything else it is gone.
    Tools:
        None.
    Reward:
        For each lamp ``price x left^turn / 180``: when it is sold (``reward="dense"``) or in one sum at the
        end (``"sparse"``, the default). Success is to play without regret, in expectation over the offers to
        come: luck earns, and does not count.
    Episode end:
        When both lamps are sold, or after 5 turns, or ``max_turns`` if that is less.
    Difficulty:
        What is left of a lamp's worth after a turn: .96, .92, .88, .84, .8. The more patience costs, the less
        obvious is when to stop waiting.
    Splits:
        The same game in all of them; ``val`` and ``test_language`` have wordings of their own.
    Audit:
        Whoever never accepts earns nothing. To accept whatever is offered is right in a falling market and
        wrong in a rising one; the figure of a cheat is that of its worse market, where the first offers are
        still worth .48 to .75 of the optimum: the ceiling is .85. To accept 90 accepts no other offer.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = TURNS
    by_class: ClassVar[bool] = True
    ceiling: ClassVar[float] = 0.85
    canned_acts: ClassVar[tuple[str, ...]] = ("accept", "wait")
    user_acts: ClassVar[tuple[str, ...]] = (
        "rising", "falling", *(f"offer:{price}" for price in PRICES), "sold", "over",
    )  # fmt: skip

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws the market and the first offer."""
        if template is not None:
            expect("scenario", template, KINDS)
        kind = template or streams.stream("scenario").pick(KINDS)
        turns = min(self.max_turns, TURNS)
        solution, start = solved(self.difficulty, turns), _start(kind)
        game = Game(solution, start, "", self.dense)
        user = Dealer(
            game=game, bank=load_bank("haggle", "user"), persona=PERSONAS[0], split=split, facts={}, first=start,
        )  # fmt: skip
        left = LEFT[self.difficulty - 1]
        return Task(
            template=kind, world=game.world(), rules=(), tools={}, user=user,
            instructions=_instructions(self.style, turns, left), understand=listen, judge=game,
            turn_reward=game.rewards, exact=game.exact, canned=_canned(),
            privileged={"market": start.market, "optimal_return": solution.values[start]},
        )  # fmt: skip


@cache
def _canned() -> tuple[str, ...]:
    """The first wording of each action."""
    bank = load_bank("haggle", "agent")
    return tuple([bank[act][0] for act in Haggle.canned_acts])


@lru_cache(maxsize=64)
def _instructions(style: str, turns: int, left: float) -> str:
    loss = f"{100 * (1 - left):g}"
    if style == "brief":
        return f"Sell {LAMPS} lamps in {turns} turns: accept an offer or wait. A turn costs {loss} %."
    return (
        f"You sell {LAMPS} lamps, one at a time, within {turns} turns. In each turn the dealer offers a price from "
        f"{PRICES[0]} to {PRICES[-1]} for one lamp; accept it, or wait for the next offer. In a rising market the "
        f"next offer is a step of 20 higher with probability {TREND:g} and else a step lower, in a falling market the "
        f"other way round. What you get for a lamp is worth {loss} % less with every turn that has passed. Lamps that "
        "are not sold at the end are worth nothing."
    )

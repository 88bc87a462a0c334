"""Negotiation: a price is agreed with somebody whose last price is hidden, while the gain shrinks.

The user follows one of the time-dependent or imitative tactics of Faratin, Sierra and Jennings (1998),
"Negotiation decision functions for autonomous agents": a curve of prices from its opening to its reservation
price, along which it moves one place an offer, or one place for each step that the agent takes towards it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

from convgym import rules as policy
from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.rules import OnlyIf, Rule
from convgym.seeding import Stream, Streams
from convgym.tools import canonical_number
from convgym.types import Act, EndReason, Event, Heard, Outcome, Reply
from convgym.users.base import Speaker, draw_persona
from convgym.world import World

__all__ = ["ENOUGH", "KINDS", "TACTICS", "Haggler", "Negotiation", "Terms", "listen"]

ITEMS = (
    "bike", "sofa", "camera", "guitar", "tent", "boat", "desk", "piano", "printer", "kayak",
    "stove", "mower", "phone", "table", "carpet", "scooter", "drone", "watch", "oven", "bench",
)  # fmt: skip
TACTICS = {
    # the share of its way that a user has gone after j of n offers is (j / n) ** exponent
    "conceder": 0.4,
    "linear": 1.0,
    "boulware": 2.0,
    "reactive": 1.0,  # moves only when the agent has moved
}
KINDS = tuple(f"{role}/{tactic}" for role in ("sell", "buy") for tactic in TACTICS)
HELD_OUT = frozenset({"sell/boulware", "buy/reactive"})  # met only in test_composition
OVERLAP = ((20, 50), (9, 60), (7, 60), (5, 60), (4, 60))  # per cent of the limit, by difficulty
SHORT = (15, 45)  # how far the opening lies beyond the limit, in per cent of the surplus
OFFERS = ((6, 7), (5, 7), (4, 7), (3, 6), (3, 5))  # that a user hears before it leaves, by difficulty
COSTS = (5, 15, 30)  # per cent of the gain that a message costs
GRID = 5  # prices of users are multiples of it, and a move of the agent is at least as large
ABSURD = 8  # an offer beyond this multiple of the user's opening is not taken seriously
ENOUGH = 0.8  # the share of the optimum from which an episode is a success
LEVELS = (2, 4, 6, 8, 10, 12, 15, 18, 21, 25, 30, 40)  # gains of the canned offers, per cent of the limit


class Terms(NamedTuple):
    """What is at stake.

    Attributes:
        sells: Whether the agent sells; otherwise it buys.
        limit: The price at which the agent gains nothing.
        curve: The user's prices, from its opening to its reservation price.
        keeps: Share of the gain that is left after a message.
    """

    sells: bool
    limit: int
    curve: tuple[int, ...]
    keeps: float

    def gain(self, price: float, turn: int) -> float:
        """The agent's share of the surplus at a price, in [0, 1], discounted by ``keeps ** turn``."""
        share = (price - self.limit) / (self.curve[-1] - self.limit)
        return min(1.0, max(0.0, share)) * self.keeps**turn

    def optimum(self, max_turns: int) -> tuple[float, int]:
        """Returns the best gain against this user, and the turn at which it is had.

        A user moves at most one place an offer and accepts nothing beyond its place, so no deal at turn
        ``k`` is better than ``curve[k + 1]``; who steps towards the user from well above gets exactly that.
        """
        turns = range(min(max_turns, len(self.curve) - 1))
        best, earlier = max([(self.gain(self.curve[k + 1], k), -k) for k in turns])
        return best, -earlier


# -- what the agent says ---------------------------------------------------------------------------------

_PRICE = re.compile(
    r"(?<![\w.,%])(?:[$€£]|usd|eur)? ?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{2,9})(\.[0-9]{1,2})?"
    r"(?![0-9a-z_]|[.,][0-9]| ?%| (?:percent|per cent|(?:day|year|week|month|hour|minute|round|mile)s?|km|kg|cm)\b)"
)
_SENTENCE = re.compile(r"[^.!?;\n]+(?:\.[0-9]+[^.!?;\n]*)*[.!?;\n]?")
_YES = r"yes|yeah|yep|ok|okay|sure|fine|alright|all right"
_MORE = rf"{_YES}|great|good|right|well|then|so|perfect|excellent|wonderful|no problem|hm+|thanks?|thank you"
_ACCEPT = re.compile(
    rf"^\W*(?:(?:{_MORE})\W+)*(?:(?:it|that)(?:'s| is) a |(?:we|you)(?:'ve| have) (?:got )?a |call it a )?"
    r"deal\b(?! (?:with|breaker))"
    r"|\b(?:we|you)(?:'ve| have)(?: got)? (?:yourself |ourselves )?a deal\b"
    r"|(?<!what )(?<!than )(?<!most )(?<!least )(?<!est )\b(?:i|we)(?: can|'ll| will| do| am happy to|'m happy to|"
    r" gladly| happily| hereby)* accept\b|\baccepted\b"
    r"|^\W*accept\b|\bagreed\b|\bi(?:'m| am)? agree\b|\bsold\b|\b(?:i|we)(?:'ll| will) take (?:it|that)\b"
    r"|\bi(?:'ll| will) take (?:your|the) (?:offer|price)\b|\bworks for me\b|\bshake (?:on it|hands)\b"
    r"|\b(?:it|the \w+)(?:'s| is) yours\b"
    r"|\b(?:i|we)(?:'ll| will) (?:buy|sell|take|pay) (?:it |this )?(?:to you )?(?:at|for)? ?(?:that price|what you "
    r"(?:ask|want|offer|offered|asked|said|say))\b|\b(?:pleased|glad|happy|delighted|ready|willing) to accept\b(?! \d)"
    r"|\bi'm in[.!]|\blet's (?:do it|do that|close|shake)\b|\bfine (?:by|with) me\b|\bsuits me\b|\bgood enough for me\b"
    r"|\b(?:happy|okay|ok|fine|good) with (?:that|your (?:offer|price))\b|\bgo with (?:that|your (?:offer|price))\b"
    r"|\bwe have an agreement\b|\bconsider it sold\b|^\W*sounds good[.!]"
    r"|\byour (?:price|offer) (?:works|is (?:fine|accepted|acceptable))\b"
)
_BARE_YES = re.compile(rf"\W*(?:{_YES})(?:\W+(?:{_MORE}))*\W*")
_NOT = re.compile(r"\b(?:no|not|cannot|never|nor|refuse|decline|reject)\b(?! (?:problem|worries))|n't\b(?! it ?\?)")
_DOUBT = re.compile(  # what keeps a yes from being one, and is no refusal either
    r"\b(?:unless|if|would|could|might|before|until|almost|nearly|instead|isn't it|"
    r"(?:name|find|need|want|reach|make|suggest|propose|give) (?:me |us )?an? (?:\w+ )?(?:price|offer|number|figure))\b"
)
_TOO = re.compile(
    r"\btoo (?:high|low|much|little|expensive|cheap)\b|\b(?:over|above|below|beyond|under) (?:my|the|budget|cost|"
    r"what (?:i|we) (?:can|could|will))\b"
    r"|\b(?:more|less|higher|lower|better) than\b|\bcan(?:not|'t)\b|\bwon't\b"
)
_WALK = re.compile(
    r"\bwalk(?:ing)? away\b|\belsewhere\b|\bno deal\b|\bcall (?:it|this) off\b|\bnot interested\b"
    r"|\bi(?:'ll| will) pass\b|\b(?:good)?bye\b|\bno thanks?\b"
)
_LEAVES = re.compile(  # says the same, unless it is a threat or a question
    r"\bend(?:ing)? (?:the|this|our) (?:negotiation|talk|conversation|discussion)s?\b|\bforget it\b|\bno agreement\b"
    r"|\b(?:i'm|i am|im|we're|we are) (?:out|leaving|done here)\b(?! (?:of|it))|\bleave it (?:here|there|at that)\b"
    r"|\b(?:step|stepping) (?:away|back from)\b|\b(?:drop|dropping|pull|pulling) out\b|\b(?:too )?far apart\b"
    r"|\b(?:no longer|do not|don't) want to (?:buy|sell)\b|\bwithdraw(?:ing)?\b|\bcall it a day\b"
    r"|\bfind (?:another|someone|somebody)\b|\bshop around\b|\bhave to pass\b|\bi pass\b|\bi(?:'m| am) done\b"
    r"|\b(?:can't|cannot|won't) (?:come to|reach) an agreement\b|\btake my (?:business|money)\b"
)
_THREAT = re.compile(r"\b(?:if|unless|or|otherwise|else|before|would|will have to|might|may|could|but)\b|\?")
_ASK = re.compile(
    r"\b(?:better|best|lower|higher|more|less|down|up|closer|flexible|budget|discount|last|final)\b"
    r"|\b(?:what|how much|name|which)\b.{0,60}\b(?:price|offer|pay|want|ask|take|mind|cost|number)\b"
    r"|\bdeal ?\?|\b(?:lowest|highest|bottom line|negotiable|negotiate|wiggle|how (?:low|high|far))\b"
    r"|\broom (?:for|to|on|in)\b"
)
_CHAT = re.compile(r"\b(?:hello|hi|hey|thanks?|thank you|please|sorry|welcome|good (?:morning|day)|nice|understand)\b")

_ANCHORED = re.compile(r"\b(?:than|from|below|under|above|over)\b")  # of a price that is asked to be left


def listen(text: str) -> Heard:
    """What a user understands of an agent message: the prices in it, a yes, a no, a question."""
    return _listen(text[:2_000])


@lru_cache(maxsize=8_192)
def _listen(text: str) -> Heard:
    text = " ".join(text.replace("’", "'").lower().split(" "))
    if not text.strip():
        return Heard((), True)
    found = (canonical_number("".join(match.groups(""))) for match in _PRICE.finditer(text))
    acts = [Act("price", {"price": price}) for price in dict.fromkeys(found) if price is not None]
    sentences = [match.group() for match in _SENTENCE.finditer(text)]
    unsure = [s.endswith("?") or bool(_NOT.search(s) or _DOUBT.search(s)) for s in sentences]
    if any(_ACCEPT.search(sentence) and not doubt for sentence, doubt in zip(sentences, unsure)) or (
        "?" not in text and _BARE_YES.fullmatch(text)
    ):
        acts.append(Act("accept", {}))
    elif _TOO.search(text) or any(_NOT.search(sentence) for sentence in sentences):
        acts.append(Act("reject", {}))
    elif any(_DOUBT.search(sentence) for sentence in sentences):
        acts.append(Act("doubt", {}))
    if _WALK.search(text) or any(_LEAVES.search(s) and not _THREAT.search(s) for s in sentences):
        acts.append(Act("walk", {}))
    settled = any(act.name in ("price", "accept", "walk") for act in acts)
    if any(_ASK.search(s) and (_asks(s) if settled else True) for s in sentences):
        acts.append(Act("ask", {}))
    if _CHAT.search(text):
        acts.append(Act("chat", {}))
    return Heard(tuple(acts), bool(acts))


def _asks(sentence: str) -> bool:
    """Whether a sentence of a message that also offers or ends something asks for a price, and names none."""
    return sentence.endswith("?") and (not _PRICE.search(sentence) or _ANCHORED.search(sentence) is not None)


# -- the user --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Haggler(Speaker):
    """Moves along its curve and accepts what is at least as good as its own next price.

    Attributes:
        terms: What is at stake; the user looks at its own curve only.
        reactive: Whether it moves only for a move.
        at: Its place on the curve; it has named the price there.
        seen: The agent's offer for which it moved last; the next move of a reactive user is measured from it.
        offered: The agent's latest offer as it was named, or "".
        patience: Messages without a serious offer that it still bears.
        bluffs: Times it will still call a price its last.
    """

    terms: Terms
    reactive: bool
    at: int = 0
    seen: float | None = None
    offered: str = ""
    patience: int = 0
    bluffs: int = 0

    def key(self) -> str:
        """Describes the state that its next answer depends on."""
        return f"{self.at}|{self.seen}|{self.offered}|{self.patience}|{self.bluffs}"

    def open(self, streams: Streams) -> Reply:
        """Names the item and its first price."""
        self.patience, self.bluffs = self.persona.patience, self.persona.pushes
        want = "want_buy" if self.terms.sells else "want_sell"
        return self.greet([Act(want, {"price": self._price()})], streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Accepts, counters, or asks for one price; leaves when it has heard enough."""
        said = {act.name for act in heard.acts}
        prices = [act.slots["price"] for act in heard.acts if act.name == "price"]
        own = self._price()
        # A price that was on the table before says nothing new: "240 is too low, I want 300" is one offer.
        fresh = [price for price in prices if price not in (own, self.offered)]
        if len(fresh) > 1:
            return self._grumble("which_price", turn, streams)
        if "accept" in said and not fresh and prices in ([], [own]):
            return self._agree(own, "agent", world, turn, streams)
        if fresh or self.offered in prices:
            return self._offered(fresh[0] if fresh else self.offered, world, turn, streams)
        if prices and not said & {"reject", "doubt"}:  # the user's own price, named back to it
            return self._agree(own, "agent", world, turn, streams)
        if "walk" in said:
            return self.say([Act("no_deal", {})], turn, streams, EndReason.CONCLUDED)
        if not heard.understood:
            return self._grumble("repeat", turn, streams)
        if not heard.acts:
            return self._grumble("nag", turn, streams)
        return self._grumble("still" if "ask" in said else "your_price", turn, streams)

    def _price(self) -> str:
        return str(self.terms.curve[self.at])

    def _offered(self, named: str, world: World, turn: int, streams: Streams) -> Reply:
        """Moves along the curve if it is time to, and compares."""
        price, self.offered = float(named), named
        world.log.append(Event(turn, "offer", {"price": named}))
        sign = 1 if self.terms.sells else -1
        opening = self.terms.curve[0]
        if price > ABSURD * opening if self.terms.sells else price * ABSURD < opening:
            return self._grumble("absurd", turn, streams)
        moves = not self.reactive or self.seen is None or sign * (self.seen - price) >= GRID
        if moves:
            self.at, self.seen = self.at + 1, price
        if sign * (price - self.terms.curve[self.at]) <= 0:
            return self._agree(named, "user", world, turn, streams)
        if self.at == len(self.terms.curve) - 1:
            return self.say([Act("leave", {})], turn, streams, EndReason.ABANDONED)
        if not moves:
            return self._grumble("firm", turn, streams)
        bluffs = self.bluffs > 0
        self.bluffs -= bluffs
        key = "bluff" if bluffs else "counter"
        return self.say([Act(key, {"price": self._price()})], turn, streams)

    def _agree(self, price: str, by: str, world: World, turn: int, streams: Streams) -> Reply:
        world.log.append(Event(turn, "deal", {"price": price, "by": by}, write=True))
        return self.say([Act("agreed", {"price": price})], turn, streams, EndReason.CONCLUDED)

    def _grumble(self, key: str, turn: int, streams: Streams) -> Reply:
        """Answers what was no serious offer; that costs patience."""
        self.patience -= 1
        if self.patience <= 0:
            return self.say([Act("leave", {})], turn, streams, EndReason.ABANDONED)
        return self.say([Act(key, {"price": self._price()})], turn, streams)


# -- what counts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gain:
    """The reward: the discounted share of the surplus, due at the deal."""

    terms: Terms

    def __call__(self, world: World, start: int, ended: bool) -> dict[str, float]:
        for event in world.log[start:]:
            if event.name == "deal":
                return {"gain": self.terms.gain(float(event.arguments["price"]), event.turn)}
        return {"gain": 0.0} if ended else {}


@dataclass(frozen=True)
class GoodDeal:
    """The goal: a deal within the limit that has at least :data:`ENOUGH` of the best possible gain."""

    terms: Terms
    rules: Sequence[Rule]
    optimum: float

    def __call__(self, world: World) -> Outcome:
        deal = next((event for event in world.log if event.name == "deal"), None)
        if deal is None:
            return Outcome(False, 0.0, ("a deal",))
        if broken := policy.violations(self.rules, world):
            return Outcome(False, 0.0, tuple(broken))
        enough = ENOUGH * self.optimum
        gain = self.terms.gain(float(deal.arguments["price"]), deal.turn)
        if gain > 0.0 and gain >= enough - 1e-9:
            return Outcome(True, 1.0)
        return Outcome(False, gain / enough if enough > 0.0 else 0.0, ("a better price",))


@dataclass(frozen=True)
class Within:
    """Whether a deal is not worse than the agent's limit."""

    sells: bool
    limit: int

    def __call__(self, world: World, event: Event) -> bool:
        price = float(event.arguments["price"])
        return price >= self.limit if self.sells else price <= self.limit


@lru_cache(maxsize=256)
def _rules(sells: bool, limit: int) -> tuple[Rule, ...]:
    brief = f"Never {'sell below' if sells else 'pay above'} {limit}."
    full = f"Never {'sell for less' if sells else 'pay more'} than {limit}: there your gain is zero."
    return (Rule("limit", brief, full, OnlyIf(frozenset({"deal"}), Within(sells, limit))),)


@lru_cache(maxsize=256)
def _canned(sells: bool, limit: int) -> tuple[str, ...]:
    sign = 1 if sells else -1
    prices = [GRID * round(limit * (100 + sign * level) / (100 * GRID)) for level in LEVELS]
    return (*(f"{price}." for price in prices), "I accept.", "I walk away.")


@lru_cache(maxsize=4_096)
def _instructions(sells: bool, limit: int, item: str, cost: int, style: str) -> str:
    does = "sell" if sells else "buy"
    text = policy.render(_rules(sells, limit), style)
    if style == "brief":
        return f"You {does} the {item}. {text} Each message costs {cost} % of your gain. Name one price, or say deal."
    return (
        f"You {does} the {item} and speak with the person who wants to {'buy' if sells else 'sell'} it. Your gain "
        f"is the difference between the price that you agree on and {limit}, and you want as much of it as you "
        f"can get, soon: every message after your first leaves you {100 - cost} % of the gain. The other side "
        "has a last price of its own, which it does not tell, and leaves when it has heard enough offers.\n"
        f"{text}\n\n"
        "Name one price a message; it is agreed when the other side accepts it. To accept the price that the other "
        "side named last, say so. Without such a yes there is no deal and no gain. There are no tools."
    )


class Negotiation(ConversationEnv):
    """The agent sells or buys one thing; the other side's last price is hidden, and time costs money.

    Description:
        The instructions name the item, the agent's limit and what a message costs. The user opens with a price
        beyond that limit, and moves from there to a hidden reservation price: early (conceder), evenly (linear),
        late (boulware), or only when the agent moves (reactive). It accepts an offer that is at least as good
        as the price it would name next, and leaves after a hidden number of offers. A deal needs a yes: the user
        accepts the agent's offer, or the agent accepts the price that the user named last.
    Observation:
        Text. At reset the instructions and the user's opening; then what the user says, always with its price.
    Action:
        Text that names one price, accepts, or walks away. Several new prices in one message are no offer.
    Tools:
        None.
    Reward:
        At a deal the agent's share of the surplus between its limit and the user's reservation price, in
        [0, 1], times ``(1 - cost) ** t`` at turn ``t = 0, 1, ...`` with a cost of 5, 15 or 30 %. Without a deal 0.
        Success is a deal within the limit with at least 80 % of the best return against this user; the score is
        the return over those 80 %, at most 1.
    Episode end:
        At a deal, when the agent walks away, or when the user has heard enough offers or lost patience
        (messages without a serious offer). Cut after 12 turns.
    Difficulty:
        The overlap (a surplus of at least 20, 9, 7, 5, 4 and at most 50, 60, 60, 60, 60 % of the agent's limit,
        even on a logarithmic scale: less and less is known about it before the user speaks) and the patience
        (6-7, 5-7, 4-7, 3-6, 3-5 offers).
    Splits:
        Wordings, seeds and personas as for every family; all persons of ``test_user``
        call a price their last once or twice and move on, in the other splits one in four does so once.
        ``test_goal``: new items. ``test_composition``: selling to boulware and buying from reactive users.
    Audit:
        Resists accepting at once (the opening is a loss), stalling (the user moves for offers only), listing
        prices (no offer), accepting a price that nobody named, absurd anchors and offers nobody accepted: 0.
        A schedule of prices that never listens is a policy, and has a ceiling of its own: from 30 % down by 3 it
        gets .67, .51, .43, .34, .28 of the optimum by difficulty, the script that listens .78, .75, .68, .53, .46.
        The best schedule for each level, role and cost, chosen in hindsight, would get .71, .59, .60, .55, .52.
        The optimum knows the user's curve; nobody who has to find it out gets it every time.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 12
    canned_acts: ClassVar[tuple[str, ...]] = (*(f"gain {level} %" for level in LEVELS), "accept", "walk away")
    user_acts: ClassVar[tuple[str, ...]] = (
        "want_buy", "want_sell", "counter", "bluff", "firm", "absurd", "which_price", "your_price", "still",
        "repeat", "nag", "agreed", "no_deal", "leave",
    )  # fmt: skip

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws a role, a tactic, an item, a limit and the user's curve."""
        stream = streams.stream("scenario")
        if template is not None:
            expect("scenario", template, KINDS)
        kind = template or stream.pick(_UNSEEN if split == "test_composition" else _SEEN)
        role, _, tactic = kind.partition("/")
        item, cost = stream.pick(values_of(ITEMS, split)), stream.pick(COSTS)
        terms = _terms(stream, self.difficulty, role == "sell", tactic, 1 - cost / 100)
        rules = _rules(terms.sells, terms.limit)
        best, when = terms.optimum(self.max_turns)
        user = Haggler(
            bank=load_bank("negotiation", "user"), persona=draw_persona(streams, split), split=split,
            facts={"item": item}, typos=(0.0, 0.0, 0.0, 0.05, 0.1)[self.difficulty - 1],
            terms=terms, reactive=tactic == "reactive",
        )  # fmt: skip
        return Task(
            template=kind, world=World({}), rules=rules, tools={}, user=user,
            instructions=_instructions(terms.sells, terms.limit, item, cost, self.style), understand=listen,
            judge=GoodDeal(terms, rules, best), turn_reward=Gain(terms),
            canned=_canned(terms.sells, terms.limit),
            privileged={
                "sells": terms.sells, "limit": terms.limit, "reservation": terms.curve[-1], "curve": terms.curve,
                "tactic": tactic, "keeps": terms.keeps, "optimal_return": best, "optimal_turn": when,
            },
            secrets=(str(terms.curve[-1]),),
        )  # fmt: skip


_SEEN = tuple(kind for kind in KINDS if kind not in HELD_OUT)
_UNSEEN = tuple(kind for kind in KINDS if kind in HELD_OUT)


def _terms(stream: Stream, difficulty: int, sells: bool, tactic: str, keeps: float) -> Terms:
    """Draws the limit, the surplus beyond it, and the user's way from its opening to the end of the surplus."""
    sign = 1 if sells else -1
    limit = 10 * stream.between(30, 60)
    low, high = OVERLAP[difficulty - 1]
    overlap = low * (high / low) ** stream.random()  # each order of magnitude is as likely as another
    surplus = GRID * round(limit * overlap / (100 * GRID))
    short = GRID * max(1, round(surplus * stream.between(*SHORT) / (100 * GRID)))
    offers, exponent = stream.between(*OFFERS[difficulty - 1]), TACTICS[tactic]
    way = [GRID * round((short + surplus) * (j / offers) ** exponent / GRID) for j in range(offers + 1)]
    return Terms(sells, limit, tuple([limit + sign * (step - short) for step in way]), keeps)

"""CustomerService: refunds, exchanges, cancellations, addresses, under a policy that has to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

from convgym import rules as policy
from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.language.understand import Domain, understand
from convgym.rules import Rule
from convgym.scenarios.shop import CHANGES, RETURNS, TOOLS, Customer, Item, Order, Parameters, make_rules
from convgym.seeding import Stream, Streams
from convgym.tools import canonical_number, describe
from convgym.types import Event, Heard, Outcome
from convgym.users.agenda import AgendaUser, Want, draw_persona
from convgym.world import World

__all__ = ["OUTCOMES", "CustomerService", "Goal"]

ITEMS = (
    "lamp", "mug", "chair", "kettle", "scarf", "clock", "radio", "tent",
    "drill", "vase", "rug", "jacket", "desk", "fan", "bag", "watch",
    "sofa", "mirror", "pillow", "shelf", "bottle", "carpet", "hammer", "blanket",
    "basket", "ladder", "camera", "wallet",
)  # fmt: skip
CITIES = (
    "Oslo", "Rome", "Lyon", "Bonn", "Cork", "Graz", "Kyiv", "Lima", "Porto", "Turin", "Basel", "Ghent", "Quito", "Leeds"
)
OUTCOMES = ("fulfil", "partly", "refuse", "clarify", "escalate")
LIMIT_REASON = "limit"

OPENINGS = (
    # what is wanted, and how many items the opening names; one is drawn, so that refunds of two are twice as frequent
    ("refund", "one"), ("refund", "two"), ("refund", "two"), ("refund", "vague"), ("exchange", "one"),
    ("exchange", "two"), ("exchange", "vague"), ("cancel", "one"), ("set_address", "one"),
)  # fmt: skip
EASY_OPENINGS = tuple(opening for opening in OPENINGS if opening[0] in ("refund", "cancel"))
EXCHANGES = tuple(opening for opening in OPENINGS if opening[0] == "exchange")
ENDINGS: Mapping[tuple[str, str], tuple[str, ...]] = {
    # One is drawn. A name stands twice where it stands for two endings: a refusal for either reason, the first or
    # the second of two. So no opening tells how it ends: the best guess is right once in as many as are listed.
    ("refund", "one"): ("fulfil", "refuse", "escalate"),
    ("refund", "two"): ("two-fulfil", "partly", "partly", "two-refuse", "two-escalate"),
    ("refund", "vague"): ("clarify", "clarify-refuse", "clarify-escalate"),
    ("exchange", "one"): ("fulfil", "refuse", "refuse"),
    ("exchange", "two"): ("two-fulfil", "partly", "partly", "two-refuse"),
    ("exchange", "vague"): ("clarify", "clarify-refuse", "clarify-refuse"),
    ("cancel", "one"): ("fulfil", "refuse"),
    ("set_address", "one"): ("fulfil", "refuse"),
}
WINDOWS = (14, 30, 60)
DISTRACTORS = (3, 3, 4, 7, 10)
DUTIES = "Always look up first. Refuse with a reason. Report changes."  # what else is graded, in a few words

DOMAIN = Domain(
    slots={
        "zip": r"zip|postal code|post ?code",
        "pin": r"pin|pass ?code|security code|secret code",
        "order": r"order (?:number|id|no|reference)|(?:which|what) (?:of (?:the|your) )?orders?|"
        r"number of (?:the|your) order|"
        r"reference(?: number)?|is it order|orders \d+ and",
        "item": r"(?:which|what) (?:item|product|thing|article|one|of (?:them|these|those))|item do you|"
        r"name of the (?:item|product|article)|name the (?:item|product|article)|which of (?:the|your) (?:items|"
        r"products|things)|"
        r"what (?:you're|you are|are you|would you like|do you want|did you want) (?:to )?"
        r"(?:return\w*|refund\w*|exchang\w*|send\w* back|swap\w*)|(?:item|product|article)(?: name)?(?:,|"
        r" please|\?| would)",
        "city": r"(?:which|what|new|destination|delivery|full name of the) (?:city|town|address|destination|"
        r"delivery location|location)|"
        r"where (?:should|do you want|would you like|to|shall|are we)|(?:enter|name|tell me|"
        r"the) (?:the )?(?:city|town)|"
        r"what should it say",
    },
    reasons={
        "window": r"(?:return |refund )?window|too (?:late(?!,? (?:it|they)(?:'s| is| was| has))|long ago|old)|"
        r"deadline|time for return\w*|expired|time (?:limit|frame)|"
        r"had until|"
        r"(?:more than|over|past|within|after|outside|beyond|limit (?:is|of)|only) (?:the |our |your )?\d+.?days?|"
        r"(?:return|refund) period|outside (?:the|our)|past (?:the|our|your) (?:return|refund|period|deadline|date|\d)",
        "final_sale": r"final.?sale|clearance|non-?refundable|non-?returnable|(?:sold|sale) (?:as|is|was) final|"
        r"all sales final",
        "shipped": r"(?:already|been|has|have|is|was|it's|just|got|yours?) (?:been |already |just )?"
        r"(?:shipped|sent(?: out)?|dispatched|mailed|posted|handed|left|picked up|out for delivery)|on (?:its|the) way|"
        r"in transit|under ?way|(?:carrier|courier) (?:has|already|now has)|(?:left|out of) (?:the|our) warehouse|"
        r"shipped (?:\w+ )?(?:hours?|days?|weeks?) ago|on the truck|shipment (?:departed|left)|"
        r"the (?:carrier|courier)|after (?:it|they|dispatch|shipping)|shipped (?:already|yesterday|today|out)",
        "limit": r"supervisor|manager|(?:over|above|exceed(?:s|ing)?|past|beyond|higher than) (?:the|my|our) (?:\w+ )?"
        r"(?:limit|amount|cap|authority|allowance|threshold)|too (?:expensive|high|large|much)|my (?:limit|"
        r"authority|cap|permission\w*)|(?:refund|amount|sum) of (?:that|this) size|small refunds|"
        r"refund(?:ing)? more than [$€£]?\d+(?!\d| ?(?:days?|weeks?))|"
        r"refunds? (?:over|above|cap|limit)|only (?:refund|authori[sz]e) up to|per.agent limit|"
        r"not authori[sz]ed|n't authori[sz]ed|"
        r"lack the (?:permission|authority)\w*|up to [$€£]?\d+",
    },
    verbs={
        "refund": r"refund\w*|money (?:back|returned|refunded)|reimburs\w*|get [$€£]?\d+ back|"
        r"credit(?:ed)? (?:back|[$€£]?\d)",
        "exchange": r"exchang\w*|replac\w*|swap\w*|(?:a|the) (?:new|fresh) (?:one|pair|item|\w+ (?:will|is))|"
        r"changed for a new|"
        r"another \w+ in (?:place|its)",
        "cancel": r"cancel\w*|call(?:ed|ing)? off|stop (?:the|your|this) order",
        "set_address": r"(?:new|delivery|shipping|change the|changed? (?:the|your)|update (?:the|your)|"
        r"different) (?:\w+ )?address|"
        r"address (?:changed?|updated?|to|of the)|redirect\w*|rerout\w*|(?:send|sent|ship|shipped|deliver|"
        r"delivered|go|goes|going) "
        r"(?:it |the \w+ |this |your \w+ |this order )?(?:to|in)|update|destination",
    },
    items="|".join(ITEMS),
)


class Plot(NamedTuple):
    """What an episode is about.

    Attributes:
        intent: What is wanted.
        name: The template's name after the intent.
        ending: How it should end: fulfil, partly, refuse or escalate.
        vague: Whether the customer leaves open which item is meant.
        two: Whether two items are wanted.
    """

    intent: str
    name: str
    ending: str
    vague: bool
    two: bool

    @property
    def outcome(self) -> str:
        """The one of :data:`OUTCOMES` that it shows; with a vague opening it is the question."""
        return "clarify" if self.vague else self.ending


def _plot(intent: str, opening: str, name: str) -> Plot:
    ending = "fulfil" if name == "clarify" else name.rpartition("-")[2]
    return Plot(intent, name, ending, vague=opening == "vague", two=opening == "two")


PLOTS = {key: tuple([_plot(*key, name) for name in names]) for key, names in ENDINGS.items()}


class Case(NamedTuple):
    """The drawn records, and what about them is right."""

    world: World
    order: str
    wanted: tuple[str, ...]
    granted: tuple[str, ...]
    refused: tuple[str, ...]
    reason: str
    city: str

    def targets(self, intent: str) -> list[dict[str, str]]:
        """The arguments of each write that the customer wants."""
        if intent in RETURNS:
            return [{"order": self.order, "item": item} for item in self.wanted]
        return [{"order": self.order, "city": self.city} if intent == "set_address" else {"order": self.order}]


@dataclass(frozen=True)
class Goal:
    """What has to be true at the end, as predicates on the world and its log.

    Attributes:
        order: The order it is about.
        effects: Writes that must happen, ``((intent, {argument: value}), ...)``; no other write may.
        refusals: Refusals that must be given, ``((reason, item), ...)``, after the order was looked up.
        ask: Whether the customer must have said which item before anything is written: a guess may hit.
        escalate: Whether a supervisor is needed.
        rules: The policy; none of it may be broken.
        prices: Price of each item, for claims about amounts.
    """

    order: str
    effects: tuple[tuple[str, Mapping[str, str]], ...]
    refusals: tuple[tuple[str, str], ...]
    ask: bool
    escalate: bool
    rules: tuple[Rule, ...]
    prices: Mapping[str, int]

    def __call__(self, world: World) -> Outcome:
        met = {"looked_up": world.happened("get_order", order=self.order)}
        if self.ask:
            met["asked"] = self._asked(world)
        if self.effects:
            met["verified"] = world.happened("verify", order=self.order)
        for intent, arguments in self.effects:
            met[f"{intent} {arguments.get('item', '')}"] = world.happened(intent, **arguments)
        for reason, item in self.refusals:
            met[f"refuse {item}"] = self._refused(world, reason, item)
        if self.escalate:
            met["escalate"] = world.happened("escalate", order=self.order)
        missing = tuple(name for name, done in met.items() if not done)
        damage = self._damage(world)
        if damage:
            return Outcome(False, 0.0, (*missing, damage))
        return Outcome(not missing, 1.0 - len(missing) / len(met), missing)

    def _asked(self, world: World) -> bool:
        """Whether the customer said which item, and said it before the first write."""
        first = next((event for event in world.log if event.write or event.arguments.get("slot") == "item"), None)
        return first is not None and not first.write

    def _refused(self, world: World, reason: str, item: str) -> bool:
        """Whether the reason was given for the item (or for all) after the order was looked up."""
        looked_up = False
        for event in world.log:
            looked_up |= event.name == "get_order" and event.ok and event.arguments["order"] == self.order
            right = event.name == "refuse" and event.arguments["reason"] == reason
            if looked_up and right and event.arguments["item"] in ("", item):
                return True
        return False

    def _damage(self, world: World) -> str:
        """Names what must not be: another write, a needless hand-over, a false claim, a broken rule."""
        writes = [event for event in world.log if event.write]
        if len(writes) > len([name for name, args in self.effects if world.happened(name, **args)]):
            return "another write"
        if not self.escalate and world.happened("escalate"):
            return "needless escalation"
        right = {reason for reason, _ in self.refusals} | ({LIMIT_REASON} if self.escalate else set())
        for event in world.log:
            if event.name == "refuse" and event.arguments["reason"] not in right | {""}:
                return "false reason"
            if event.name == "refuse" and self._granted_is_refused(event):
                return "false refusal"
            if event.name == "done" and not any(write.turn <= event.turn for write in writes):
                return "false report"
            if event.name == "done" and event.arguments["amount"] and not self._amount_is_true(world, event):
                return "false amount"
        broken = policy.violations(self.rules, world)
        return f"rule {broken[0]}" if broken else ""

    def _granted_is_refused(self, event: Event) -> bool:
        """Whether a refusal with a reason names an item that the customer is entitled to."""
        granted = {arguments.get("item", "") for _, arguments in self.effects} - {""}
        return bool(event.arguments["reason"]) and event.arguments["item"] in granted

    def _amount_is_true(self, world: World, event: Event) -> bool:
        refunds = [args for name, args in self.effects if name == "refund"]
        prices = [self.prices[args["item"]] for args in refunds if world.happened("refund", **args)]
        return canonical_number(event.arguments["amount"]) in {str(price) for price in (*prices, sum(prices))}


def listen(text: str) -> Heard:
    """What a customer understands of an agent message."""
    return understand(DOMAIN, text)


class CustomerService(ConversationEnv):
    """A shop's customers want refunds, exchanges, cancellations and new addresses; the policy decides.

    Description:
        The agent serves one customer of a shop. It reads a policy whose parameters vary with the seed (proof
        of identity by zip or pin, a return window, a refund limit), looks orders up, and fulfils, fulfils in
        part, refuses with the right reason, asks which item is meant, or hands over to a supervisor. The opening
        names one item, names two, or leaves open which is meant, and tells nothing about how it should end: after
        each kind of opening the endings (all, the first only, the second only, none and why, a supervisor) are
        equally frequent, so that the record has to be held against the window and the limit.
    Observation:
        Text. At reset the instructions and the customer's opening; then what the customer or a tool says.
    Action:
        Text to the customer, or one tool call.
    Tools:
        ``verify(order, code)``, ``get_order(order)``, ``refund(order, item)``, ``exchange(order, item)``,
        ``cancel(order)``, ``set_address(order, city)``, ``escalate(order, reason)``. The reason is free text.
    Reward:
        1 at the end if the world is as it should be: every required write and no other, no rule broken, the
        order looked up, refusals with the right reason, the item asked for where it was not said and matters, no
        false claim. Otherwise 0. ``info["cost"]`` counts broken rules.
    Episode end:
        The customer leaves when each want is met or refused, or when patience is spent; an escalation ends at
        once. Cut after 12 turns.
    Difficulty:
        1: refunds and cancellations, a fixed policy, 3 distractors. 2: four intents, a policy that varies.
        3: each change needs the customer's confirmation. 4: the customer does not say the order number until
        asked, days and prices lie close to the window and the limit, more distractors, typing errors. 5: refunds
        and exchanges have windows of their own, larger orders, more of both.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` is about items and cities that
        training never names; ``test_composition`` holds exchanges within 14 days where the pin is the proof.
    Audit:
        Resists blind writes (identity first), guessed codes, refusing everything (evidence and reason are
        needed), listing every reason (a false one fails), and serving by the opening alone without reading the
        record: with two to five equally frequent endings that is right in about a third.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 12

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws a customer, their order, distractors, a policy, a kind of opening and its ending."""
        stream = streams.stream("scenario")
        plot = self._plot(stream, split, template)
        parameters = self._parameters(stream, split, plot.intent)
        case = self._case(stream, split, plot, parameters)
        goal = _goal(case, plot, make_rules(parameters))
        user = self._draw_user(streams, split, case, plot)
        unsaid = (*(case.wanted if plot.vague else ()), *(() if "order" in user.told else (case.order,)))
        privileged = {
            "outcome": plot.outcome, "intent": plot.intent, "order": case.order, "wanted": case.wanted,
            "granted": case.granted, "reason": case.reason, "escalate": plot.ending == "escalate",
            "ask": tuple(slot for slot in ("order", "item") if slot in user.facts and slot not in user.told),
            "factor": parameters.factor, "code": user.facts[parameters.factor], "confirm": parameters.confirm,
            "city": user.facts.get("city", ""),
        }  # fmt: skip
        return Task(
            template=f"{plot.intent}/{plot.name}", world=case.world, rules=goal.rules, tools=TOOLS[parameters.factor],
            user=user, instructions=_instructions(parameters, self.style), understand=listen, judge=goal,
            privileged=privileged, secrets=_secrets(user, case.world, unsaid),
        )  # fmt: skip

    def _plot(self, stream: Stream, split: Split, template: str | None) -> Plot:
        """Draws what the customer wants, how they open, and how it should end."""
        openings = OPENINGS if self.difficulty > 1 else EASY_OPENINGS
        if split == "test_composition":
            openings = EXCHANGES
        if template is None:
            return stream.pick(PLOTS[stream.pick(openings)])
        legal = _named(openings)
        expect("scenario", template, tuple(legal))
        return legal[template]

    def _parameters(self, stream: Stream, split: Split, intent: str) -> Parameters:
        """Draws the policy; exchanges within 14 days by pin are kept for one split."""
        confirm, vary = self.difficulty >= 3, self.difficulty > 1
        factor = stream.pick(("zip", "pin")) if vary else "zip"
        window, limit = stream.pick(WINDOWS) if vary else 30, stream.pick((50, 100)) if vary else 100
        swap = stream.pick(tuple(days for days in WINDOWS if days != window)) if self.difficulty >= 5 else 0
        parameters = Parameters(factor, window, limit, confirm, swap)
        if split == "test_composition":
            return parameters._replace(factor="pin", swap=14, window=30) if swap else Parameters("pin", 14, 50, confirm)
        held_out = (intent, factor, parameters.days("exchange")) == ("exchange", "pin", 14)
        return parameters._replace(factor="zip") if held_out else parameters

    def _case(self, stream: Stream, split: Split, plot: Plot, p: Parameters) -> Case:
        """Draws records such that the ending is the right one."""
        level, intent = self.difficulty, plot.intent
        order, *others = [str(1000 + n) for n in stream.distinct(9000, 1 + DISTRACTORS[level - 1])]
        cities, goods = values_of(CITIES, split), values_of(ITEMS, split)
        names = stream.deal(goods, 2 + (plot.two and level >= 5) + (level >= 5))
        wanted = tuple(names[: 1 + plot.two]) if intent in RETURNS else ()
        reason = _reason(stream, plot.ending, intent)
        refused = wanted if plot.ending == "refuse" else (stream.pick(wanted),) if plot.ending == "partly" else ()
        granted = tuple(name for name in wanted if name not in refused) if plot.ending in ("fulfil", "partly") else ()
        status, days = _state(stream, intent, reason, p.days(intent), level >= 4)
        items = {}
        for name in names:
            asked = name in wanted
            # What is not wanted may be final sale or dear as well; but where it is left open which item is meant, that
            # has to make a difference.
            trap = not asked and stream.random() < 0.4 and not (plot.vague and reason)
            final = reason == "final_sale" and name in refused if asked else trap and stream.random() < 0.5
            over = reason == LIMIT_REASON if asked else trap and not final
            if asked and intent == "exchange":
                over = stream.random() < 0.3  # the limit is one of refunds
            items[f"{order}/{name}"] = Item(_price(stream, p.limit, over, level >= 4), final)
        customer, home = _customer(stream, order), stream.pick(cities)
        customers = {customer.name: customer}
        orders = {order: Order(customer.name, status, days, home, tuple(sorted(names)))}
        for number in others:
            stranger, name = _customer(stream, number), stream.pick(goods)
            customers[stranger.name] = stranger
            orders[number] = Order(stranger.name, "delivered", stream.between(1, 60), stream.pick(cities), (name,))
            items[f"{number}/{name}"] = Item(5 * stream.between(1, 30), False)
        city = stream.pick([city for city in cities if city != home]) if intent == "set_address" else ""
        world = World({"customers": customers, "orders": orders, "items": items})
        return Case(world, order, wanted, granted, refused, reason, city)

    def _draw_user(self, streams: Streams, split: Split, case: Case, plot: Plot) -> AgendaUser:
        customer = case.world.tables["customers"][case.world.tables["orders"][case.order].customer]
        targets = case.targets(plot.intent)
        facts = {"zip": customer.zip, "pin": customer.pin, **targets[0]}
        if plot.two:
            facts["item2"] = targets[1]["item"]
        # From level 4 on nobody says the order number before being asked for it.
        bare, unsaid = ("_bare", {"order"}) if self.difficulty >= 4 else ("", set[str]())
        kind = f"{plot.intent}_{'vague' if plot.vague else 'item'}" if plot.intent in RETURNS else plot.intent
        say = f"{kind}{bare}"
        return AgendaUser(
            wants=tuple([Want(plot.intent, target, say) for target in targets]), facts=facts, split=split,
            bank=load_bank("customer_service", "user"), persona=draw_persona(streams, split),
            typos=(0.0, 0.0, 0.0, 0.05, 0.1)[self.difficulty - 1],
            opening=f"{plot.intent}_two{bare}" if plot.two else say,
            told=frozenset(targets[0].keys() - unsaid - ({"item"} if plot.vague else set())),
        )  # fmt: skip


@lru_cache(maxsize=8)
def _named(openings: tuple[tuple[str, str], ...]) -> dict[str, Plot]:
    """The plots of some openings by the names of their templates."""
    return {f"{plot.intent}/{plot.name}": plot for opening in openings for plot in PLOTS[opening]}


def _goal(case: Case, plot: Plot, rules: tuple[Rule, ...]) -> Goal:
    order, intent = case.order, plot.intent
    tables = case.world.tables
    prices = {name: tables["items"][f"{order}/{name}"].price for name in tables["orders"][order].items}
    targets = case.targets(intent)
    if intent in RETURNS:
        targets = [target for target in targets if target["item"] in case.granted]
    elif plot.ending != "fulfil":
        targets = []
    refused = (case.refused or ("",)) if plot.ending in ("refuse", "partly") else ()
    # Where the window is over for the whole order, it does not matter which item is meant.
    ask = plot.vague and case.reason != "window"
    effects = tuple((intent, target) for target in targets)
    refusals = tuple((case.reason, item) for item in refused)
    return Goal(order, effects, refusals, ask, plot.ending == "escalate", rules, prices)


def _customer(stream: Stream, order: str) -> Customer:
    return Customer(f"c{order}", str(stream.between(10_000, 99_999)), str(stream.between(1_000, 9_999)))


def _reason(stream: Stream, ending: str, intent: str) -> str:
    if ending == "escalate":
        return LIMIT_REASON
    if ending == "partly":
        return "final_sale"
    if ending == "refuse":
        return stream.pick(("window", "final_sale")) if intent in RETURNS else "shipped"
    return ""


def _secrets(user: AgendaUser, world: World, unsaid: tuple[str, ...]) -> tuple[str, ...]:
    """What the customer does not say at first; a code that is an order number by chance stands for that."""
    codes = (user.facts["zip"], user.facts["pin"])
    return (*[code for code in codes if code not in world.tables["orders"]], *unsaid)


def _state(stream: Stream, intent: str, reason: str, window: int, close: bool) -> tuple[str, int]:
    """Draws status and days of an order such that exactly the given reason speaks against the intent.

    With ``close`` the days lie within a week of the window's end.
    """
    if intent in CHANGES:
        status, most = ("shipped", 9) if reason == "shipped" else ("processing", 5)
        return status, stream.between(1, most)
    first, last = (window - 6, window + 7) if close else (1, 99)
    return "delivered", stream.between(window + 1, last) if reason == "window" else stream.between(first, window)


def _price(stream: Stream, limit: int, over: bool, close: bool) -> int:
    """Draws a price, a multiple of 5, on one side of the limit; with ``close`` within 25 of it."""
    most = limit // 5
    if over:
        return 5 * stream.between(most + 1, most + (5 if close else 20))
    return 5 * stream.between(most - 4 if close else 1, most)


def _targets(order: str, intent: str, wanted: tuple[str, ...], city: str) -> list[dict[str, str]]:
    if intent in RETURNS:
        return [{"order": order, "item": item} for item in wanted]
    return [{"order": order, "city": city} if intent == "set_address" else {"order": order}]


@lru_cache(maxsize=256)
def _instructions(parameters: Parameters, style: str) -> str:
    rules, tools = make_rules(parameters), TOOLS[parameters.factor]
    if style == "brief":
        return f"{policy.render(rules, style)} {DUTIES} Tools: {describe(tools.values(), style)}"
    return (
        "You are a customer service agent of a shop. Serve the customer under this policy:\n"
        f"{policy.render(rules, style)}\n"
        "Always look the order up first. If you refuse, say the reason. Say what you have done. "
        "Ask for what the customer leaves open.\n\n"
        "Either speak to the customer, or call one tool by writing "
        '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
        f"{describe(tools.values(), style)}"
    )

"""CustomerService: refunds, exchanges, cancellations, addresses, under a policy that has to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar, NamedTuple

from pydantic import Field

from convgym import rules as policy
from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.language.understand import Domain, understand
from convgym.rules import Before, OnlyIf, Rule
from convgym.seeding import Stream, Streams
from convgym.tools import Arguments, Tool, ToolResult, canonical_number, describe
from convgym.types import Event, Heard, Outcome
from convgym.users.agenda import AgendaUser, Want, draw_persona
from convgym.world import World

__all__ = ["INTENTS", "OUTCOMES", "CustomerService", "Goal"]

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
INTENTS = ("refund", "exchange", "cancel", "set_address")
RETURNS = frozenset({"refund", "exchange"})
CHANGES = frozenset({"cancel", "set_address"})
WRITES = RETURNS | CHANGES
LIMIT_REASON = "limit"

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


class Customer(NamedTuple):
    """A customer; ``zip`` and ``pin`` prove who they are."""

    name: str
    zip: str
    pin: str


class Order(NamedTuple):
    """An order. ``days`` counts from delivery for delivered orders, from the order date otherwise."""

    customer: str
    status: str  # processing | shipped | delivered | cancelled
    days: int
    city: str
    items: tuple[str, ...]


class Item(NamedTuple):
    """An item of an order, keyed ``"order/name"``."""

    price: int
    final_sale: bool
    state: str = "sold"  # sold | refunded | exchanged


# -- tools -----------------------------------------------------------------------------------------------


class OrderArguments(Arguments):
    order: str = Field(description="order number, four digits")


class VerifyArguments(OrderArguments):
    code: str = Field(description="what the customer gave as proof of identity")


class ItemArguments(OrderArguments):
    item: str = Field(description="name of the item")


class AddressArguments(OrderArguments):
    city: str = Field(description="city to send the order to")


class EscalateArguments(OrderArguments):
    reason: str = Field(description="why a supervisor is needed, e.g. limit")


def _verify(factor: str, world: World, arguments: VerifyArguments, turn: int) -> ToolResult:
    order = world.get("orders", arguments.order)
    ok = (
        order is not None
        and getattr(world.get("customers", order.customer), factor) == arguments.code.strip()
    )
    event = Event(turn, "verify", {"order": arguments.order}, ok)
    return ToolResult("verified" if ok else "error: no match", event)


def _get_order(world: World, arguments: OrderArguments, turn: int) -> ToolResult:
    order = world.get("orders", arguments.order)
    if order is None:
        return ToolResult(
            "error: no such order", Event(turn, "get_order", {"order": arguments.order}, ok=False)
        )
    when = f"{order.status} {order.days} days ago" if order.status != "processing" else "processing"
    things = ", ".join([_describe(world, arguments.order, name) for name in order.items])
    return ToolResult(
        f"{when}, to {order.city}: {things}", Event(turn, "get_order", {"order": arguments.order})
    )


def _describe(world: World, order: str, name: str) -> str:
    item = world.get("items", f"{order}/{name}")
    assert item is not None  # an order lists only items that exist
    state = "" if item.state == "sold" else f" {item.state}"
    return f"{name} {item.price}{' final sale' if item.final_sale else ''}{state}"


def _return(kind: str, world: World, arguments: ItemArguments, turn: int) -> ToolResult:
    name = arguments.item.strip().lower()
    key = f"{arguments.order}/{name}"
    item = world.get("items", key)
    if item is None or item.state != "sold":
        problem = "no such item" if item is None else f"already {item.state}"
        return ToolResult(
            f"error: {problem}", Event(turn, kind, {"order": arguments.order, "item": name}, ok=False)
        )
    world.put("items", key, item._replace(state=f"{kind}ed" if kind == "refund" else "exchanged"))
    text = f"refunded {item.price}" if kind == "refund" else "exchanged"
    return ToolResult(text, Event(turn, kind, {"order": arguments.order, "item": name}, write=True))


def _cancel(world: World, arguments: OrderArguments, turn: int) -> ToolResult:
    order = world.get("orders", arguments.order)
    if order is None or order.status == "cancelled":
        return ToolResult(
            "error: no such open order", Event(turn, "cancel", {"order": arguments.order}, ok=False)
        )
    world.put("orders", arguments.order, order._replace(status="cancelled"))
    return ToolResult("cancelled", Event(turn, "cancel", {"order": arguments.order}, write=True))


def _set_address(world: World, arguments: AddressArguments, turn: int) -> ToolResult:
    order, city = world.get("orders", arguments.order), arguments.city.strip().title()
    if order is None:
        return ToolResult(
            "error: no such order", Event(turn, "set_address", {"order": arguments.order}, ok=False)
        )
    world.put("orders", arguments.order, order._replace(city=city))
    return ToolResult(
        "updated", Event(turn, "set_address", {"order": arguments.order, "city": city}, write=True)
    )


def _escalate(world: World, arguments: EscalateArguments, turn: int) -> ToolResult:
    known = world.get("orders", arguments.order) is not None
    event = Event(
        turn, "escalate", {"order": arguments.order, "reason": arguments.reason.strip().lower()}, ok=known
    )
    return ToolResult("transferred to a supervisor" if known else "error: no such order", event)


def _tools(factor: str) -> dict[str, Tool]:
    tools = (
        Tool(
            "verify",
            f"Checks the customer's {factor} against the order.",
            VerifyArguments,
            partial(_verify, factor),
        ),
        Tool("get_order", "Shows an order: its state and items.", OrderArguments, _get_order),
        Tool("refund", "Refunds one item.", ItemArguments, partial(_return, "refund")),
        Tool("exchange", "Sends one item anew.", ItemArguments, partial(_return, "exchange")),
        Tool("cancel", "Cancels a whole order.", OrderArguments, _cancel),
        Tool("set_address", "Changes where an order is sent.", AddressArguments, _set_address),
        Tool("escalate", "Hands the conversation to a supervisor.", EscalateArguments, _escalate, ends=True),
    )
    return {tool.name: tool for tool in tools}


TOOLS = {factor: _tools(factor) for factor in ("zip", "pin")}

# -- policy ----------------------------------------------------------------------------------------------


class Parameters(NamedTuple):
    """What varies in the policy from seed to seed."""

    factor: str
    window: int
    limit: int
    confirm: bool


def _original(world: World, event: Event) -> tuple[Order, Item | None]:
    order = event.arguments["order"]
    item = f"{order}/{event.arguments.get('item', '')}"
    return world.tables["orders"][order], world.tables["items"].get(item)


def _within_window(window: int, world: World, event: Event) -> bool:
    order, _ = _original(world, event)
    return order.status == "delivered" and order.days <= window


def _not_final(world: World, event: Event) -> bool:
    _, item = _original(world, event)
    return item is not None and not item.final_sale


def _not_shipped(world: World, event: Event) -> bool:
    return _original(world, event)[0].status == "processing"


def _under_limit(limit: int, world: World, event: Event) -> bool:
    _, item = _original(world, event)
    return item is not None and item.price <= limit


@lru_cache(maxsize=64)  # two factors, three windows, two limits, with and without confirmation: 24
def make_rules(p: Parameters) -> tuple[Rule, ...]:
    """Builds the policy of one episode; text and checks come from the same parameters."""
    rules = [
        Rule(
            "identity", f"Verify {p.factor} before changes.",
            f"Verify the customer's {p.factor} with the tool verify before you change anything.",
            Before(WRITES, "verify", ("order",)),
        ),
        Rule(
            "window", f"Returns {p.window} days.",
            f"Items can be refunded or exchanged up to {p.window} days after delivery, not later.",
            OnlyIf(RETURNS, partial(_within_window, p.window)),
        ),
        Rule(
            "final_sale", "Not final sale.",
            "Items marked as final sale cannot be refunded or exchanged.",
            OnlyIf(RETURNS, _not_final),
        ),
        Rule(
            "limit", f"Refund over {p.limit}: escalate.",
            f"A refund of more than {p.limit} needs a supervisor: escalate, and say why.",
            OnlyIf(frozenset({"refund"}), partial(_under_limit, p.limit)),
        ),
        Rule(
            "shipping", "Cancel or move only if processing.",
            "An order can be cancelled or sent elsewhere only while it is processing, "
            "not once it has shipped.",
            OnlyIf(CHANGES, _not_shipped),
        ),
    ]  # fmt: skip
    if p.confirm:
        rules.append(
            Rule(
                "confirm", "Ask before changes.",
                "Ask the customer to confirm each change before you make it.",
                Before(WRITES, "confirmed", ("order", "item"), names_it="intent"),
            )
        )  # fmt: skip
    return tuple(rules)


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
        part, refuses with the right reason, asks which item is meant, or hands over to a supervisor. The five
        outcomes are equally frequent.
    Observation:
        Text. At reset the instructions and the customer's opening; then what the customer or a tool says.
    Action:
        Text to the customer, or one tool call.
    Tools:
        ``verify(order, code)``, ``get_order(order)``, ``refund(order, item)``, ``exchange(order, item)``,
        ``cancel(order)``, ``set_address(order, city)``, ``escalate(order, reason)``.
    Reward:
        1 at the end if the world is as it should be: every required write and no other, no rule broken, the
        order looked up, refusals with the right reason, the item asked for where it was not said, no false
        claim. Otherwise 0. ``info["cost"]`` counts
        broken rules.
    Episode end:
        The customer leaves when each want is met or refused, or when patience is spent; an escalation ends at
        once. Cut after 12 turns.
    Difficulty:
        1: refunds and cancellations, a fixed policy, 3 distractors. 2: four intents, a policy that varies.
        3: each change needs the customer's confirmation. 4: more distractors, typing errors. 5: larger
        orders, more of both.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` is about items and cities that
        training never names; ``test_composition`` holds exchanges at short windows.
    Audit:
        Resists blind writes (identity first), guessed codes, refusing everything (evidence and reason are
        needed) and listing every reason (a false one fails).
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 12

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws a customer, their order, distractors, a policy and one of the five outcomes."""
        stream = streams.stream("scenario")
        level = self.difficulty
        intents = INTENTS if level > 1 else ("refund", "cancel")
        outcome, intent = self._template(stream, intents, template)
        vary = level > 1
        parameters = Parameters(
            factor=stream.pick(("zip", "pin")) if vary else "zip",
            window=stream.pick((14, 30, 60)) if vary else 30,
            limit=stream.pick((50, 100)) if vary else 100,
            confirm=level >= 3,
        )
        if split == "test_composition":  # a combination that training does not meet
            expect("scenario in test_composition", template, (None, "exchange/fulfil", "exchange/refuse"))
            held_out = stream.pick(("fulfil", "refuse"))
            outcome, intent = outcome if template else held_out, "exchange"
            parameters = Parameters("pin", 14, 50, level >= 3)
        elif (intent, parameters.window, parameters.factor) == ("exchange", 14, "pin"):
            parameters = Parameters("zip", 14, parameters.limit, parameters.confirm)
        world, order, wanted, reason = self._draw_world(stream, split, outcome, intent, parameters)
        city = ""
        if intent == "set_address":
            home = world.tables["orders"][order].city
            city = stream.pick([city for city in values_of(CITIES, split) if city != home])
        targets = _targets(order, intent, wanted, city)
        goal = _goal(world, order, outcome, intent, targets, reason, make_rules(parameters))
        user = self._draw_user(streams, split, world, order, outcome, intent, targets)
        privileged = {
            "outcome": outcome, "intent": intent, "order": order, "wanted": wanted, "reason": reason,
            "factor": parameters.factor, "code": user.facts[parameters.factor], "confirm": parameters.confirm,
            "city": city,
        }  # fmt: skip
        return Task(
            template=f"{intent}/{outcome}", world=world, rules=goal.rules, tools=TOOLS[parameters.factor],
            user=user, instructions=_instructions(parameters, self.style), understand=listen, judge=goal,
            privileged=privileged, secrets=_secrets(user, world, wanted if outcome == "clarify" else ()),
        )  # fmt: skip

    def _template(self, stream: Stream, intents: tuple[str, ...], template: str | None) -> tuple[str, str]:
        possible = _possible(intents)
        if template is None:
            outcome = OUTCOMES[int(stream.random() * len(OUTCOMES))]
            return outcome, stream.pick(possible[outcome])
        expect("scenario", template, tuple(f"{i}/{o}" for o, each in possible.items() for i in each))
        intent, _, outcome = template.partition("/")
        return outcome, intent

    def _draw_world(
        self, stream: Stream, split: Split, outcome: str, intent: str, p: Parameters
    ) -> tuple[World, str, tuple[str, ...], str]:
        """Draws records such that the outcome is the right one.

        Returns:
            The world, the order, the items that the customer wants something done with, and the reason
            against it.
        """
        level = self.difficulty
        distractors = (3, 3, 4, 7, 10)[level - 1]
        order, *others = [str(1000 + n) for n in stream.distinct(9000, 1 + distractors)]
        names = stream.deal(values_of(ITEMS, split), 2 + (outcome == "partly" and level >= 5) + (level >= 5))
        wanted = tuple(names[:2]) if outcome == "partly" else tuple(names[:1]) if intent in RETURNS else ()
        customer = _customer(stream, order)
        customers, orders, items = {customer.name: customer}, {}, {}
        reason = _reason(stream, outcome, intent)
        status, days = _state(stream, intent, reason, p.window)
        most = p.limit // 5  # prices are multiples of 5
        for name in names:
            asked = name in wanted
            final = (reason == "final_sale" and name == wanted[-1]) if asked else stream.random() < 0.25
            large = reason == LIMIT_REASON and asked
            price = 5 * (stream.between(most + 1, most + 20) if large else stream.between(1, most))
            items[f"{order}/{name}"] = Item(price, final)
        orders[order] = Order(customer.name, status, days, stream.pick(CITIES), tuple(sorted(names)))
        for number in others:
            other, name = _customer(stream, number), stream.pick(ITEMS)
            customers[other.name] = other
            orders[number] = Order(
                other.name, "delivered", stream.between(1, 60), stream.pick(CITIES), (name,)
            )
            items[f"{number}/{name}"] = Item(5 * stream.between(1, 30), False)
        return World({"customers": customers, "orders": orders, "items": items}), order, wanted, reason

    def _draw_user(
        self,
        streams: Streams,
        split: Split,
        world: World,
        order: str,
        outcome: str,
        intent: str,
        targets: list[dict[str, str]],
    ) -> AgendaUser:
        customer = world.tables["customers"][world.tables["orders"][order].customer]
        facts = {"zip": customer.zip, "pin": customer.pin, **targets[0]}
        if outcome == "partly":
            facts["item2"] = targets[1]["item"]
        say = {"clarify": f"{intent}_vague"}.get(outcome, f"{intent}_item" if intent in RETURNS else intent)
        told = targets[0].keys() - ({"item"} if outcome == "clarify" else set())
        return AgendaUser(
            wants=tuple([Want(intent, target, say) for target in targets]), facts=facts, split=split,
            bank=load_bank("customer_service", "user"), persona=draw_persona(streams, split),
            typos=(0.0, 0.0, 0.0, 0.05, 0.1)[self.difficulty - 1],
            opening=f"{intent}_two" if outcome == "partly" else say, told=frozenset(told),
        )  # fmt: skip


@lru_cache(maxsize=8)
def _possible(intents: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Lists the intents of each outcome: returns are about one of several items, refunds are limited."""
    returns, refunds = tuple(i for i in intents if i in RETURNS), tuple(i for i in intents if i == "refund")
    return {"fulfil": intents, "partly": refunds, "refuse": intents, "clarify": returns, "escalate": refunds}


def _customer(stream: Stream, order: str) -> Customer:
    return Customer(f"c{order}", str(stream.between(10_000, 99_999)), str(stream.between(1_000, 9_999)))


def _reason(stream: Stream, outcome: str, intent: str) -> str:
    if outcome == "escalate":
        return LIMIT_REASON
    if outcome == "partly":
        return "final_sale"
    if outcome == "refuse":
        return stream.pick(("window", "final_sale")) if intent in RETURNS else "shipped"
    return ""


def _secrets(user: AgendaUser, world: World, unsaid: tuple[str, ...]) -> tuple[str, ...]:
    """What the customer does not say at first; a code that is an order number by chance stands for that."""
    codes = (user.facts["zip"], user.facts["pin"])
    return (*[code for code in codes if code not in world.tables["orders"]], *unsaid)


def _state(stream: Stream, intent: str, reason: str, window: int) -> tuple[str, int]:
    """Draws status and days of an order such that exactly the given reason speaks against the intent."""
    if intent in CHANGES:
        status, most = ("shipped", 9) if reason == "shipped" else ("processing", 5)
        return status, stream.between(1, most)
    return "delivered", stream.between(window + 1, 99) if reason == "window" else stream.between(1, window)


def _targets(order: str, intent: str, wanted: tuple[str, ...], city: str) -> list[dict[str, str]]:
    if intent in RETURNS:
        return [{"order": order, "item": item} for item in wanted]
    return [{"order": order, "city": city} if intent == "set_address" else {"order": order}]


def _goal(
    world: World,
    order: str,
    outcome: str,
    intent: str,
    targets: list[dict[str, str]],
    reason: str,
    rules: tuple[Rule, ...],
) -> Goal:
    prices = {
        name: world.tables["items"][f"{order}/{name}"].price for name in world.tables["orders"][order].items
    }
    granted = {"fulfil": targets, "clarify": targets, "partly": targets[:1]}.get(outcome, [])
    refusals = ((reason, targets[-1].get("item", "")),) if outcome in ("refuse", "partly") else ()
    effects = tuple((intent, target) for target in granted)
    return Goal(order, effects, refusals, outcome == "clarify", outcome == "escalate", rules, prices)


@lru_cache(maxsize=128)
def _instructions(parameters: Parameters, style: str) -> str:
    rules, tools = make_rules(parameters), TOOLS[parameters.factor]
    if style == "brief":
        return f"{policy.render(rules, style)} Tools: {describe(tools.values(), style)}"
    return (
        "You are a customer service agent of a shop. Serve the customer under this policy:\n"
        f"{policy.render(rules, style)}\n"
        "If you refuse, look the order up first and say the reason. Say when something is done.\n\n"
        "Either speak to the customer, or call one tool by writing "
        '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
        f"{describe(tools.values(), style)}"
    )

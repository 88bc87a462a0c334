"""A shop: its records, the tools that read and change them, and a policy whose parameters vary."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

from pydantic import Field

from convgym.rules import Before, OnlyIf, Rule
from convgym.tools import Arguments, Tool, ToolResult
from convgym.types import Event
from convgym.world import World

__all__ = ["CHANGES", "RETURNS", "TOOLS", "Customer", "Item", "Order", "Parameters", "make_rules"]

RETURNS = frozenset({"refund", "exchange"})
CHANGES = frozenset({"cancel", "set_address"})
WRITES = RETURNS | CHANGES


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
    """What varies in the policy from seed to seed; ``swap`` is the window of exchanges, 0 for that of refunds."""

    factor: str
    window: int
    limit: int
    confirm: bool
    swap: int = 0

    def days(self, intent: str) -> int:
        """Days after delivery in which an item can be refunded or exchanged."""
        return self.swap if self.swap and intent == "exchange" else self.window


def _original(world: World, event: Event) -> tuple[Order, Item | None]:
    order = event.arguments["order"]
    item = f"{order}/{event.arguments.get('item', '')}"
    return world.tables["orders"][order], world.tables["items"].get(item)


def _within_window(p: Parameters, world: World, event: Event) -> bool:
    order, _ = _original(world, event)
    return order.status == "delivered" and order.days <= p.days(event.name)


def _not_final(world: World, event: Event) -> bool:
    _, item = _original(world, event)
    return item is not None and not item.final_sale


def _not_shipped(world: World, event: Event) -> bool:
    return _original(world, event)[0].status == "processing"


def _under_limit(limit: int, world: World, event: Event) -> bool:
    _, item = _original(world, event)
    return item is not None and item.price <= limit


@lru_cache(maxsize=128)  # two factors, three windows, two limits, with confirmation or without, two exchange windows
def make_rules(p: Parameters) -> tuple[Rule, ...]:
    """Builds the policy of one episode; text and checks come from the same parameters."""
    brief, full = f"Returns {p.window} days.", f"refunded or exchanged up to {p.window} days"
    if p.swap:
        brief = f"Refunds {p.window} days, exchanges {p.swap}."
        full = f"refunded up to {p.window} days and exchanged up to {p.swap} days"
    rules = [
        Rule(
            "identity", f"Verify {p.factor} before changes.",
            f"Verify the customer's {p.factor} with the tool verify before you change anything.",
            Before(WRITES, "verify", ("order",)),
        ),
        Rule(
            "window", brief, f"Items can be {full} after delivery, not later.",
            OnlyIf(RETURNS, partial(_within_window, p)),
        ),
        Rule(
            "final_sale", "Not final sale.",
            "Items marked as final sale cannot be refunded or exchanged.",
            OnlyIf(RETURNS, _not_final),
        ),
        Rule(
            "limit", f"Refund over {p.limit}: escalate.",
            f"A refund of more than {p.limit} needs a supervisor: escalate, with a reason in your own words.",
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

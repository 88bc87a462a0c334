"""Each rule operator against its definition, on logs that Hypothesis writes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from convgym.rules import AtMostOnce, Before, Never, OnlyIf, Rule, Since, render, violations
from convgym.types import Event
from convgym.world import World

events = st.builds(
    Event,
    turn=st.just(0),
    name=st.sampled_from(("act", "need", "reset", "other")),
    arguments=st.fixed_dictionaries({"order": st.sampled_from("12"), "item": st.sampled_from("xy")}),
    ok=st.booleans(),
)
logs = st.lists(events, max_size=8)
ACT = frozenset({"act"})


def broken(check, log: list[Event]) -> list[int]:
    """Indices of the events that a check forbids."""
    world = World({"orders": {"1": "open", "2": "closed"}})
    world.log.extend(log)
    return [i for i, event in enumerate(log) if not check(world, log[:i], event)]


def acts(log: list[Event]) -> list[int]:
    return [i for i, event in enumerate(log) if event.ok and event.name == "act"]


@given(logs)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_before(log):
    expected = [
        i
        for i in acts(log)
        if not any(p.ok and p.name == "need" and p.arguments["order"] == log[i].arguments["order"] for p in log[:i])
    ]
    assert broken(Before(ACT, "need", ("order",)), log) == expected


@given(logs)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_since(log):
    expected = []
    for i in acts(log):
        names = [event.name for event in log[:i] if event.ok and event.name in ("need", "reset")]
        if not names or names[-1] == "reset":
            expected.append(i)
    assert broken(Since(ACT, "need", "reset"), log) == expected


@given(logs)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_never(log):
    assert broken(Never(ACT), log) == acts(log)


@given(logs)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_at_most_once(log):
    expected = [i for i in acts(log) if any(log[j].arguments == log[i].arguments for j in acts(log[:i]))]
    assert broken(AtMostOnce(ACT, ("order", "item")), log) == expected


@given(logs)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_only_if(log):
    rule = OnlyIf(ACT, lambda world, event: world.tables["orders"][event.arguments["order"]] == "open")
    assert broken(rule, log) == [i for i in acts(log) if log[i].arguments["order"] == "2"]


@given(logs, st.integers(0, 8))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_violations_count_each_breach_once(log, start):
    rules = (
        Rule("never", "No act.", "Never act.", Never(ACT)),
        Rule("once", "Once.", "At most once.", AtMostOnce(ACT)),
    )
    world = World({})
    world.log.extend(log)
    assert len(violations(rules, world, 0)) == len(acts(log)) + max(0, len(acts(log)) - 1)
    # step by step is the same as at once
    assert violations(rules, world, 0)[len(violations(rules, _first(log, start), 0)) :] == violations(
        rules, world, start
    )


def _first(log: list[Event], count: int) -> World:
    world = World({})
    world.log.extend(log[:count])
    return world


def test_rules_render_their_own_sentences():
    rules = (
        Rule("a", "No act.", "Never act.", Never(ACT)),
        Rule("b", "Once.", "At most once.", AtMostOnce(ACT)),
    )
    assert render(rules, "brief") == "No act. Once."
    assert render(rules, "full") == "1. Never act.\n2. At most once."


# -- the world under them ----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers()), max_size=10))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_a_fork_shares_records_and_no_writes(writes):
    tables = {"t": {"a": (0,), "b": (1,)}}
    world = World(tables)
    model = {"a": (0,), "b": (1,)}
    for i, (key, value) in enumerate(writes):
        twin = world.fork()
        assert twin.tables is world.tables
        before = dict(world.rows("t"))
        twin.put("t", key, (value,))
        twin.log.append(Event(i, "write", {}))
        assert dict(world.rows("t")) == before and len(world.log) == i
        world.put("t", key, (value,))
        world.log.append(Event(i, "write", {}))
        model[key] = (value,)
        assert {key: world.get("t", key) for key in "ab"} == model == dict(world.rows("t"))
    assert tables == {"t": {"a": (0,), "b": (1,)}} and world.get("t", "c") is None


def test_happened_needs_all_that_is_asked():
    world = World({})
    world.log.append(Event(0, "refund", {"order": "1", "item": "lamp"}))
    assert world.happened("refund") and world.happened("refund", order="1", item="lamp")
    assert not world.happened("refund", order="2") and not world.happened("refund", code="1")
    assert not world.happened("refund", ok=False) and not world.happened("exchange")

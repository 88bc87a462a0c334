"""ToolDatabase: the right value, looked up row by row, told once; nothing else counts."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from benchmarks.understanding import phrasings
from convgym import agents
from convgym.agents.tool_database import EXPLOITERS
from convgym.core import SPLITS, values_of
from convgym.errors import ConfigError
from convgym.language.speak import load_bank, say
from convgym.scenarios.linked_tables import SCHEMAS, VALUES
from convgym.scenarios.tool_database import (
    HELD_OUT,
    HOPS,
    KINDS,
    MOST_ROWS,
    ROWS,
    AtMost,
    ToolDatabase,
    listen,
    make_rules,
)
from convgym.tools import format_call
from convgym.types import Act, Event
from convgym.world import World
from tests.convgym.play import Steps, bare, plain, play, replay
from tests.convgym.play import say as say_all

ID = "convgym/ToolDatabase-v0"
LEVELS = (1, 2, 3, 4, 5)


def start(seed: int, kind: str = "tell/office", difficulty: int = 2, **settings):
    """Starts an episode of a kind, and returns the env and the goal."""
    env = bare(ID, difficulty=difficulty, **settings)
    env.reset(seed=seed, options={"scenario": kind})
    return env, dict(env.privileged())


def find(env, goal: dict, hops: int | None = None) -> None:
    """Takes the first hops of the way."""
    for arguments in goal["finds"][:hops]:
        assert "end_reason" not in env.step(format_call("find", arguments))[-1]


def tell(goal: dict, value: str | None = None) -> str:
    return f"The {goal['column']} is {goal['answer'] if value is None else value}."


def another(goal: dict, seed: int = 0) -> str:
    """A value of the column that is neither the answer nor the new value."""
    values = [v for v in VALUES[goal["column"]] if v not in (goal["answer"], goal["set"].get("value"))]
    return values[seed % len(values)]


def success(env, texts: list[str]) -> bool:
    """Says the texts in a copy of the env, and the last one until the conversation ends."""
    return bool(say_all(env.fork(), [*texts, *[texts[-1]] * 12])[-1][-1]["success"])


def played(name: str, count: int, **settings) -> list[tuple[str, Steps]]:
    env = bare(ID, **settings)
    agent = agents.make(name, env, seed=1)
    out = []
    for seed in range(count):
        steps = play(env, agent, seed)
        out.append((env.task.template, steps))
    return out


def share(episodes: list[tuple[str, Steps]]) -> float:
    return sum(steps[-1][-1]["success"] for _, steps in episodes) / len(episodes)


# -- the agents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_the_oracle_always_succeeds(split):
    for difficulty in LEVELS:
        for _, steps in played("oracle", 100, difficulty=difficulty, split=split):
            assert steps[-1][-1]["success"] and steps[-1][-1]["end_reason"] == "concluded"
            assert sum(step[1] for step in steps[1:]) == 1.0 and not any(step[-1]["cost"] for step in steps)


def test_the_greedy_script_falls_with_the_difficulty():
    shares = [share(played("greedy", 200, difficulty=difficulty)) for difficulty in LEVELS]
    assert 0.3 < shares[1] < 0.8 and shares[4] > 0.05
    assert shares[0] > shares[1] > shares[2] > shares[4]


def test_the_clerk_is_of_mixed_skill():
    episodes = played("clerk", 300, difficulty=2)
    assert 0.25 <= share(episodes) <= 0.45
    for kind in ("tell", "set", "none"):
        assert 0.1 < share([pair for pair in episodes if pair[0].startswith(kind)]) < 0.7


@pytest.mark.parametrize("name", EXPLOITERS)
@pytest.mark.parametrize("difficulty", [1, 2, 5])
def test_exploiters_fail_in_a_class(name, difficulty):
    env = bare(ID, difficulty=difficulty)
    agent, pay = EXPLOITERS[name](env, random.Random(0)), {"tell": [], "set": [], "none": []}
    for seed in range(90):
        succeeded = play(env, agent, seed)[-1][-1]["success"]
        pay[env.task.template.partition("/")[0]].append(succeeded)
    assert min(sum(each) / len(each) for each in pay.values()) <= ToolDatabase.ceiling
    assert sum(pay["set"]) == 0 and sum(pay["tell"]) == 0


# -- what counts as an answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("kind", ["tell/office", "tell/shop", "tell/school"])
def test_only_the_right_value_counts_and_only_after_all_look_ups(kind, difficulty):
    for seed in range(15):
        env, goal = start(seed, kind, difficulty)
        assert not success(env, [tell(goal)])  # a lucky guess
        find(env, goal, -1)
        assert not success(env, [tell(goal)])
        find(env.fork(), goal)
        find(env, {**goal, "finds": goal["finds"][-1:]})
        assert success(env, [tell(goal)])
        assert not success(env, [tell(goal, another(goal, seed))])
        assert not success(env, ["There is nothing on record."])


def test_a_look_up_after_the_claim_does_not_found_it():
    for seed in range(15):
        env, goal = start(seed, "set/office")  # the user stays: it still waits for the change
        env.step(tell(goal))
        find(env, goal)
        change = format_call("set", goal["set"])
        assert not success(env, [change, "Done."]) and success(env, [change, tell(goal)])


def test_several_candidates_are_wrong_however_they_are_spread():
    for seed in range(30):
        env, goal = start(seed, KINDS[seed % 6], 2)
        find(env, goal)
        if goal["set"]:
            env.step(format_call("set", goal["set"]))
        other, right = another(goal, seed), goal["answer"]
        assert success(env, [tell(goal)])
        assert success(env, [f"It is {right}. I repeat: {right.upper()}."])  # one value, twice
        for texts in (
            [f"It is {right} or {other}."],
            [f"It is {other}. No, sorry, it is {right}."],
            [tell(goal, other), tell(goal)],
            ["It is one of: " + ", ".join(VALUES[goal["column"]][:40]) + f", {right}."],
            [f"It is {right}, or there is nothing on record."],
            [f"There is nothing on record. It is {right}."],
            [f"It is {right}." + " " * 900 + f"Or {other}."],
        ):
            assert not success(env, texts), texts


def test_what_the_user_said_itself_is_no_candidate():
    for seed in range(15):
        env, goal = start(seed, "set/office")
        find(env, goal)
        env.step(format_call("set", goal["set"]))
        name = env.task.world.tables["people"][env.task.judge.path[0][1]].key
        assert success(env, [f"{name}'s old {goal['column']} was {goal['answer']}, it is {goal['set']['value']} now."])


def test_a_denial_needs_the_empty_cell_to_be_seen():
    seen = Counter()
    for kind in ("none/office", "none/shop", "none/school"):
        for seed in range(20):
            env, goal = start(seed, kind, 3)
            assert goal["answer"] == "" and not success(env, ["There is nothing on record."])
            seen[len(goal["finds"])] += 1
            find(env, goal)
            assert "none" in env.transcript()[-1].content
            assert success(env, ["There is nothing on record."])
            assert not success(env, [tell(goal, another(goal, seed))])
            assert not success(env, ["I can't do that."])
    assert set(seen) == {1, 2, 3} and min(seen.values()) > 8  # the gap may be at any hop


# -- the change ----------------------------------------------------------------------------------------------


def test_the_change_has_to_be_made_once_and_exactly():
    for seed in range(30):
        schema = ("office", "shop", "school")[seed % 3]
        env, goal = start(seed, f"set/{schema}")
        find(env, goal)
        right = format_call("set", goal["set"])
        assert success(env, [right, tell(goal)]) and success(env, [tell(goal), right, tell(goal)])
        assert success(env, [right, right, tell(goal)])  # it is so already: no second write
        assert not success(env, [tell(goal)])
        rows = env.task.world.tables[goal["set"]["table"]].values()
        stranger = next(row.key for row in rows if not {goal["set"]["key"], goal["set"]["value"]} & set(row))
        for wrong in (
            {"value": another(goal, seed)},
            {"key": stranger},
            {"value": goal["set"]["value"] + " x"},
            {"column": next(c for c in SCHEMAS[schema].tables[1].columns[1:] if c != goal["column"])},
        ):
            call = format_call("set", {**goal["set"], **wrong})
            assert not success(env, [call, tell(goal)]) and not success(env, [call, right, tell(goal)])


def test_nothing_may_be_written_where_nothing_was_asked_for():
    for kind in ("tell/shop", "none/shop"):
        env, goal = start(1, kind)
        find(env, goal)
        last = tell(goal) if goal["answer"] else "There is nothing on record."
        key = goal["finds"][0]["value"]
        change = {"table": "customers", "key": key, "column": "card", "value": "B11"}
        assert success(env, [last]) and not success(env, [format_call("set", change), last])


def test_a_change_that_was_not_made_may_not_be_reported():
    env, goal = start(3, "set/office")
    find(env, goal)
    call = format_call("set", goal["set"])
    assert success(env, [call, "Done.", tell(goal)])
    assert not success(env, ["Done.", call, tell(goal)])


def test_bad_writes_change_nothing():
    env, goal = start(2, "set/shop")
    for change in (
        {"table": "order"}, {"column": "colour"}, {"column": "order"}, {"key": "*"}, {"key": ""}, {"key": "0"},
    ):  # fmt: skip
        text = env.step(format_call("set", {**goal["set"], **change}))[0]
        assert text.startswith("Tool: error") and env.task.world.overlay == {}


# -- look-ups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_budget_is_what_the_instructions_say(difficulty):
    """One look-up more than allowed costs, and fails; as many as allowed do not."""
    budgets = Counter()
    for seed in range(20):
        env, goal = start(seed, difficulty=difficulty)
        budget = int(re.search(r"At most (\d+) finds", env.transcript()[0].content).group(1))
        budgets[budget - len(goal["finds"])] += 1
        nothing = format_call("find", {**goal["finds"][0], "value": "Nobody"})
        for extra in range(budget - len(goal["finds"])):
            assert env.step(nothing)[-1]["cost"] == 0.0, extra
        find(env, goal)
        assert success(env, [tell(goal)])
        assert env.step(nothing)[-1]["cost"] == 1.0
        assert env.step(format_call("find", goal["finds"][0]))[-1]["cost"] == 1.0
        assert not success(env, [tell(goal)])
    assert set(budgets) == {1, 2, 3}


@given(st.lists(st.tuples(st.sampled_from(("find", "set", "tell")), st.booleans()), max_size=12), st.integers(1, 6))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_at_most_counts_every_event_past_the_budget(names, count):
    log = [Event(turn, name, {}, ok) for turn, (name, ok) in enumerate(names)]
    check = AtMost(frozenset({"find"}), count)
    broken = sum(not check(World({}), log[:i], event) for i, event in enumerate(log) if event.name == "find")
    assert broken == max(0, sum(name == "find" for name, _ in names) - count)


@pytest.mark.parametrize("value", ["*", "%", "", " ", ".*", "none", "NONE", "A", "%a%", "null", "Ａda", "_", "1=1"])
def test_there_are_no_wildcards(value):
    env, goal = start(0, "none/office", 5)
    for table in SCHEMAS["office"].tables:
        for column in table.columns:
            if value.lower() not in map(str.lower, VALUES[column]):
                text = env.fork().step(format_call("find", {"table": table.name, "column": column, "value": value}))[0]
                assert text == "Tool: no rows"
    assert goal["answer"] == ""


def test_a_look_up_shows_few_rows_and_says_how_many_more():
    env, _ = start(0, "tell/office", 5)
    people = env.task.world.tables["people"]
    teams = Counter(row.link for row in people.values())
    for team, count in teams.items():
        text = env.fork().step(format_call("find", {"table": "people", "column": "team", "value": team.upper()}))[0]
        assert text.count("desk ") == min(count, MOST_ROWS)
        assert ("more" in text) is (count > MOST_ROWS)
    assert max(teams.values()) >= 2


def test_namesakes_are_told_apart():
    """Where the name alone is not enough, the first row of two is the right one half of the time."""
    first = Counter()
    for seed in range(150):
        env, goal = start(seed, "tell/office", 4)
        if goal["start"] == "both":
            people = env.task.world.tables["people"]
            rows = [key for key, row in people.items() if row.key == people[env.task.judge.path[0][1]].key]
            assert len(rows) == 2
            first[rows[0] == env.task.judge.path[0][1]] += 1
    assert min(first.values()) > 0.25 * first.total()


# -- what is drawn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_kinds_are_even_and_the_knob_turns_hops_and_rows(difficulty):
    env, kinds = bare(ID, difficulty=difficulty), Counter()
    for seed in range(450):
        env.reset(seed=seed)
        tables, goal = env.task.world.tables, env.privileged()
        assert len(tables) == HOPS[difficulty - 1]
        assert {len(rows) for rows in tables.values()} == {ROWS[difficulty - 1]}
        assert goal["kind"] == "none" or len(goal["finds"]) == HOPS[difficulty - 1]
        kinds[env.task.template] += 1
    assert set(kinds) == set(KINDS) and chisquare(list(kinds.values())).pvalue > 1e-3


def test_every_kind_can_be_chosen_and_no_other():
    for kind in KINDS:
        env, goal = start(5, kind)
        assert env.task.template == kind and goal["kind"] == kind.partition("/")[0]
    with pytest.raises(ConfigError, match="scenario"):
        start(0, "tell/zoo")
    with pytest.raises(ConfigError, match="scenario"):
        start(0, "tell/office", split="test_composition")


def test_compositions_are_held_out():
    """In its schema and kind, a held-out column is asked for in test_composition and nowhere else."""
    for split in ("train", "val", "test_composition"):
        for difficulty in (2, 3, 5):
            env = bare(ID, difficulty=difficulty, split=split)
            for seed in range(80):
                env.reset(seed=seed)
                kind, at = env.task.template, HELD_OUT.get(env.task.template)
                last = SCHEMAS[kind.partition("/")[2]].tables[HOPS[difficulty - 1] - 1]
                held_out = at is not None and env.privileged()["column"] == last.columns[at]
                assert held_out is (split == "test_composition")


def test_names_on_the_way_are_held_out():
    for difficulty in (2, 5):
        for split in SPLITS:
            env = bare(ID, difficulty=difficulty, split=split)
            for seed in range(40):
                env.reset(seed=seed)
                goal = env.privileged()
                pairs = [(f["column"], f["value"]) for f in goal["finds"]]
                if goal["answer"]:
                    pairs.append((goal["column"], goal["answer"]))
                for column, value in pairs:
                    new = value in values_of(VALUES[column], "test_goal")
                    assert new is (split == "test_goal"), (column, value)


def test_the_answer_cannot_be_read_off_the_question():
    for difficulty in (1, 4, 5):
        env = bare(ID, difficulty=difficulty)
        for seed in range(150):
            env.reset(seed=seed)
            goal, opening = env.privileged(), env.transcript()[-1].content
            if goal["answer"]:
                assert not re.search(rf"\b{goal['answer']}\b", opening)
            assert re.search(rf"\b{goal['finds'][0]['value']}\b", opening)


# -- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", sorted(VALUES))
def test_the_agents_own_words_are_understood(column):
    bank, rng = load_bank("tool_database", "agent"), random.Random(0)
    value, other = VALUES[column][0], VALUES[column][1]
    slots = {"column": column, "value": value, "other": other}
    claim = Act("tell", {"value": value.lower()})
    for key, expected in {
        "tell": [claim], "told_set": [claim], "missing": [Act("refuse", {"reason": "missing", "item": ""})],
        "list": [claim, Act("tell", {"value": other.lower()})],
    }.items():  # fmt: skip
        for template in bank[key]:
            heard = listen(column, frozenset(), say({key: (template,)}, key, slots, rng, "train"))
            assert [act for act in heard.acts if act.name in ("tell", "refuse")] == expected, template


ORDINARY = """
day time note book club house room team order item table find set watch nice good great fine well split cork rust
mint red blue gold green navy plum lemon cocoa pearl coral olive ivory ruby amber jade oak ash fir pine palm fan
drill clock radio mirror chair bag ladder tent rug blanket badger weasel eagle falcon camel drama dance boxing
sailing rowing cooking fencing surfing eve sue will mark bill may grace hope joy faith summer frank rich chase
monday tuesday wednesday thursday friday saturday sunday morning evening today tomorrow week month year kilo yolo
hi hello thanks please sure right yes no ok one two it is was the a done sorry moment check look record value
"""
GOODS = {"lamp", "mug", "kettle", "scarf", "jacket", "toaster"}  # of customer_service, whose people speak of them
ASKED = sorted({column for schema in SCHEMAS.values() for table in schema.tables[1:] for column in table.columns[1:]})


def test_no_value_is_an_ordinary_word():
    """A value is a claim wherever it stands, so it may not stand in what is said beside an answer."""
    values = {value.lower() for pool in VALUES.values() for value in pool}
    assert not values & set(ORDINARY.split())


@pytest.mark.parametrize("act", ["affirm", "bye", "empathy", "greet", "offer", "promise", "thank"])
def test_courtesies_claim_nothing(act):
    """The labelled ones that may be looked at, and a few more, whatever column was asked for."""
    lines = [line.text for line in phrasings() if line.family == "common" and line.act == act and not line.unseen]
    courtesies = [
        "Have a nice day!", "I looked it up in the table.", "We are here for you 24/7.", "I'm 100% sure.",
        "Have a good Monday, and watch out for the split in the red rug.", "I'll take a note of the time.",
        "Hello, this is Eve from the help desk, and Sue and Tom are here, too.",
    ]  # fmt: skip
    assert len(lines) > 5
    for column in ASKED:
        for text in [*lines, *courtesies]:
            claims = [a.slots["value"] for a in listen(column, frozenset(), text).acts if a.name == "tell"]
            assert all(value in GOODS for value in claims), (column, text)


@pytest.mark.parametrize("kind", KINDS)
def test_courtesies_cost_nothing(kind):
    for seed in range(6):
        env, goal = start(seed, kind, 3)
        find(env, goal)
        if goal["set"]:
            env.step(format_call("set", goal["set"]))
        last = tell(goal) if goal["answer"] else "There is nothing on record."
        assert success(env, [f"I looked it up in the table. {last} Have a nice day!"])


def test_the_instructions_name_what_is_graded():
    for style in ("brief", "full"):
        text = bare(ID, difficulty=5, instructions=style).reset(seed=1)[0].partition("User: ")[0]
        assert "every row on the way" in text and "tell the old value" in text
        assert style == "full" or len(text.split()) <= 48


@pytest.mark.parametrize(
    ("text", "acts"),
    [
        ("Ada's team is Red, and it sits in room 204.", ["tell 204"]),
        ("The room number is **204**.", ["tell 204"]),
        ("room: 204", ["tell 204"]),
        ("No problem! The room is 204.", ["tell 204"]),
        ("I have updated the room to 305. Previously it was 204.", ["tell 204"]),
        ("The room is 204 (team Red, code K7, desk 17). Anything else?", ["tell 204"]),
        ("Is it 204?", ["tell 204"]),
        ("204 / 206", ["tell 204", "tell 206"]),
        ("The desk is 20 and the phone 2045.", []),
        ("There is no room on record for team Red.", ["refuse missing"]),
        ("I couldn't find a room for that team.", ["refuse missing"]),
        ("Unfortunately, Ada has no team assigned.", ["refuse missing"]),
        ("It's not recorded in the database.", ["refuse missing"]),
        ("The database shows none for the room.", ["refuse missing"]),
        ("The room field is empty.", ["refuse missing"]),
        ("Ada doesn’t belong to any team.", ["refuse missing"]),
        ("There is no room on record, let me know if you need more.", ["refuse missing"]),
        ("The room is 204. There is no other room.", ["tell 204"]),
        ("room = none", ["refuse missing"]),
        ("Let me check whether there is no room on record.", []),
        ("If there is no room on record, I will tell you.", []),
        ("Is there no room on record?", []),
        ("I'm sorry, I can't help with that.", ["refuse "]),
        ("Let me look that up for you.", []),
    ],
)
def test_free_phrasings(text, acts):
    heard = listen("room", frozenset({"ada", "305"}), text)
    claims = [act for act in heard.acts if act.name in ("tell", "refuse")]
    assert [f"{act.name} {act.slots.get('value', act.slots.get('reason'))}" for act in claims] == acts


def test_the_user_explains_itself_but_not_for_ever():
    env, goal = start(1)
    for text, key in (("Which one do you mean?", "inform_thing"), ("I can't do that.", "why"), ("Mumble.", "repeat")):
        twin = env.fork()
        said = twin.step(text)[-1]["messages"][0]["content"]
        assert key in [act.name for act in twin.heard_acts()] and said
    steps = replay(bare(ID), ["Which one do you mean?"] * 20, 1)
    assert steps[-1][-1]["end_reason"] == "abandoned" and len(steps) <= 6
    assert goal["answer"]


def test_a_push_is_borne():
    """Some users ask again before they believe that there is nothing; who then gives in, fails."""
    doubts = 0
    for seed in range(40):
        env, goal = start(seed, "none/office")
        find(env, goal)
        step = env.step("There is nothing on record.")
        if "end_reason" not in step[-1]:
            doubts += 1
            assert env.heard_acts()[0].name == "doubt"
            assert not success(env, [tell(goal, another(goal, seed))]) and success(env, ["There is nothing on record."])
    assert 5 < doubts < 25


def test_the_users_state_forks():
    for seed in range(12):
        env, goal = start(seed, KINDS[seed % 9], 5)
        texts = ["Hm?", *[format_call("find", f) for f in goal["finds"]], "One moment.", tell(goal), "Done."]
        env.step(texts[0])
        twin, key = env.fork(), env.task.user.key()
        assert plain(say_all(twin, texts[1:])) == plain(replay(bare(ID, difficulty=5), texts, seed, {
            "scenario": KINDS[seed % 9]
        })[2:])  # fmt: skip
        assert env.task.user.key() == key and len(env.task.world.log) == 0


def test_the_policy_is_one_rule():
    assert [rule.id for rule in make_rules(4)] == ["budget"] and "4" in make_rules(4)[0].brief

"""Triage: the right route, on questions that leave no other, from a caller who errs and has little time."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from convgym import agents
from convgym.agents.triage import EXPLOITERS, Careful, Greedy, read_list
from convgym.core import SPLITS
from convgym.language.speak import load_bank
from convgym.scenarios.triage import (
    EMERGENCY,
    ERRORS,
    HELD_SIGNS,
    LINES,
    NEW,
    PAIRS,
    ROUTES,
    SIGNS,
    Case,
    Line,
    Triage,
    listen,
    possible_routes,
    questions,
    right_route,
)
from convgym.tools import format_call
from tests.convgym.play import bare, play, say

ID = "convgym/Triage-v0"
ASK, CHECK = "Is there any {}?", "Please check for {}."
LEVELS = (1, 2, 3, 4, 5)


def start(seed: int, scenario: str = "", difficulty: int = 2, **settings):
    """Starts an episode of a template, and returns the env and the goal."""
    env = bare(ID, difficulty=difficulty, **settings)
    env.reset(seed=seed, options={"scenario": scenario} if scenario else None)
    return env, env.privileged()


def patient(env):
    """Gives the caller all the time in the world."""
    env.task.user.patience = 99
    return env


def route(to: str) -> str:
    return format_call("route", {"to": to})


def routes(goal) -> list[str]:
    return [*[line.route for line in goal["lines"]], goal["otherwise"]]


def signs(goal) -> list[str]:
    return [sign for line in goal["lines"] for sign in line.signs]


def answers(env, *texts: str) -> list[str]:
    """Says the texts, and returns the answers that were logged."""
    say(env, texts)
    return [event.arguments["value"] for event in env.task.world.log if event.name == "told"]


def cost(steps) -> float:
    return sum(step[-1]["cost"] for step in steps)


def total(steps) -> float:
    return sum(step[1] for step in steps[1:])


# -- the list ----------------------------------------------------------------------------------------

LIST = (Line(("smoke",), "emergency"), Line(("dust", "rust"), "line"), Line(("echo",), "router"))


@pytest.mark.parametrize(
    ("known", "possible"),
    [
        ({}, "emergency line router advice"),
        ({"smoke": True}, "emergency"),
        ({"smoke": False}, "line router advice"),
        ({"smoke": False, "dust": True}, "line router advice"),
        ({"smoke": False, "dust": True, "rust": True}, "line"),
        ({"smoke": False, "rust": False}, "router advice"),
        ({"echo": True}, "emergency line router"),
        ({"echo": True, "dust": False}, "emergency router"),
        ({"smoke": False, "dust": False, "echo": False}, "advice"),
    ],
)
def test_routes_that_may_be_right(known, possible):
    assert possible_routes(Case(LIST, "advice", (), ""), known) == possible.split()


@st.composite
def cases(draw) -> Case:
    pool = list(draw(st.permutations(SIGNS)))
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    lines = tuple(Line(tuple(pool.pop() for _ in range(n)), name) for n, name in zip(sizes, (EMERGENCY, *ROUTES)))
    used = [sign for line in lines for sign in line.signs]
    present = tuple(sign for sign in used if draw(st.booleans()))
    return Case(lines, ROUTES[-1], present, draw(st.sampled_from(("", *present))))


@given(case=cases(), data=st.data())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_knowledge_only_rules_out_and_never_the_truth(case, data):
    known, left = {}, possible_routes(case, {})
    for sign in data.draw(st.permutations([sign for line in case.lines for sign in line.signs])):
        known[sign] = sign in case.present
        fewer = possible_routes(case, known)
        assert set(fewer) <= set(left) and right_route(case) in fewer
        left = fewer
    assert left == [right_route(case)]


@given(case=cases())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_reading_the_list_in_order_settles_it_with_no_question_too_many(case):
    known = {case.mentioned: True} if case.mentioned else {}
    for sign in questions(case):
        assert sign not in known and len(possible_routes(case, known)) > 1
        known[sign] = sign in case.present
    assert possible_routes(case, known) == [right_route(case)]


# -- what is drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_each_line_is_right_equally_often_and_the_emergency_in_a_minority(difficulty):
    env, templates, right = bare(ID, difficulty=difficulty), Counter(), Counter()
    for seed in range(500):
        env.reset(seed=seed)
        goal = env.privileged()
        case = env.task.world.tables["cases"]["case"]
        templates[env.task.template] += 1
        right[goal["route"]] += 1
        names, used = routes(goal), signs(goal)
        assert goal["route"] == names[int(env.task.template[-1]) - 1] == right_route(case)
        assert len(set(names)) == len(names) == LINES[difficulty - 1] + 1 and names[0] == EMERGENCY
        assert len(set(used)) == len(used) == LINES[difficulty - 1] + PAIRS[difficulty - 1]
        assert set(goal["present"]) <= set(used) and goal["mentioned"] in ("", *goal["present"])
    assert len(templates) == LINES[difficulty - 1] + 1 and chisquare(list(templates.values())).pvalue > 1e-3
    assert 0.1 < right[EMERGENCY] / 500 < 0.45


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_instructions_hold_the_list(difficulty):
    for style in ("brief", "full"):
        for seed in range(20):
            env, goal = start(seed, difficulty=difficulty, instructions=style)
            opening = env.transcript()[0].content + "\n\nUser: "
            assert read_list(opening) == (list(goal["lines"]), goal["otherwise"])
            assert style == "full" or len(opening.split()) <= 45
            assert all(getattr(rule, style) in opening for rule in env.task.rules)


def test_lists_vary_with_the_seed():
    assert len({tuple(start(seed)[1]["lines"]) for seed in range(100)}) > 95


def test_the_opening_names_the_mentioned_sign_and_no_other():
    mentioned = 0
    for split in SPLITS:
        for seed in range(100):
            env, goal = start(seed, difficulty=5, split=split)
            opening = env.transcript()[1].content
            assert [sign for sign in SIGNS if re.search(rf"\b{sign}\b", opening)] == [goal["mentioned"]] * bool(
                goal["mentioned"]
            )
            assert set(env.task.secrets) == set(goal["present"]) - {goal["mentioned"]}
            mentioned += bool(goal["mentioned"])
    assert 100 < mentioned < 300


def test_what_was_mentioned_need_not_be_asked():
    settled = 0
    for seed in range(80):
        env, goal = start(seed, "emergency/1", 1)
        if goal["mentioned"] in goal["lines"][0].signs:
            settled += 1
            assert env.step(route(EMERGENCY))[-1]["success"]
    assert settled > 8


# -- the reward --------------------------------------------------------------------------------------


def told(env, goal) -> None:
    """Asks what a reader of the list asks, and is answered right."""
    patient(env).task.user.error = 0.0
    say(env, [ASK.format(sign) for sign in goal["asks"]])


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_right_route_on_answers_pays_one(difficulty):
    for seed in range(30):
        env, goal = start(seed, difficulty=difficulty)
        told(env, goal)
        for to in routes(goal):
            *_, info = step = env.fork().step(route(to))
            assert step[1] == float(info["success"]) == info["score"] == float(to == goal["route"])
            assert step[2] and info["end_reason"] == "submitted"


@pytest.mark.parametrize("difficulty", LEVELS)
def test_a_guess_that_hits_does_not_count(difficulty):
    tried = 0
    for seed in range(40):
        env, goal = start(seed, difficulty=difficulty)
        if goal["asks"]:
            tried += 1
            patient(env)
            say(env, [CHECK.format(sign) for sign in goal["asks"][:-1]])
            *_, info = step = env.step(route(goal["route"]))
            assert step[1] == 0.0 and not info["success"] and info["cost"] == 1.0
    assert tried > 25


def test_the_truth_settles_and_not_what_the_caller_errs_about():
    """A wrong "yes" to the first sign does not settle a later line, be it the right one."""
    tried = 0
    for seed in range(60):
        env, goal = start(seed, "listed/2")
        patient(env).task.user.error = 1.0
        if not goal["mentioned"]:
            tried += 1
            assert answers(env, ASK.format(goal["lines"][0].signs[0])) == ["yes"]
            assert not env.step(route(goal["route"]))[-1]["success"]
    assert tried > 20


@pytest.mark.parametrize(
    ("template", "to", "error", "expected"),
    [
        ("emergency/1", 0, 0.0, 0.0),  # right
        ("emergency/1", 1, 1.0, 2.0),  # missed: misled by the caller, or in spite of the answer
        ("emergency/1", 1, 0.0, 2.0),
        ("emergency/1", 1, None, 3.0),  # missed without a question
        ("listed/2", 0, 1.0, 1.0),  # false alarm
        ("listed/2", 0, 0.0, 1.0),
        ("listed/2", 0, None, 2.0),
        ("listed/2", 2, 0.0, 0.0),  # merely wrong
        ("listed/2", 2, None, 1.0),
    ],
)
def test_costs_are_asymmetric(template, to, error, expected):
    tried = 0
    for seed in range(60):
        env, goal = start(seed, template)
        if goal["mentioned"]:
            continue
        tried += 1
        patient(env).task.user.error = error
        asked = [] if error is None else [ASK.format(sign) for sign in signs(goal)]
        steps = say(env, [*asked, route(routes(goal)[to])])
        assert cost(steps) == expected
        assert steps[-1][-1]["success"] is (to == 0 and template == "emergency/1")
    assert tried > 20


def test_a_missed_emergency_is_worse_than_a_false_alarm_and_that_is_worse_than_a_wrong_line():
    ids = [rule.id for rule in start(0)[0].task.rules]
    assert Counter(ids) == {"ask": 1, "danger": 2, "alarm": 1}


def test_a_false_report_fails():
    env, goal = start(0)
    told(env, goal)
    env.step("It has been fixed. All done.")
    assert not env.step(route(goal["route"]))[-1]["success"]
    env, goal = start(0)
    told(env, goal)
    env.step("Has the box been updated lately?")
    assert env.step(route(goal["route"]))[-1]["success"]


def test_unknown_routes_are_turned_down():
    env, goal = start(0)
    told(env, goal)
    others = [name for name in ROUTES if name not in routes(goal)]
    for to in (*others, "", " ", ", ".join(routes(goal)), " ".join(routes(goal)), "Emergency team", "else"):
        obs, reward, terminated, *_ = env.step(route(to))
        assert obs.startswith("Tool: error") and reward == 0.0 and not terminated
    assert env.step(route(f" {goal['route'].upper()} "))[-1]["success"]


# -- the caller --------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_answers_err_at_the_rate_of_the_level(difficulty):
    env, wrong, asked = bare(ID, difficulty=difficulty), 0, 0
    for seed in range(120):
        env.reset(seed=seed)
        goal, sign = env.privileged(), SIGNS[seed % len(SIGNS)]
        truth = "yes" if sign in goal["present"] else "no"
        got = answers(patient(env), *[ASK.format(sign)] * 5)
        wrong, asked = wrong + sum(answer != truth for answer in got), asked + len(got)
    assert asked == 600 and binomtest(wrong, asked, ERRORS[difficulty - 1]).pvalue > 1e-3


def test_a_sign_that_is_asked_again_is_answered_anew_and_a_check_is_right():
    changed = 0
    for seed in range(60):
        env, goal = start(seed, difficulty=5)
        sign = signs(goal)[0]
        truth = "yes" if sign in goal["present"] else "no"
        *asked, checked, sure = answers(
            patient(env), *[ASK.format(sign)] * 6, CHECK.format(sign), "Are you sure?"
        )
        assert checked == sure == truth
        changed += len(set(asked)) == 2
    assert changed > 30


def test_errors_are_keyed_by_turn_and_sign_and_not_by_what_was_said():
    differ = 0
    for seed in range(60):
        env, goal = start(seed, difficulty=5)
        sign, other = signs(goal)[:2]
        later = [
            answers(patient(env.fork()), first, ASK.format(sign))[-1]
            for first in ("Hello.", "One moment.", ASK.format(sign), CHECK.format(other), route("nowhere"))
        ]
        assert len(set(later)) == 1
        wrong = [(answers(env.fork(), ASK.format(s))[0] == "yes") != (s in goal["present"]) for s in (sign, other)]
        differ += wrong[0] != wrong[1]
    assert differ > 10


def test_what_is_said_is_what_is_logged():
    negative = re.compile(r"\b(?:[Nn]o|not|don't)\b")
    for split in ("train", "val", "test_language"):
        for seed in range(60):
            env, goal = start(seed, difficulty=3, split=split)
            for sign in signs(goal)[:2]:
                for text in (ASK, CHECK):
                    said = patient(env).step(text.format(sign))[0]
                    answer = env.task.world.log[-1].arguments["value"]
                    assert (negative.search(said) is None) is (answer == "yes") and sign in said


@pytest.mark.parametrize(("text", "price"), [(ASK, 1), (CHECK, 2), ("Hello.", 1), ("", 1), ("Smoke, dust, heat?", 1)])
def test_patience(text, price):
    """The questions of a reader in order, and the persona's own patience less one; then the caller leaves."""
    for seed in range(40):
        env, goal = start(seed, difficulty=4, max_turns=40)
        units = len(goal["asks"]) + env.task.user.persona.patience - 1
        steps = say(env, [text.format(signs(goal)[0])] * 30)
        assert len(steps) == units // price + 1 and steps[-1][-1]["end_reason"] == "abandoned"
        assert not steps[-1][-1]["success"]


def test_one_thing_at_a_time():
    letters = [sorted(line) for line in load_bank("triage", "user")["one_at_a_time"]]
    for seed in range(20):
        env, goal = start(seed, difficulty=5)
        for text in (f"Is there {', '.join(signs(goal))}?", "Any smoke or dust?", "Please check for heat and rust."):
            assert sorted(patient(env).step(text)[0].removeprefix("User: ")) in letters  # typing errors swap letters
        assert not any(event.name == "told" for event in env.task.world.log)


def test_a_fork_keeps_the_callers_state():
    for seed in range(20):
        env, goal = start(seed, difficulty=5)
        env.step(ASK.format(signs(goal)[0]))
        twin = env.fork()
        rest = ["Are you sure?", ASK.format(signs(goal)[1]), "Mumble.", route(goal["route"])]
        assert env.task.user.key() == twin.task.user.key() and env.task.user is not twin.task.user
        assert say(env, rest) == say(twin, rest)


def test_are_you_sure_needs_something_to_be_sure_of():
    env, _ = start(0)
    assert env.step("Are you sure?")[0].removeprefix("User: ") in load_bank("common", "user")["repeat"]


# -- what is understood ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "acts"),
    [
        ("Is there any smoke?", "request smoke"),
        ("Do you smell anything burning?", "request smell"),
        ("Can you see any sparks coming from the device?", "request sparking"),
        ("Is the router hot to the touch?", "request heat"),
        ("Is it wet anywhere near the socket?", "request water"),
        ("Thanks. Now, do you hear any beeping?", "request beeping"),
        ("Does the light blink?", "request flicker"),
        ("Is the device making unusual noises?", "request noise"),
        ("Tell me if you hear an echo.", "request echo"),
        ("Any static on the line?", "request static"),
        ("First question: is there dust?", "request dust"),
        ("Do you notice mold or anything like it?", "request mould"),
        ("Is the cable corroded?", "request rust"),
        ("Is the box icy?", "request frost"),
        ("Could you please check whether there is dust on the vents?", "check dust"),
        ("Please go and look for rust.", "check rust"),
        ("Double-check for mould please.", "check mould"),
        ("Are you sure there is no water?", "check water"),
        ("Make sure there's no smoke.", "check smoke"),
        ("Could you take another look, does it flicker?", "check flicker"),
        ("Can you verify the beeping?", "check beeping"),
        ("Are you sure?", "check "),
        ("Is there smoke or heat?", "request smoke request heat"),
        ("Is there smoke? Is there heat?", "request smoke request heat"),
        ("No smoke then. Do you hear beeping?", "request beeping"),
        ("Okay, thank you, there is rust. Please check for dust.", "check dust"),
        ("So there is no water; tell me if you hear an echo.", "request echo"),
        ("You said there is smoke. Are you sure?", "check smoke"),
        ("Let me check that for you.", ""),
        ("I'm sending someone right away.", ""),
        ("Hello, how can I help?", ""),
        ("I cannot help you with that.", ""),
        ("Has anything been changed recently?", ""),
        ("", ""),
    ],
)
def test_free_phrasings(text, acts):
    found = [f"{act.name} {act.slots['slot']}" for act in listen(text).acts if act.name in ("request", "check")]
    assert " ".join(found) == acts


def test_the_agents_own_words_are_understood():
    bank = load_bank("triage", "agent")
    for key, name in (("ask", "request"), ("check", "check")):
        for line in bank[key]:
            for sign in SIGNS:
                acts = listen(line.replace("{sign}", sign)).acts
                assert [(act.name, act.slots.get("slot")) for act in acts] == [(name, sign)], line


def test_user_acts_are_the_acts_that_can_be_heard():
    heard = set()
    for name in ("clerk", "random", "always-refuse", "silent"):
        env = bare(ID, difficulty=4)
        agent = agents.make(name, env)
        for seed in range(60):
            obs, info = env.reset(seed=seed)
            agent.reset(obs, info)
            heard |= {act.name for act in env.heard_acts()}
            while "end_reason" not in info:
                obs, *_, info = env.step(agent.act(obs, info))
                heard |= {act.name for act in env.heard_acts()}
    assert heard - {"greeting", "chat"} <= set(Triage.user_acts) and len(heard) > 10


def test_a_discrete_agent_can_solve_it():
    for seed in range(60):
        env, goal = start(seed, difficulty=1 + seed % 5)
        canned = dict(zip(Triage.canned_acts, env.task.canned, strict=True))
        names = [f"ask_{1 + signs(goal).index(s)}" for s in goal["asks"]]
        names.append(f"route_{1 + routes(goal).index(goal['route'])}")
        assert say(env, [canned[name] for name in names])[-1][-1]["success"]
    assert {len(start(seed, difficulty=level)[0].task.canned) for seed in range(5) for level in LEVELS} == {17}


# -- agents, splits, difficulty ----------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_oracle_gets_everything(difficulty):
    for split in SPLITS:
        env = bare(ID, difficulty=difficulty, split=split)
        oracle = agents.make("oracle", env)
        for seed in range(100 if split == "train" else 25):
            steps = play(env, oracle, seed)
            assert total(steps) == 1.0 and steps[-1][-1]["success"], (split, seed)
            assert cost(steps) == 0.0


def share(make, difficulty: int, count: int = 200) -> float:
    env = bare(ID, difficulty=difficulty)
    agent = make(env)
    return sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(count)) / count


def greedy(env):
    return Greedy(env, random.Random(0))


def test_the_script_is_in_between_and_worse_on_harder_levels():
    easy, medium, hard = (share(greedy, level) for level in (1, 2, 5))
    assert 0.5 < medium < 0.85 and easy > medium > hard > 0.2 and hard < easy - 0.3


def test_checking_pays_where_callers_err():
    for difficulty, expected in ((1, 1.0), (2, 0.94), (3, 0.89), (5, 0.68)):  # the docstring's figures
        careful = share(lambda env: Careful(env, random.Random(0)), difficulty)
        assert careful > share(greedy, difficulty) and careful == pytest.approx(expected, abs=0.08)


def test_checking_everything_is_too_slow():
    class Thorough(Careful):
        checks = 99

    for difficulty in (2, 5):
        thorough = share(lambda env: Thorough(env, random.Random(0)), difficulty)
        assert thorough < share(lambda env: Careful(env, random.Random(0)), difficulty)


@pytest.mark.parametrize("difficulty", [2, 5])
def test_who_repeats_the_last_answer_asks_one_question(difficulty):
    """The oracle with a recap before each question still gets everything."""
    for seed in range(60):
        env, goal = start(seed, difficulty=difficulty)
        told = env.task.user
        before = ""
        for sign in goal["asks"]:
            env.step(f"Thank you. No {before} then. {ASK.format(sign)}" if before else ASK.format(sign))
            assert told.last == sign
            before = sign
        assert env.step(route(goal["route"]))[1] == 1.0


def test_who_believes_what_settles_it_is_paid_if_it_is_right():
    """A caller's errors may leave the right route alone though the truth would leave several: that is known, too.

    The second line has two signs of which one is missing. The caller errs about both, so that the other one rules
    the line out, and the truth about that one alone would not.
    """
    tried = 0
    for seed in range(400):
        env, goal = start(seed, "otherwise/4", 3)
        pair = next((i for i, line in enumerate(goal["lines"]) if len(line.signs) == 2), None)
        if goal["mentioned"] or pair is None or not set(goal["lines"][pair].signs) & set(goal["present"]):
            continue
        tried += 1
        patient(env)
        for i, line in enumerate(goal["lines"]):
            there = [sign for sign in line.signs if sign in goal["present"]]
            env.task.user.error = float(i == pair)
            assert answers(env, ASK.format(there[0] if i == pair else line.signs[0]))[-1] == "no"
        steps = say(env, [route(goal["route"])])
        assert steps[-1][1] == 1.0 and steps[-1][-1]["cost"] == 0.0
    assert tried > 20


def test_the_instructions_say_what_a_check_costs():
    for style in ("brief", "full"):
        text = start(0, instructions=style)[0].transcript()[0].content
        assert "patience" in text


def test_the_clerk_is_of_mixed_skill():
    assert 0.25 < share(lambda env: agents.make("clerk", env, seed=1), 2) < 0.5


@pytest.mark.parametrize("name", EXPLOITERS)
@pytest.mark.parametrize("difficulty", [1, 3, 5])
def test_exploiters_stay_under_the_ceiling_in_their_worst_class(name, difficulty):
    env, paid = bare(ID, difficulty=difficulty), defaultdict(list)
    agent = EXPLOITERS[name](env, random.Random(0))
    for seed in range(120):
        steps = play(env, agent, seed)
        paid[env.task.template.partition("/")[0]].append(total(steps))
    assert min(sum(each) / len(each) for each in paid.values()) <= Triage.ceiling == 0.05


def test_new_signs_and_held_out_dangers_are_met_only_in_their_splits():
    met, dangers = defaultdict(set), defaultdict(set)
    for split in SPLITS:
        for seed in range(150):
            goal = start(seed, difficulty=5, split=split)[1]
            met[split] |= set(signs(goal))
            dangers[split] |= set(goal["lines"][0].signs)
    assert all((set(NEW) <= met[split]) is (split == "test_goal") for split in SPLITS)
    assert all(not set(NEW) & met[split] for split in SPLITS if split != "test_goal")
    assert dangers["test_composition"] == set(HELD_SIGNS) <= met["train"]
    assert all(not set(HELD_SIGNS) & dangers[split] for split in SPLITS if split != "test_composition")


def test_nothing_private_is_in_any_info():
    for seed in range(40):
        env = bare(ID, difficulty=5)
        for *_, info in play(env, agents.make("greedy", env), seed):
            shown = json.dumps({key: value for key, value in info.items() if key != "messages"})
            assert not any(secret in shown for secret in env.task.secrets)

"""DelayedConsent: the first word decides, and the end pays."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from scipy.stats import binomtest, chisquare

from convgym import agents
from convgym.agents.delayed_consent import EXPLOITERS
from convgym.core import SPLITS
from convgym.language.speak import load_bank
from convgym.scenarios.delayed_consent import AGREES, NEEDS, Call, listen, solved
from tests.convgym.play import bare, play, replay

ID = "convgym/DelayedConsent-v0"
LEVELS = (1, 2, 3, 4, 5)
SAY = {"consent": "May I take notes?", "condition": "It renews after a month.", "chat": "Go on."}


def rate(name: str, level: int, count: int = 200, **settings) -> float:
    env = bare(ID, difficulty=level, **settings)
    agent = agents.make(name, env, seed=1)
    return sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(count)) / count


@pytest.mark.parametrize("level", LEVELS)
def test_values_by_hand(level):
    """The right word in time is worth P(agrees) = .9, anything else 0; afterwards no word is worth anything."""
    game = solved(level, 6)
    for wish, needed in NEEDS.items():
        start = Call(0, wish)
        assert game.q[start] == {act: 0.9 * (act == needed) for act in ("consent", "condition", "chat", "pass")}
        assert game.beliefs[start] == {"": 1.0}
    assert all(set(q.values()) == {0.0} for state, q in game.q.items() if state[0] > 0)
    assert game.optimum == AGREES == 0.9
    assert max(state[0] for state in game.values) == level + 1


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_values_say_when_the_reward_is_due(reward):
    """After an agreement, sparse: 1 is still to come; dense: it is paid, and nothing is."""
    agreed = 0
    for seed in range(30):
        env = bare(ID, reward=reward)
        env.reset(seed=seed)
        _, paid, _, _, info = env.step(SAY[env.privileged()["needs"]])
        if env.heard_acts()[0].name == "agree":
            agreed += 1
            assert (paid, env.privileged()["v"]) == ((0.0, 1.0) if reward == "sparse" else (1.0, 0.0))
            assert len(set(env.privileged()["q"].values())) == 1
            while "end_reason" not in info:
                _, late, _, _, info = env.step("Go on.")
            assert late == (1.0 if reward == "sparse" else 0.0) and env.heard_acts()[-1].name == "deal"
    assert agreed > 15


@pytest.mark.parametrize("level", [1, 2, 3])
def test_only_the_first_word_matters(level):
    """Enumerates every call: the outcome is a function of the first word."""
    for seed in range(4):
        env = bare(ID, difficulty=level)
        outcomes = {}
        for said in itertools.product([*SAY.values(), "Mumble.", "<tool_call>"], repeat=level + 1):
            steps = replay(env, said, seed)
            outcomes.setdefault(said[0], set()).add((sum(s[1] for s in steps[1:]), steps[-1][-1]["success"]))
        assert all(len(found) == 1 for found in outcomes.values())
        needed = SAY[env.task.privileged["needs"]]
        assert {said for said, found in outcomes.items() if next(iter(found))[1]} == {needed}
        assert all(found == {(0.0, False)} for said, found in outcomes.items() if said != needed)


def test_too_late_is_too_late():
    for seed in range(20):
        env = bare(ID)
        env.reset(seed=seed)
        needed = SAY[env.privileged()["needs"]]
        steps = replay(env, ["Go on.", needed, needed], seed)
        assert sum(step[1] for step in steps[1:]) == 0.0 and not steps[-1][-1]["success"]


def test_callers_agree_as_often_as_the_model_says_and_wishes_are_even():
    env, wishes, agreed = bare(ID), Counter(), 0
    for seed in range(800):
        env.reset(seed=seed)
        wishes[env.task.template] += 1
        env.step(SAY[env.privileged()["needs"]])
        agreed += env.heard_acts()[0].name == "agree"
    assert binomtest(agreed, 800, AGREES).pvalue > 1e-4
    assert chisquare([wishes[wish] for wish in NEEDS]).pvalue > 1e-4


@pytest.mark.parametrize("wish", NEEDS)
def test_both_wishes_can_be_asked_for(wish):
    env = bare(ID)
    env.reset(seed=0, options={"scenario": wish})
    assert env.task.template == wish and [act.name for act in env.heard_acts()] == [wish]


@pytest.mark.parametrize("level", LEVELS)
def test_the_knob_is_the_delay(level):
    steps = replay(bare(ID, difficulty=level), ["Go on."] * 9, 0)
    assert len(steps) - 1 == level + 1 and steps[-1][-1]["end_reason"] == "concluded"


@pytest.mark.parametrize(
    ("text", "act"),
    [
        ("May I take notes?", "consent"),
        ("Is it okay with you if I write this down?", "consent"),
        ("Do you consent to me recording our call?", "consent"),
        ("Before we start, could I have your permission to save what you tell me? I'd take notes.", "consent"),
        ("I need your consent first. Do you agree that I store this?", "consent"),
        ("Would you be comfortable with me keeping a record? I would write it down.", "consent"),
        ("Please note that the trial renews automatically.", "condition"),
        ("It's free for the first month, then you will be charged.", "condition"),
        ("After the trial it costs 10 a month.", "condition"),
        ("It auto-renews unless you cancel.", "condition"),
        ("You only pay after the first month.", "condition"),
        ("Tell me more.", "chat"),
        ("I'm sorry to hear that.", "chat"),
        ("Okay.", "chat"),
        ("May I take notes? It renews after a month.", ""),
        ("I take notes.", ""),
        ("May I help you?", ""),
        ("Mumble.", ""),
        ("", ""),
        ("x" * 3_000 + " May I take notes?", ""),
    ],
)
def test_free_phrasings(text, act):
    heard = [each.name for each in listen(text).acts]
    assert (heard == [act]) if act else (len(heard) != 1)


def test_the_agents_templates_are_understood():
    bank = load_bank("delayed_consent", "agent")
    for act in SAY:
        assert all([heard.name for heard in listen(line).acts] == [act] for line in bank[act])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_oracle_plays_without_regret(level, split):
    assert rate("oracle", level, 60, split=split) == 1.0


def test_the_greedy_script_falls_with_the_delay_and_the_clerk_errs():
    """It says the word at a random turn: in time with probability 1 / turns."""
    for level in LEVELS:
        found = round(rate("greedy", level) * 200)
        assert binomtest(found, 200, 1 / (level + 1)).pvalue > 1e-4
    assert 0.25 < rate("clerk", 2, 400) < 0.45


@pytest.mark.parametrize("name", EXPLOITERS)
def test_a_cheat_earns_nothing_with_its_worse_wish(name):
    env, totals = bare(ID), dict.fromkeys(NEEDS, 0.0)
    agent = EXPLOITERS[name](env, random.Random(1))
    for seed in range(100):
        total = sum(step[1] for step in play(env, agent, seed)[1:])
        totals[env.task.template] += total
    assert min(totals.values()) == 0.0
    assert (sum(totals.values()) == 0.0) is (name == "both-at-once")

"""AskOrAct: a question is worth what it changes, and costs a turn."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from scipy.stats import binomtest, chisquare

from convgym import agents
from convgym.agents.ask_or_act import EXPLOITERS
from convgym.core import SPLITS
from convgym.language.speak import load_bank
from convgym.scenarios.ask_or_act import DRINKS, KINDS, TRUST, Knowledge, listen, solved
from tests.convgym.play import bare, play, replay

ID = "convgym/AskOrAct-v0"
LEVELS = (1, 2, 3, 4, 5)


def rate(name: str, level: int, count: int = 200, **settings) -> float:
    env = bare(ID, difficulty=level, **settings)
    agent = agents.make(name, env, seed=1)
    return sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(count)) / count


# -- values by hand ----------------------------------------------------------------------------------


def test_values_where_answers_are_true():
    """Difficulty 1: P(usual) = .9, answers are true, 3 turns of 1/3 each.

    Asked first, the drink is known: 2/3. Served first without a usual: right (1/4) gives 1; wrong leaves two
    turns and three drinks, of which asking makes 1/3, and so does guessing: 1/3 x 2/3 + 2/3 x 1/2 x 1/3. So
    1/4 + 3/4 x 1/3 = 1/2. The usual: .9 + .1 x 1/3.
    """
    game = solved(1, 3)
    q = game.q[Knowledge(0, "")]
    assert q["ask"] == pytest.approx(2 / 3) and q["tea"] == pytest.approx(1 / 2)
    q = game.q[Knowledge(0, "milk")]
    assert q["ask"] == pytest.approx(2 / 3) and q["milk"] == pytest.approx(0.9 + 0.1 / 3)
    assert game.optimum == pytest.approx((2 / 3 + 0.9 + 0.1 / 3) / 2)


def test_values_where_answers_may_be_wrong():
    """Difficulty 2: P(usual) = .8, P(true) = .95.

    What was said is right with .95 and then pays twice; if it is wrong, one of three is left for one turn:
    .95 x 2/3 + .05 x 1/3 x 1/3. The usual: .8, and .2 x 1/3 by guessing on. Asking would make .95 x 1/3, and a
    little more: a wrong answer names the drink that was turned down in a third of the cases, and is seen
    through, and then one of three is right for the one turn left.
    """
    game = solved(2, 3)
    assert game.values[Knowledge(0, "")] == pytest.approx(0.95 * 2 / 3 + 0.05 / 9)
    assert game.values[Knowledge(1, "", said="tea")] == pytest.approx(0.95 * 2 / 3 + 0.05 / 9)
    assert game.values[Knowledge(0, "tea")] == pytest.approx(0.8 + 0.2 / 3)
    assert game.q[Knowledge(1, "tea", wrong="tea")]["ask"] == pytest.approx(0.95 / 3 + 0.05 / 3 / 3 / 3)
    assert game.q[Knowledge(1, "tea", wrong="tea")]["milk"] == pytest.approx(1 / 3)


def test_beliefs_by_hand():
    """Two equal answers of two: .95^2 against (.05/3)^2 for each of the other three drinks."""
    right, wrong = 0.95**2, (0.05 / 3) ** 2
    belief = solved(2, 3).beliefs[Knowledge(2, "", said="tea tea")]
    assert belief["tea"] == pytest.approx(right / (right + 3 * wrong))
    assert belief["milk"] == pytest.approx(wrong / (right + 3 * wrong))


def test_a_question_is_worth_less_the_less_answers_can_be_trusted():
    """At difficulty 5 a guess is worth 1/2, and a question .65 x 2/3 + .35 x 1/9."""
    worth = [solved(level, 3).q[Knowledge(0, "")]["ask"] for level in LEVELS]
    assert worth == sorted(worth, reverse=True)
    assert all(solved(level, 3).q[Knowledge(0, "")]["tea"] == pytest.approx(0.5) for level in LEVELS)
    assert worth[3] > 0.5 > worth[4] == pytest.approx(0.65 * 2 / 3 + 0.35 / 9)


def test_information_is_worth_nothing_in_the_last_turn():
    game = solved(2, 3)
    last = [state for state in game.q if state[0] == 2]
    assert last and all(game.q[state]["ask"] == game.q[state]["pass"] == 0.0 for state in last)


# -- the guest ---------------------------------------------------------------------------------------


def test_one_drink_is_right_in_an_episode_whatever_comes_before():
    for seed in range(40):
        right = set()
        for before in ([], ["What would you like?"], ["Mumble."], ["Tea."], ["Which drink?", "Juice."]):
            env = bare(ID)
            replay(env, before, seed)
            twins = [env.fork() for _ in DRINKS]
            right |= {drink for drink, twin in zip(DRINKS, twins) if twin.step(drink) and paid(twin)}
        assert right == {bare_wanted(seed)}


def paid(env) -> bool:
    return env.heard_acts()[0].name == "right"


def bare_wanted(seed: int) -> str:
    env = bare(ID)
    env.reset(seed=seed)
    return env.privileged()["wanted"]


@pytest.mark.parametrize("level", LEVELS)
def test_the_usual_holds_and_answers_are_true_as_often_as_the_model_says(level):
    usual_holds, answer_holds = TRUST[level - 1]
    env, usual, true = bare(ID, difficulty=level), [], []
    for seed in range(1_000):
        env.reset(seed=seed)
        private = env.privileged()
        if private["usual"]:
            usual.append(private["usual"] == private["wanted"])
        env.step("What would you like?")
        true.append(env.heard_acts()[0].slots["drink"] == private["wanted"])
    assert binomtest(sum(usual), len(usual), usual_holds).pvalue > 1e-4
    assert binomtest(sum(true), len(true), answer_holds).pvalue > 1e-4


def test_answers_belong_to_the_turn():
    """What the guest answers at a turn does not depend on what was done before."""
    for seed in range(40):
        answers = set()
        for first in ("What would you like?", "Mumble.", "<tool_call>", ""):
            env = bare(ID, difficulty=5)
            replay(env, [first, "Which drink?"], seed)
            answers.add(env.heard_acts()[0].slots["drink"])
        assert len(answers) == 1


def test_guests_with_and_without_a_usual_are_equally_frequent():
    env, kinds, wanted = bare(ID), Counter(), Counter()
    for seed in range(1_200):
        env.reset(seed=seed)
        kinds[env.task.template] += 1
        wanted[env.privileged()["wanted"]] += 1
    assert set(kinds) == set(KINDS)
    assert chisquare([kinds[kind] for kind in KINDS], [600, 150, 150, 150, 150]).pvalue > 1e-4
    assert chisquare([wanted[drink] for drink in DRINKS]).pvalue > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_asked_for(kind):
    env = bare(ID)
    obs, _ = env.reset(seed=0, options={"scenario": kind})
    usual = kind.partition("/")[2]
    assert env.task.template == kind and (usual in obs.rpartition("User: ")[2].lower())
    assert env.privileged()["usual"] == usual


def test_no_opening_is_an_order_or_a_question():
    bank = load_bank("ask_or_act", "user")
    lines = [line.format(drink=drink) for key in ("usual", "any") for line in bank[key] for drink in DRINKS]
    assert [line for line in lines if listen(line).acts] == []


def test_the_opening_tells_the_usual_and_nothing_else():
    env = bare(ID)
    for split in SPLITS:
        for seed in range(60):
            obs, _ = env.reset(seed=seed, options={"split": split})
            said = obs.rpartition("User: ")[2].lower()
            usual = env.privileged()["usual"]
            assert [drink for drink in DRINKS if drink in said] == ([usual] if usual else [])


# -- words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "act"),
    [
        ("What would you like to drink today?", "ask"),
        ("May I ask what you prefer?", "ask"),
        ("Tell me, please.", "ask"),
        ("Tea or coffee?", "ask"),
        ("Would you like tea, coffee, milk or juice?", "ask"),
        ("Could you let me know which drink you'd prefer?", "ask"),
        ("ask", "ask"),
        ("tea", "tea"),
        ("TEA!", "tea"),
        ("Here's a nice cup of tea for you.", "tea"),
        ("I'll bring you some juice right away.", "juice"),
        ("Coffee it is then", "coffee"),
        ("I serve milk, not tea.", "milk"),
        ("Would you like some coffee?", "coffee"),
        ("I usually have tea.", ""),
        ("My usual is tea.", ""),
        ("tea coffee milk juice", ""),
        ("tea and coffee", ""),
        ("steak", ""),
        ("No tea.", ""),
        ("Hello there.", ""),
        ("", ""),
        ("x" * 3_000 + " tea", ""),
    ],
)
def test_free_phrasings(text, act):
    assert [heard.name for heard in listen(text).acts] == ([act] if act else [])
    assert listen(text).understood is (bool(act) or not text)


def test_the_agents_templates_are_understood():
    for act, lines in load_bank("ask_or_act", "agent").items():
        if act in ("ask", *DRINKS):
            assert all([heard.name for heard in listen(line).acts] == [act] for line in lines)


# -- agents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_oracle_plays_without_regret(level, split):
    assert rate("oracle", level, 60, split=split) == 1.0


def test_the_greedy_script_falls_with_trust_and_the_clerk_errs():
    greedy = [rate("greedy", level) for level in LEVELS]
    assert greedy == sorted(greedy, reverse=True) and greedy[1] < 0.95 and greedy[4] < 0.4
    assert 0.25 < rate("clerk", 2, 400) < 0.45


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", EXPLOITERS)
def test_cheats_stay_under_their_ceilings(name, level):
    env = bare(ID, difficulty=level)
    agent = EXPLOITERS[name](env, random.Random(1))
    total = best = 0.0
    for seed in range(200):
        total += sum(step[1] for step in play(env, agent, seed)[1:])
        best += env.task.privileged["optimal_return"]
    assert total / best <= (getattr(agent, "ceiling", None) or env.ceiling)
    if name in ("all-drinks", "ask-forever"):
        assert total == 0.0


@pytest.mark.parametrize("split", SPLITS)
def test_repeating_the_guest_is_under_the_ceiling(split):
    """What it says of its habits is no order; what is left is its answers to accidental questions."""
    for level in LEVELS:
        env = bare(ID, difficulty=level, split=split)
        total = best = 0.0
        for seed in range(200):
            obs, info = env.reset(seed=seed)
            best += env.task.privileged["optimal_return"]
            while "end_reason" not in info:
                obs, reward, _, _, info = env.step(obs.rpartition("User: ")[2])
                total += reward
        assert total / best < env.ceiling

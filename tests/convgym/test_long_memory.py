"""LongMemory: one right value to each question, the latest one, and nothing else counts."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from convgym import agents
from convgym.agents.long_memory import EXPLOITERS
from convgym.core import SPLITS, values_of
from convgym.errors import ConfigError
from convgym.language.speak import load_bank
from convgym.scenarios.long_memory import (
    CHATS,
    CORRECTIONS,
    FACTS,
    HELD_OUT,
    KINDS,
    LETTERS,
    MONTHS,
    PETS,
    QUESTIONS,
    SUBJECTS,
    WORDS,
    LongMemory,
    candidates,
    listen,
)
from tests.convgym.play import bare, plain, play, replay, say

ID = "convgym/LongMemory-v0"
LEVELS = (1, 2, 3, 4, 5)
AGENT, USER = load_bank("long_memory", "agent"), load_bank("long_memory", "user")


def asked(env) -> str:
    """The subject that the user has just asked for, or nothing."""
    return next((act.slots["subject"] for act in env.heard_acts() if act.name.startswith("ask_")), "")


def until_asked(seed: int, template: str | None = None, **options):
    """Plays up to the first question."""
    env = bare(ID, **options)
    env.reset(seed=seed, options={"scenario": template} if template else None)
    while not asked(env):
        assert "end_reason" not in env.step("OK.")[-1]
    return env, dict(env.privileged())


def answer_all(env, answers: dict[str, str]) -> dict:
    """Answers each question with what is given for its subject."""
    info: dict = {}
    while "end_reason" not in info:
        info = env.step(answers[asked(env)])[-1]
    return info


def until(difficulty: int) -> int:
    """User messages up to the first question: facts two by two, corrections, small talk, the question."""
    level = difficulty - 1
    return -(-FACTS[level][0] * FACTS[level][1] // 2) + CORRECTIONS[level] + CHATS[level] + 1


# -- how good agents are -------------------------------------------------------------------------------------


def wins(name: str, count: int, **options) -> int:
    env = bare(ID, **options)
    agent = agents.make(name, env, seed=1)
    return sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(count))


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_oracle_always_succeeds(difficulty):
    turns = until(difficulty) + QUESTIONS[difficulty - 1] - 1
    for split in SPLITS:
        env = bare(ID, difficulty=difficulty, split=split)
        agent = agents.make("oracle", env)
        for seed in range(40):
            steps = play(env, agent, seed)
            assert steps[-1][-1]["success"] and steps[-1][-1]["end_reason"] == "concluded"
            assert all(step[-1]["understood"] for step in steps)
            extra = split == "test_composition" and difficulty == 1  # it corrects at every difficulty
            assert len(steps) - 1 == turns + extra < LongMemory.default_max_turns


def test_the_greedy_script_falls_with_difficulty():
    shares = [wins("greedy", 200, difficulty=level) / 200 for level in LEVELS]
    assert all(easy > hard for easy, hard in itertools.pairwise(shares))
    assert shares[0] < 0.95 and shares[-1] > 0.04 and 0.3 < shares[1] < 0.8


def test_the_clerk_is_of_mixed_skill():
    assert 0.25 <= wins("clerk", 300) / 300 <= 0.45


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("name", EXPLOITERS)
def test_exploiters_stay_under_the_ceiling(name, difficulty):
    """Nobody does better than guessing two values of four without repeating oneself, 1 in 12."""
    count = 60
    won = wins(name, count, difficulty=difficulty)
    assert binomtest(won, count, 1 / 12, alternative="greater").pvalue > 1e-3
    assert LongMemory.ceiling > 1 / 12
    if name in ("all-values", "parrot", "copy-first", "copy-last"):
        assert won == 0


# -- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", KINDS)
def test_exact_values_succeed_and_others_fail(template):
    split = "test_composition" if template == HELD_OUT else "train"
    for seed in range(6):
        env, goal = until_asked(seed, template, split=split)
        facts = goal["facts"]
        assert answer_all(env.fork(), {s: f"It is {value}." for s, value in facts.items()})["success"]
        wrong = {s: next(v for other, v in facts.items() if other != s) for s in facts}
        for bad in goal["asked"]:
            info = answer_all(env.fork(), {**facts, bad: wrong[bad]})
            assert not info["success"] and info["score"] == 1 - 1 / len(goal["asked"])
            info = answer_all(env.fork(), {**facts, bad: f"{facts[bad]} or {wrong[bad]}"})
            assert not info["success"] and info["score"] == 0.0
            info = answer_all(env.fork(), {**facts, bad: "I do not know."})
            assert not info["success"] and info["end_reason"] == "abandoned"


@pytest.mark.parametrize("difficulty", LEVELS[1:])
def test_the_latest_value_counts(difficulty):
    for kind in SUBJECTS:
        name = f"{kind}/corrected"
        split = "test_composition" if name == HELD_OUT else "train"
        env, goal = until_asked(3, name, difficulty=difficulty, split=split)
        stale = set(goal["stale"]) & set(goal["asked"])
        assert len(stale) == 1 and len(goal["stale"]) == CORRECTIONS[difficulty - 1]
        old = {**goal["facts"], **goal["stale"]}
        assert not answer_all(env.fork(), old)["success"]
        assert answer_all(env, goal["facts"])["success"]


def test_plain_templates_correct_only_what_is_not_asked_for():
    for seed in range(30):
        _, goal = until_asked(seed, "pet/plain", difficulty=4)
        assert goal["stale"] and not set(goal["stale"]) & set(goal["asked"])


def test_listing_everything_fails():
    for seed in range(20):
        env, goal = until_asked(seed)
        every = ", ".join(goal["facts"].values())
        assert answer_all(env, dict.fromkeys(goal["facts"], every))["score"] == 0.0


def test_a_value_of_another_kind_beside_the_right_one_is_a_list():
    for seed in range(10):
        env, goal = until_asked(seed, "code/plain")
        info = answer_all(env, {s: f"{value}, or is it seat 99C?" for s, value in goal["facts"].items()})
        assert not info["success"] and info["score"] == 0.0


def test_what_was_said_before_the_question_does_not_count():
    """Neither as an answer nor against the agent: it may take notes aloud."""
    for seed in range(10):
        env = bare(ID)
        env.reset(seed=seed)
        facts = env.privileged()["facts"]
        every = ", ".join(facts.values())
        while not asked(env):
            env.step(f"Noted so far: {every}.")
        assert env.task.judge(env.task.world).score == 0.0
        assert not answer_all(env.fork(), dict.fromkeys(facts, "OK."))["success"]
        assert answer_all(env, facts)["success"]


def test_the_user_does_not_say_whether_an_answer_was_right():
    for seed in range(20):
        env, goal = until_asked(seed)
        right, wrong = env.fork(), env.fork()
        first = asked(env)
        others = [value for subject, value in goal["facts"].items() if subject != first]
        assert right.step(goal["facts"][first])[0] == wrong.step(others[0])[0]


def test_the_script_is_the_same_whatever_is_said():
    for seed in range(10):
        said = []
        for reply in ("OK.", "Yes, of course!", "I like the weather here, and you?", "Noted: 1234, 5 May, 3C."):
            env = bare(ID, difficulty=3)
            steps = replay(env, [reply] * 9, seed)
            said.append([step[0] for step in steps])
        assert said[0] == said[1] == said[2] == said[3]


@pytest.mark.parametrize("text", ["", "Xyzzy plugh.", "   "])
def test_silence_and_gibberish_are_nagged_about_and_then_left(text):
    env = bare(ID)
    steps = replay(env, [text] * 30, 2)
    assert steps[-1][-1]["end_reason"] == "abandoned"
    env.reset(seed=2)
    line = {act.name for act in env.heard_acts()} - {"open", "greeting", "chat"}
    env.step(text)
    assert line < {act.name for act in env.heard_acts()} <= line | {"nag", "repeat"}  # the facts are told again


def test_a_question_is_asked_again_until_there_is_a_value():
    env, goal = until_asked(1)
    subject = asked(env)
    env.step("Let me think.")
    assert asked(env) == subject
    assert answer_all(env, goal["facts"])["success"]


# -- what is drawn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_facts_and_questions_grow_with_difficulty(difficulty):
    level = difficulty - 1
    for seed in range(25):
        env, goal = until_asked(seed, difficulty=difficulty)
        count, each = FACTS[level]
        assert len(goal["facts"]) == count * each and len(set(goal["asked"])) == QUESTIONS[level]
        kinds = Counter(fact.kind for fact in env.task.world.tables["facts"].values())
        assert set(kinds.values()) == {each} and len(kinds) == count
        assert len({*goal["facts"].values(), *goal["stale"].values()}) == count * each + CORRECTIONS[level]
        assert sum(m.role == "user" for m in env.transcript()) == until(difficulty)


@given(seed=st.integers(0, 5_000), difficulty=st.integers(1, 3), split=st.sampled_from(("train", "val", "test_goal")))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_every_answer_stands_in_the_words(seed, difficulty, split):
    """Each value is said after the name of its subject or before it, the latest one last, and never in a question."""
    env, goal = until_asked(seed, difficulty=difficulty, split=split)
    said = [message.content for message in env.transcript() if message.role == "user"]
    for subject, value in goal["facts"].items():
        lines = [line for line in said if subject in line and candidates(line)]
        assert value in lines[-1]
        assert subject not in goal["stale"] or goal["stale"][subject] in lines[0]
    assert not candidates(said[-1])


def test_secrets_are_not_told_in_the_opening():
    for seed in range(40):
        env = bare(ID)
        _, info = env.reset(seed=seed)
        assert len(env.task.secrets) == 3
        assert not any(secret in info["messages"][1]["content"] for secret in env.task.secrets)


def test_each_template_is_reached_by_name_and_by_chance():
    seen = Counter()
    env = bare(ID)
    for seed in range(450):
        env.reset(seed=seed)
        seen[env.task.template] += 1
    assert set(seen) == set(KINDS) - {HELD_OUT} and min(seen.values()) > 25
    for kind in set(KINDS) - {HELD_OUT}:
        env.reset(seed=1, options={"scenario": kind})
        assert env.task.template == kind
    with pytest.raises(ConfigError, match="seat/corrected"):
        env.reset(seed=1, options={"scenario": HELD_OUT})


def test_the_held_out_composition_is_met_nowhere_else():
    for split in SPLITS:
        for difficulty in LEVELS:
            env = bare(ID, split=split, difficulty=difficulty)
            for seed in range(20):
                env.reset(seed=seed)
                goal = env.privileged()
                both = {subject for subject in goal["stale"] if subject in SUBJECTS["seat"]} & set(goal["asked"])
                assert bool(both) is (split == "test_composition")


def test_new_values_are_met_in_test_goal_only():
    held = {*values_of(PETS, "test_goal"), *values_of(WORDS, "test_goal"), *values_of(MONTHS, "test_goal")}
    letters = values_of(LETTERS, "test_goal")
    for split in SPLITS:
        env = bare(ID, split=split, difficulty=5 if split != "test_composition" else 2)
        for seed in range(30):
            env.reset(seed=seed)
            values = [v for k, v in env.task.world.tables["facts"].items() if v.kind != "code"]
            new = [fact.value.split()[-1] in held or fact.value[-1] in letters for fact in values]
            assert all(new) if split == "test_goal" else not any(new)


def test_forks_and_snapshots_are_equal():
    for seed in range(6):
        env = bare(ID, difficulty=4)
        env.reset(seed=seed)
        facts = list(env.privileged()["facts"].values())
        texts = ["OK.", "", "Xyzzy.", facts[0], "Yes.", *["Fine.", facts[1]] * 8]
        for cut in range(0, 10, 3):
            env.reset(seed=seed)
            say(env, texts[:cut])
            twin, state = env.fork(), env.snapshot()
            rest = plain(say(env, texts[cut:]))
            assert plain(say(twin, texts[cut:])) == rest
            env.restore(state)
            assert plain(say(env, texts[cut:])) == rest


# -- language ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The code is 4821.", {("code", "4821")}),
        ("It's 4 8 2 1!", {("code", "4821")}),
        ("4,821", {("code", "4821")}),
        ("４８２１", {("code", "4821")}),  # full-width digits
        ("48213 or 482", set()),
        ("Your seat is 14C.", {("seat", "14c")}),
        ("seat 14-c", {("seat", "14c")}),
        ("14 C", {("seat", "14c")}),
        ("You sit in row 14, seat C.", {("seat", "14c")}),
        ("I have 14 cats", set()),
        ("The party is on 3 May.", {("date", "3 may")}),
        ("on May 3rd", {("date", "3 may")}),
        ("the 3rd of MAY", {("date", "3 may")}),
        ("May 3, 2024", {("date", "3 may"), ("code", "2024")}),
        ("It may be so.", set()),
        ("Your cat is called MISO.", {("pet", "miso")}),
        ("\"walrus\", I think", {("word", "walrus")}),
        ("walruses", set()),
        ("4821, 7310", {("code", "4821"), ("code", "7310")}),
        ("1.4821", set()),
        ("Call 555-4821", set()),
    ],
)  # fmt: skip
def test_values_have_one_canonical_form(text, found):
    assert candidates(text) == found


@given(code=st.integers(1_000, 9_999), row=st.integers(1, 40), letter=st.sampled_from(LETTERS), day=st.integers(1, 28),
       month=st.sampled_from(MONTHS), pet=st.sampled_from(PETS), word=st.sampled_from(WORDS))  # fmt: skip
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_value_is_found_in_every_wording(code, row, letter, day, month, pet, word):
    values = {"code": f"{code}", "seat": f"{row}{letter}", "date": f"{day} {month}", "pet": pet, "word": word}
    for kind, value in values.items():
        assert candidates(value) == {(kind, value.lower())}
        for key in (f"tell_{kind}", f"also_{kind}", f"correct_{kind}"):
            for line in USER[key]:
                assert candidates(line.replace("{value}", value)) == {(kind, value.lower())}, line
        for line in AGENT["answer"]:
            assert [act.slots for act in listen(line.replace("{value}", value)).acts if act.name == "tell"] == [
                {"kind": kind, "value": value.lower()}
            ]


def test_no_wording_holds_a_value_of_its_own():
    for bank in (USER, AGENT):
        for key, lines in bank.items():
            for line in lines:
                assert not candidates(line), (key, line)
    assert not any(candidates(subject) for each in SUBJECTS.values() for subject in each)
    assert len(PETS) == len(set(PETS)) and len(WORDS) == len(set(WORDS))
    assert not {pet.lower() for pet in PETS} & set(WORDS)


@pytest.mark.parametrize(
    "text",
    ["OK.", "Noted!", "Got it, I will remember that.", "Sounds good.", "How lovely, soup is great.", "Yes.",
     "Sure thing", "I have no feelings about weather, but enjoy it!", "Understood - anything else?",
     "That's nice to hear"],
)  # fmt: skip
def test_ordinary_replies_are_understood(text):
    assert listen(text).understood and listen(text).acts
    env = bare(ID)
    first = env.reset(seed=3)[0]
    assert env.step(text)[0].rpartition("User: ")[2] not in first and env.task.user.at == 1


@pytest.mark.parametrize("text", ["1" * 10**6, "4821 " * 10**5, "ﷺ" * 10**6, "\x00\ud800", "row 1 seat " * 10**5])
def test_hostile_text_is_bounded(text):
    assert len(listen(text).acts) < 3_000
    assert not replay(bare(ID), [text] * 30, seed=0)[-1][-1]["success"]

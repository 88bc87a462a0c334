"""TwentyQuestions: one word a question, each list asked about, and one exact guess."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from convgym import agents
from convgym.agents.twenty_questions import EXPLOITERS
from convgym.core import SPLITS, values_of
from convgym.language.speak import load_bank
from convgym.scenarios.twenty_questions import (
    ALIASES,
    ATTRIBUTE_OF,
    HELD_OUT,
    KINDS,
    LIES,
    PAIRS,
    POOLS,
    SPARE,
    TwentyQuestions,
    canonical,
    listen,
)
from convgym.tools import format_call
from tests.convgym.play import bare, plain, play, say

ID = "convgym/TwentyQuestions-v0"
ITEMS = {1: 16, 2: 32, 3: 64, 4: 128, 5: 128}


def start(seed: int, **settings):
    """Starts an episode and returns the env and what only oracles see."""
    env = bare(ID, **settings)
    env.reset(seed=seed)
    return env, dict(env.privileged())


def guess(item: str) -> str:
    return format_call("guess", {"item": item})


def ask_each(env, goal: dict) -> None:
    """Asks one question about each list."""
    for values in goal["lists"].values():
        env.step(f"Is it {values[0]}?")


# -- the guess -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", ITEMS)
def test_the_item_and_nothing_else_succeeds(difficulty):
    for seed in range(15):
        env, goal = start(seed, difficulty=difficulty)
        ask_each(env, goal)
        words = goal["item"].split()
        rights = (
            goal["item"], goal["item"].upper(), f" The {goal['item']}. ", " ".join(reversed(words)), ", ".join(words),
            f"a {'-'.join(words)}", f"'{' / '.join(words)}'!", f"the {words[-1]}, the {' '.join(words[:-1])}",
        )  # fmt: skip
        for right in rights:
            _, reward, terminated, _, info = env.fork().step(guess(right))
            assert (reward, terminated, info["success"], info["end_reason"]) == (1.0, True, True, "submitted")
            assert info["cost"] == 0.0
        others = [value for name, values in goal["lists"].items() for value in values if value not in words]
        wrong = [
            " ".join(words[1:]), f"{goal['item']} {others[0]}", f"{goal['item']} {words[0]}", "", "item",
            " ".join([*others, *words]), f"{goal['item']}, {goal['item']}", f"{goal['item']} or so",
            f"{words[0]}\u200b{words[0]} {' '.join(words[1:])}", goal["item"].replace(words[0], words[1]),
            f"{words[0][0]}\u200b{words[0][1:]} {' '.join(words[1:])}", f"{goal['item']}7",
            f"{goal['item']}, {others[0]}",
            ", ".join([*words, *others]),
            *(goal["item"].replace(word, other) for word in words for other in others),
        ]  # fmt: skip
        for item in wrong:
            _, reward, terminated, _, info = env.fork().step(guess(item))
            assert terminated and reward == 0.0 and not info["success"] and info["score"] < 1.0, item
        long = " ".join([*words, *others])
        assert env.fork().step(guess(long))[-1]["score"] == 0.0


def test_a_guess_needs_a_question_about_each_list():
    for seed in range(20):
        env, goal = start(seed)
        for values in goal["lists"].values():
            _, reward, _, _, info = env.fork().step(guess(goal["item"]))
            assert (reward, info["success"], info["score"], info["cost"]) == (0.0, False, 0.0, 1.0)
            env.step(f"Is it {values[0]}?")
        assert env.step(guess(goal["item"]))[-1]["success"]


def test_a_guess_in_words_is_no_guess():
    env, goal = start(0)
    ask_each(env, goal)
    for text in (f"It is the {goal['item']}.", f"guess {goal['item']}", f"My guess: {goal['item']}!"):
        _, reward, terminated, _, _ = env.fork().step(text)
        assert reward == 0.0 and not terminated


def test_the_score_is_the_share_of_what_was_asked_and_guessed():
    env, goal = start(1)
    words, lists = goal["item"].split(), list(goal["lists"].values())
    n = len(lists)
    for i, values in enumerate(lists):
        assert env.progress() == pytest.approx(i / (2 * n))
        env.step(f"Is it {values[0]}?")
    other = next(value for value in lists[0] if value != words[0])
    info = env.fork().step(guess(" ".join([other, *words[1:]])))[-1]
    assert info["score"] == pytest.approx(1 - 1 / (2 * n)) and not info["success"]
    assert env.step(guess("it"))[-1]["score"] == pytest.approx(0.5)


@given(
    st.permutations(["small", "red", "iron", "cup"]), st.sampled_from(["", "a ", "The "]),
    st.sampled_from([" ", ", ", "-", " / ", ",the "]), st.sampled_from("  .!?"),
)  # fmt: skip
@settings(max_examples=60, derandomize=True, deadline=None)
def test_items_have_one_canonical_form(words, article, between, end):
    item = f"{article}{between.join(words)}{end}"
    assert canonical(item) == "cup iron red small" == canonical(canonical(item))


@pytest.mark.parametrize("alias", ALIASES)
def test_another_name_of_a_word_is_the_word(alias):
    assert canonical(f"small, {alias}, cup") == canonical(f"small {ALIASES[alias]} cup") != canonical("small cup")


# -- the questions ---------------------------------------------------------------------------------------


def test_answers_are_true_where_nobody_lies():
    for seed in range(20):
        env, goal = start(seed, difficulty=3)
        for values in goal["lists"].values():
            for value in values:
                twin = env.fork()
                obs = twin.step(f"Is it {value}?")[0]
                expected = "yes" if value in goal["item"].split() else "no"
                assert twin.heard_acts()[0].name == expected
                assert obs.removeprefix("User: ") in load_bank("twenty_questions", "user")[expected]


@pytest.mark.parametrize(
    "text",
    [
        "Is it {a}, {b} or {c}?", "Is it {a} or {b}?", "{a} {b}", "Is it {a}? Is it {b}?", "Is it the {item}?",
        "{item}?", "Is it {a} and {z}?", "is it one of these: {a}/{b}/{c}", "{a}\n{b}", "Is it {a}? Or {b}?",
    ],
)  # fmt: skip
def test_several_words_are_not_answered(text):
    for seed in range(10):
        env, goal = start(seed)
        a, b, c = goal["lists"]["colour"][:3]
        z = goal["lists"]["thing"][0]
        env.step(text.format(a=a, b=b, c=c, z=z, item=goal["item"]))
        assert env.heard_acts()[0].name == "one_thing"
        assert env.task.world.log == [] and env.task.user.questions == goal["questions"]


def test_words_that_are_not_in_the_game_are_not_answered():
    for seed in range(20):
        env, goal = start(seed)
        off = next(colour for colour in POOLS["colour"] if colour not in goal["lists"]["colour"])
        on = goal["lists"]["colour"][0]
        env.step(f"Is it {off}?")
        assert env.heard_acts()[0].name == "not_listed" and env.task.world.log == []
        env.step(f"Is it {on}, not {off}?")  # a negation is no plain question
        assert env.heard_acts()[0].name == "repeat" and env.task.world.log == []
        env.step(f"Is it {on} as opposed to {off}?")  # the one word of the game is what is asked
        assert env.heard_acts()[0].name in ("yes", "no")


def test_questions_are_limited_and_patience_ends():
    for seed in range(20):
        env, goal = start(seed, difficulty=1)
        value = goal["lists"]["colour"][0]
        keys = []
        for _ in range(20):
            info = env.step(f"Is it {value}?")[-1]
            keys.append(env.heard_acts()[0].name)
            if "end_reason" in info:
                break
        assert Counter(keys)["yes"] + Counter(keys)["no"] == goal["questions"]
        assert keys[goal["questions"]] == "no_more" and keys[-1] == "leave" and info["end_reason"] == "abandoned"


def test_after_the_last_question_a_guess_still_counts():
    for seed in range(10):
        env, goal = start(seed, difficulty=1)
        ask_each(env, goal)
        while env.task.user.questions:
            env.step(f"Is it {goal['lists']['colour'][0]}?")
        assert env.step(guess(goal["item"]))[-1]["success"]


@pytest.mark.parametrize("difficulty", ITEMS)
def test_the_questions_suffice_for_a_search_without_lies(difficulty):
    """Asking each list through but for its last word takes at most the questions there are, SPARE aside."""
    for seed in range(30):
        env, goal = start(seed, difficulty=difficulty)
        needed = sum(len(values) - 1 for values in goal["lists"].values())
        assert goal["questions"] == needed + SPARE[difficulty - 1] < env.max_turns


# -- lies ------------------------------------------------------------------------------------------------


def test_lies_come_at_their_rate_and_only_where_they_are_announced():
    for difficulty, rate in enumerate(LIES, 1):
        lies = asked = 0
        for seed in range(100):
            env, goal = start(seed, difficulty=difficulty)
            for value in goal["lists"]["thing"]:
                env.step(f"Is it a {value}?")
                lies += (env.heard_acts()[0].name == "yes") is not (value in goal["item"].split())
                asked += 1
        assert (lies == 0) if rate == 0 else binomtest(lies, asked, rate).pvalue > 1e-3
        assert ("may be false" in env.transcript()[0].content) is (rate > 0)


def test_a_lie_belongs_to_the_turn_and_the_question():
    """The same question at the same turn gets the same answer whatever was said before, at another turn another."""
    answers: dict[tuple[int, str], set[str]] = {}
    moved = 0
    for seed in range(60):
        answers.clear()
        for fill in ("What colour is it?", "Hello.", "Is it {other}?"):
            for turn in (0, 1, 2):
                env, goal = start(seed, difficulty=5)
                value, other = goal["lists"]["stuff"][:2]
                for _ in range(turn):
                    env.step(fill.format(other=other))
                env.step(f"Is it {value}?")
                answers.setdefault((turn, value), set()).add(env.heard_acts()[0].name)
        assert all(len(heard) == 1 for heard in answers.values())
        moved += len(set.union(*answers.values())) > 1
    assert moved > 2


def test_questions_of_a_turn_are_lied_about_independently():
    differ = 0
    for seed in range(150):
        env, goal = start(seed, difficulty=5)
        lied = []
        for value in goal["lists"]["stuff"]:
            twin = env.fork()
            twin.step(f"Is it {value}?")
            lied.append((twin.heard_acts()[0].name == "yes") is not (value in goal["item"].split()))
        differ += 0 < sum(lied) < len(lied)
    assert differ > 10


# -- what is heard ---------------------------------------------------------------------------------------

PHRASES = [
    ("Is it red?", ["red"]),
    ("red", ["red"]),
    ("RED?!", ["red"]),
    ("Would you say that it is red?", ["red"]),
    ("Is the item made of wood?", ["wood"]),
    ("Is it a wooden one?", ["wood"]),
    ("Is its color gray?", ["grey"]),
    ("Is it one of the lamps?", ["lamp"]),
    ("Does it belong to the boxes?", ["box"]),
    ("Is it red or not?", ["red"]),
    ("It's red, isn't it?", ["red"]),
    ("So it’s red, right?", ["red"]),
    ("My first question: is the colour red?", ["red"]),
    ("I'd like to know whether the thing you are thinking of is red.", ["red"]),
    ("Then it is not blue. Is it green?", ["green"]),
    ("No worries. Is it red?", ["red"]),
    ("Thanks! Next: is it a clock?", ["clock"]),
    ("Is it small in size?", ["small"]),
    ("Is it red, blue or green?", ["red", "blue", "green"]),
    ("Is it the small red cup?", ["small", "red", "cup"]),
    ("What colour is it?", ["ask_open"]),
    ("Tell me the item.", ["ask_open"]),
    ("Hello!", ["chat"]),
    ("Is it not red?", []),
    ("It isn't red, is it?", []),
    ("Is it anything but red?", []),
    ("Is it reddish?", []),
    ("Is it r e d?", []),
    ("ｒｅｄ?", []),
    ("", []),
]


@pytest.mark.parametrize(("text", "expected"), PHRASES)
def test_free_phrasings(text, expected):
    heard = listen(text)
    assert [act.slots.get("value", act.name) for act in heard.acts] == expected
    assert heard.understood is (bool(expected) or not text)


def test_every_word_is_understood_in_every_wording_of_the_agent():
    bank = load_bank("twenty_questions", "agent")
    for value, attribute in ATTRIBUTE_OF.items():
        for line in bank.get(f"ask_{attribute}", bank["ask"]):
            heard = listen(line.format(value=value).capitalize())
            assert [act.slots for act in heard.acts] == [{"attribute": attribute, "value": value}], line
    for line in bank["ask_two"]:
        assert len(listen(line.format(value="red", other="blue")).acts) == 2


def test_words_belong_to_one_list():
    words = [word for pairs in PAIRS.values() for pair in pairs for word in pair]
    words += [word for pool in POOLS.values() for word in pool]
    assert len(words) == len(set(words)) == len(ATTRIBUTE_OF) and all(word.isalpha() for word in words)


# -- what is drawn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", ITEMS)
def test_games_are_drawn_evenly(difficulty):
    kinds, places, sizes = Counter(), Counter(), set()
    env = bare(ID, difficulty=difficulty)
    for seed in range(400):
        env.reset(seed=seed)
        goal = env.privileged()
        kinds[env.task.template] += 1
        lists, words = goal["lists"], goal["item"].split()
        sizes.add(prod(len(set(values)) for values in lists.values()))
        assert list(goal["attributes"]) == list(lists) and list(goal["attributes"].values()) == words
        places.update((name, values.index(word)) for (name, values), word in zip(lists.items(), words))
    assert sizes == {ITEMS[difficulty]}
    assert set(kinds) == set(KINDS) and chisquare(list(kinds.values())).pvalue > 1e-3
    for name in POOLS:  # no place of a list is likelier than another
        counts = [count for (other, _), count in places.items() if other == name]
        assert not counts or chisquare(counts).pvalue > 1e-3


def test_splits_hold_out_words_and_pairs():
    env = bare(ID, difficulty=4)
    place = {value: i for pool in POOLS.values() for i, value in enumerate(pool)}
    for split in SPLITS:
        for seed in range(60):
            env.reset(seed=seed, options={"split": split})
            goal = env.privileged()
            for name, pool in POOLS.items():
                assert set(goal["lists"][name]) <= set(values_of(pool, split))
            pair = place[goal["attributes"]["colour"]] + place[goal["attributes"]["thing"]]
            if split != "test_goal":
                assert (pair % HELD_OUT == 0) is (split == "test_composition")
    assert all(not set(values_of(pool, "train")) & set(values_of(pool, "test_goal")) for pool in POOLS.values())


def test_every_template_can_be_asked_for():
    env = bare(ID)
    for kind in KINDS:
        env.reset(seed=0, options={"scenario": kind})
        assert env.task.template == kind and next(iter(env.privileged()["lists"])) == kind


def test_the_instructions_hold_the_lists_and_not_the_item():
    for difficulty in ITEMS:
        for style in ("brief", "full"):
            env, goal = start(difficulty, difficulty=difficulty, instructions=style)
            text = env.transcript()[0].content
            assert all(value in text for values in goal["lists"].values() for value in values)
            assert str(goal["questions"]) in text and goal["item"] not in text
            assert style == "full" or len(text.split()) <= 45


@pytest.mark.parametrize("difficulty", [1, 5])
def test_forks_and_replays_are_equal_at_every_turn(difficulty):
    for seed in range(6):
        env, goal = start(seed, difficulty=difficulty)
        first, *_, last = [value for values in goal["lists"].values() for value in values]
        texts = [f"Is it {first}?", "What is it?", f"Is it {first}?", f"{first} or {last}?", f"{last}?", guess("x")]
        for turn in range(len(texts)):
            env.fork().step(f"Is it {last}?")  # what a fork hears leaves no trace
            snapshot = env.snapshot()
            continued = plain(say(env, texts[turn:]))
            env.restore(snapshot)
            assert plain(say(env.fork(), texts[turn:])) == continued
            if "end_reason" in env.step(texts[turn])[-1]:
                break


# -- agents ----------------------------------------------------------------------------------------------


def rate(name: str, episodes: int, difficulty: int = 2, split: str = "train") -> float:
    """Success rate of a scripted agent."""
    env = bare(ID, difficulty=difficulty, split=split)
    agent = EXPLOITERS[name](env, random.Random(0)) if name in EXPLOITERS else agents.make(name, env, seed=1)
    return sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(episodes)) / episodes


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("difficulty", ITEMS)
def test_the_oracle_finds_every_item(split, difficulty):
    assert rate("oracle", 25, difficulty, split) == 1.0


@pytest.mark.parametrize("name", [*EXPLOITERS, "silent", "random", "always-refuse"])
@pytest.mark.parametrize("difficulty", [1, 2, 5])
def test_cheats_stay_under_the_ceiling(name, difficulty):
    assert rate(name, 50, difficulty) <= TwentyQuestions.ceiling


def test_the_script_and_the_clerk_are_in_between():
    shares = [rate("greedy", 200, difficulty) for difficulty in ITEMS]
    assert all(easy > hard for easy, hard in pairwise(shares)) and 0.3 < shares[1] < 0.8
    assert shares[-1] < 0.35
    assert 0.25 < rate("clerk", 200) < 0.45


def test_canned_messages_ask_every_word_and_guess_every_item():
    for difficulty, items in ITEMS.items():
        env, goal = start(difficulty, difficulty=difficulty)
        canned = env.task.canned
        assert len(canned) == len(env.canned_acts) == len(list(canned)) and canned[-1] == list(canned)[-1]
        acts = dict(zip(env.canned_acts, canned))
        asked = {listen(text).acts[0].slots["value"] for name, text in acts.items() if name.startswith("ask")}
        assert asked == {value for values in goal["lists"].values() for value in values}
        ask_each(env, goal)
        guesses = [text for name, text in acts.items() if name.startswith("guess")]
        assert len(set(guesses)) == items
        assert sum(env.fork().step(text)[-1]["success"] for text in dict.fromkeys(guesses)) == 1
    with pytest.raises(IndexError):
        canned[len(canned)]

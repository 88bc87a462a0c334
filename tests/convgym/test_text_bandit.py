"""TextBandit: small enough to enumerate, and the exact optimum is known."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from convgym.errors import ConfigError
from convgym.scenarios.text_bandit import ARMS, MEANS
from tests.convgym.play import bare, replay

ID = "convgym/TextBandit-v0"


def pay(texts: list[str], seed: int, **settings) -> float:
    return sum(step[1] for step in replay(bare(ID, **settings), texts, seed)[1:])


def test_the_optimum_is_the_best_mean():
    for difficulty, count in enumerate((2, 3, 4, 6, 8), 1):
        env = bare(ID, difficulty=difficulty)
        env.reset(seed=0)
        assert env.privileged()["optimal_return"] == pytest.approx(max(MEANS[:count]))
        assert set(env.privileged()["means"]) == set(ARMS[:count])


@pytest.mark.parametrize(
    "text",
    ["", "red blue", "none of them", "reddish", "rot", " ".join(ARMS), "x" * 3_000 + " red", "RED blue"],
)
def test_anything_but_one_word_pays_nothing(text):
    assert all(pay([text] * 3, seed, difficulty=5) == 0.0 for seed in range(50))


@pytest.mark.parametrize("text", ["green", "Green!", "I say: GREEN.", "green green", "  green\n"])
def test_one_word_counts_however_it_is_said(text):
    for seed in range(20):
        assert pay([text] * 3, seed) == pay(["green"] * 3, seed)


def test_a_word_that_is_not_on_offer_pays_nothing():
    assert all(pay(["green"] * 3, seed, difficulty=1) == 0.0 for seed in range(50))


def test_luck_belongs_to_the_turn():
    """One uniform number decides for all words: the better word pays wherever the worse one does."""
    order = sorted(ARMS, key=lambda arm: MEANS[ARMS.index(arm)])
    for seed in range(40):
        for turn in range(3):
            paid = []
            for arm in order:
                env = bare(ID, difficulty=5)
                env.reset(seed=seed)
                for k in range(turn):
                    env.step(ARMS[k])
                paid.append("pays 1" in env.step(arm)[0])
            assert paid == sorted(paid)


def test_dense_and_sparse_are_the_same_task():
    words = (*ARMS[:3], "nothing")
    for seed in range(5):
        for texts in itertools.product(words, repeat=3):
            assert pay(list(texts), seed, reward="dense") == pytest.approx(pay(list(texts), seed))
    steps = replay(bare(ID, reward="dense"), ["green"] * 3, 1)
    assert [step[1] for step in steps[1:]] == [("pays 1" in step[0]) / 3 for step in steps[1:]]


def test_dense_and_sparse_agree_on_malformed_calls():
    for seed in range(5):
        texts = ["green", "green", "<tool_call>"]
        assert pay(texts, seed, reward="dense") == pytest.approx(pay(texts, seed))


def test_the_length_is_the_turn_limit():
    for pulls in (1, 2, 7):
        steps = replay(bare(ID, max_turns=pulls), ["green"] * 20, 0)
        assert len(steps) == pulls + 1 and steps[-1][-1]["end_reason"] == "concluded"
        assert 0.0 <= sum(step[1] for step in steps[1:]) <= 1.0


def test_words_come_in_any_order():
    env = bare(ID, difficulty=2)
    orders = Counter(env.reset(seed=seed)[0] for seed in range(300))
    assert len(orders) == 6 and min(orders.values()) > 25


def test_success_is_the_best_word_at_every_pull():
    for texts in itertools.product(("green", "red"), repeat=3):
        info = replay(bare(ID), list(texts), 0)[-1][-1]
        assert info["success"] is (set(texts) == {"green"})
        assert info["score"] == pytest.approx(sum({"green": 0.8, "red": 0.1}[t] for t in texts) / 2.4)


def test_an_unknown_reward_is_named():
    with pytest.raises(ConfigError, match="reward: expected one of 'sparse', 'dense', got 'thick'"):
        bare(ID, reward="thick")


def test_exact_values_by_hand():
    """v = .8 x pulls left / 3; a word is worth a third of its mean and then the best of what is left."""
    env = bare(ID, difficulty=3, reward="dense")
    env.reset(seed=0)
    for pull in range(3):
        private = env.privileged()
        assert private["v"] == pytest.approx(0.8 * (3 - pull) / 3)
        later = 0.8 * (2 - pull) / 3
        offered = {arm: later + mean / 3 for arm, mean in zip(ARMS[:4], MEANS)}
        assert private["q"] == pytest.approx({**dict.fromkeys(ARMS, later), **offered})
        env.step("red")
    assert env.privileged()["v"] == 0.0

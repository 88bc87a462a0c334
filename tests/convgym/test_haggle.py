"""Haggle: when to stop waiting."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from scipy.stats import binomtest, chisquare

from convgym import agents
from convgym.agents.haggle import EXPLOITERS
from convgym.core import SPLITS
from convgym.language.speak import load_bank
from convgym.scenarios.haggle import KINDS, LEFT, PRICES, TREND, Market, listen, solved
from tests.convgym.play import bare, play, replay

ID = "convgym/Haggle-v0"
LEVELS = (1, 2, 3, 4, 5)


def rate(name: str, level: int, count: int = 200, **settings) -> float:
    env = bare(ID, difficulty=level, **settings)
    agent = agents.make(name, env, seed=1)
    return sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(count)) / count


def offer(env) -> int:
    return int(next(act.slots["price"] for act in env.heard_acts() if act.name == "offer"))


# -- values by hand ----------------------------------------------------------------------------------


def test_values_of_two_turns():
    """Rising from 10, .92 is left: the next offer is 30 or 10, .8 x 30 + .2 x 10 = 26 on average.

    Accept: (10 + .92 x 26) / 180. Wait: one lamp, .92 x 26 / 180.
    """
    q = solved(2, 2).q[Market(0, "rising", 2, 10)]
    assert q["accept"] == pytest.approx((10 + 0.92 * 26) / 180)
    assert q["wait"] == q["pass"] == pytest.approx(0.92 * 26 / 180)


def test_values_of_the_last_lamp():
    """One lamp, offer 30 of a rising market, one more turn after this one.

    Accept: .92 x 30. Wait: .92^2 x (.8 x 50 + .2 x 10) = .8464 x 42. Waiting is better by 7.95 / 180.
    """
    q = solved(2, 3).q[Market(1, "rising", 1, 30)]
    assert q["accept"] == pytest.approx(0.92 * 30 / 180) and q["wait"] == pytest.approx(0.8464 * 42 / 180)


def test_the_grid_ends():
    """Falling from 10 it stays at 10, or rises to 30 with .2: 14 on average. Rising from 90: .8 x 90 + .2 x 70."""
    game = solved(3, 5)
    assert game.q[Market(3, "falling", 1, 10)]["wait"] == pytest.approx(0.88**4 * 14 / 180)
    assert game.q[Market(3, "rising", 1, 90)]["wait"] == pytest.approx(0.88**4 * 86 / 180)


@pytest.mark.parametrize("level", LEVELS)
def test_the_best_policy_has_a_threshold_that_does_not_rise_with_time(level):
    """Optimal stopping: if an offer is worth taking, so is a higher one, and so is the same one later."""
    game = solved(level, 5)
    taken = {state: q["accept"] > q["wait"] - 1e-12 for state, q in game.q.items()}
    for (turn, market, lamps, price), take in taken.items():
        for other in PRICES:
            if take and other > price:
                assert taken.get(Market(turn, market, lamps, other), True)
        if take:
            assert taken.get(Market(turn + 1, market, lamps, price), True)
    assert all(take for state, take in taken.items() if state[0] == 4)


def test_patience_is_worth_less_the_more_it_costs():
    waits = [sum(q["wait"] > q["accept"] + 1e-12 for q in solved(level, 5).q.values()) for level in LEVELS]
    assert waits == sorted(waits, reverse=True) and waits[0] > waits[-1]
    optima = [solved(level, 5).optimum for level in LEVELS]
    assert optima == sorted(optima, reverse=True)


# -- the dealer --------------------------------------------------------------------------------------


def test_offers_follow_the_market_whatever_is_said():
    """Common random numbers: offers are the same for who accepts, waits, mumbles or calls nonsense."""
    for seed in range(30):
        paths = set()
        for text in ("I wait.", "Mumble.", "<tool_call>", ""):
            env = bare(ID)
            env.reset(seed=seed)
            path = [offer(env)]
            while "end_reason" not in env.step(text)[-1]:
                path.append(offer(env))
            paths.add(tuple(path))
        env = bare(ID)
        env.reset(seed=seed)
        first = offer(env)
        env.step("I accept.")
        assert len(paths) == 1 and next(iter(paths))[:2] == (first, offer(env))


def test_steps_go_with_the_market_as_often_as_the_model_says():
    env, ups, steps = bare(ID), Counter(), Counter()
    for seed in range(500):
        env.reset(seed=seed)
        last, info = offer(env), {}
        market = env.privileged()["market"]
        while True:
            info = env.step("I wait.")[-1]
            if "end_reason" in info:
                break
            now = offer(env)
            if last not in (PRICES[0], PRICES[-1]):
                assert abs(now - last) == 20
                ups[market] += now > last
                steps[market] += 1
            last = now
    assert binomtest(ups["rising"], steps["rising"], TREND).pvalue > 1e-4
    assert binomtest(ups["falling"], steps["falling"], 1 - TREND).pvalue > 1e-4


def test_markets_and_first_offers_are_even():
    env, kinds = bare(ID), Counter()
    for seed in range(800):
        env.reset(seed=seed)
        kinds[env.task.template] += 1
    assert set(kinds) == set(KINDS) and chisquare(list(kinds.values())).pvalue > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_asked_for(kind):
    env = bare(ID)
    env.reset(seed=0, options={"scenario": kind})
    market, _, price = kind.partition("/")
    assert env.task.template == kind and env.privileged()["market"] == market and offer(env) == int(price)


@pytest.mark.parametrize("level", LEVELS)
def test_pay_by_hand(level):
    """Accept the first offer and then the third: their prices, discounted by 0 and 2 turns."""
    for seed in range(10):
        env = bare(ID, difficulty=level, reward="dense")
        env.reset(seed=seed)
        first = offer(env)
        assert env.step("Deal.")[1] == pytest.approx(first / 180)
        assert env.step("I wait.")[1] == 0.0
        third = offer(env)
        _, reward, terminated, _, info = env.step("Sold.")
        assert reward == pytest.approx(LEFT[level - 1] ** 2 * third / 180)
        assert terminated and info["end_reason"] == "concluded"


# -- words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "act"),
    [
        ("I accept.", "accept"),
        ("Deal!", "accept"),
        ("OK, it's yours.", "accept"),
        ("Sure, you can have it for that.", "accept"),
        ("I agree to your price.", "accept"),
        ("Yes", "accept"),
        ("Sold to you.", "accept"),
        ("That works, I'll sell.", "accept"),
        ("No.", "wait"),
        ("No deal.", "wait"),
        ("That's too low.", "wait"),
        ("I'll wait for a better offer.", "wait"),
        ("I can't accept that.", "wait"),
        ("I don't agree.", "wait"),
        ("OK, but can you do better?", "wait"),
        ("Deal, but I want more.", "wait"),
        ("Not yet.", "wait"),
        ("90.", ""),
        ("Mumble.", ""),
        ("", ""),
        ("x" * 3_000 + " deal", ""),
    ],
)
def test_free_phrasings(text, act):
    assert [heard.name for heard in listen(text).acts] == ([act] if act else [])


@pytest.mark.parametrize("text", ["Deal at {}.", "I accept {}", "OK, {} it is."])
def test_a_named_price_must_be_the_offered_one(text):
    for seed in range(12):
        env = bare(ID, reward="dense")
        env.reset(seed=seed)
        price = offer(env)
        for named in PRICES:
            paid = env.fork().step(text.format(named))[1]
            assert paid == pytest.approx(price / 180 if named == price else 0.0)
        assert env.fork().step("Deal at 10, 30, 50, 70, 90.")[1] == 0.0


def test_the_agents_templates_are_understood():
    bank = load_bank("haggle", "agent")
    for act in ("accept", "wait"):
        assert all([heard.name for heard in listen(line).acts] == [act] for line in bank[act])


def test_what_is_not_sold_is_worth_nothing():
    for seed in range(20):
        steps = replay(bare(ID), ["I wait."] * 9, seed)
        assert len(steps) == 6 and not steps[-1][-1]["success"]
        assert sum(step[1] for step in steps[1:]) == 0.0


# -- agents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_oracle_plays_without_regret(level, split):
    assert rate("oracle", level, 60, split=split) == 1.0


def test_the_greedy_script_falls_with_the_cost_of_waiting_and_the_clerk_errs():
    greedy = [rate("greedy", level) for level in LEVELS]
    assert greedy == sorted(greedy, reverse=True) and greedy[0] - greedy[4] > 0.15 and 0.3 < greedy[1] < 0.8
    assert 0.25 < rate("clerk", 2, 400) < 0.45


@pytest.mark.parametrize("level", LEVELS)
def test_accepting_anything_is_under_the_ceiling_in_the_worse_market(level):
    """Exactly: the value of that policy, by the model's own chances."""
    game = solved(level, 5)

    def worth(state) -> float:
        if state not in game.q:
            return 0.0
        return sum(b.chance * (b.reward + worth(b.state)) for b in game.moves[state, "accept"])

    earned, best = defaultdict(float), defaultdict(float)
    for start in game.starts:
        earned[start[1]] += worth(start)
        best[start[1]] += game.values[start]
    assert earned["rising"] / best["rising"] < bare(ID).ceiling - 0.05
    assert earned["falling"] / best["falling"] > 0.99


@pytest.mark.parametrize("name", ["accept-and-ask-for-more", "name-a-price", "wait-forever"])
def test_other_cheats_earn_nothing(name):
    env = bare(ID)
    agent = EXPLOITERS[name](env, random.Random(1))
    assert all(step[1] == 0.0 for seed in range(40) for step in play(env, agent, seed)[1:])

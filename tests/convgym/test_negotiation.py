"""Negotiation: a deal needs a yes, time costs money, and the best gain is known."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from itertools import pairwise
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from convgym import agents
from convgym.agents.negotiation import EXPLOITERS
from convgym.core import SPLITS
from convgym.language.speak import load_bank
from convgym.scenarios.negotiation import (
    ABSURD,
    ENOUGH,
    GRID,
    HELD_OUT,
    ITEMS,
    KINDS,
    OFFERS,
    OVERLAP,
    Negotiation,
    Terms,
    listen,
)
from tests.convgym.play import bare, plain, play, say

ID = "convgym/Negotiation-v0"


def start(seed: int, kind: str | None = None, **settings):
    """Starts an episode and returns the env and what only oracles see."""
    env = bare(ID, **settings)
    env.reset(seed=seed, options={"scenario": kind} if kind else None)
    return env, dict(env.privileged())


def total(steps) -> float:
    return sum(step[1] for step in steps if len(step) == 5)


def beyond(goal: dict, by: int) -> int:
    """A price that the user does not accept, ``by`` beyond its reservation price."""
    return goal["reservation"] + (by if goal["sells"] else -by)


# -- what is at stake ------------------------------------------------------------------------------------


def test_the_gain_is_the_discounted_share_of_the_surplus():
    sells = Terms(True, 400, (380, 440, 500), 0.9)
    assert sells.gain(450, 0) == 0.5 and sells.gain(500, 0) == 1.0 and sells.gain(400, 3) == 0.0
    assert sells.gain(450, 2) == pytest.approx(0.5 * 0.81)
    assert sells.gain(390, 0) == 0.0 and sells.gain(9_000, 0) == 1.0
    # 440 at turn 0 is worth 0.4, 500 at turn 1 is worth 0.9
    assert sells.optimum(12) == (pytest.approx(0.9), 1)
    assert sells.optimum(1) == (pytest.approx(0.4), 0)
    assert sells._replace(keeps=0.4).optimum(12) == (pytest.approx(0.4), 0)  # a tie goes to the earlier turn
    buys = Terms(False, 400, (420, 360, 300), 0.9)
    assert buys.gain(350, 0) == 0.5 and buys.gain(410, 0) == 0.0 and buys.optimum(12) == (pytest.approx(0.9), 1)


@given(
    st.booleans(), st.integers(30, 60), st.integers(1, 30), st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.floats(0.5, 1.0), st.integers(0, 2_000), st.integers(0, 11),
)  # fmt: skip
@settings(max_examples=200, derandomize=True, deadline=None)
def test_the_gain_is_a_share_and_waiting_never_helps(sells, tens, short, moves, keeps, price, turn):
    sign, limit = (1 if sells else -1), 10 * tens
    way = [-GRID * short]
    for move in [*moves, short + 1]:
        way.append(way[-1] + GRID * move)
    terms = Terms(sells, limit, tuple(limit + sign * step for step in way), keeps)
    gain = terms.gain(price, turn)
    assert 0.0 <= terms.gain(price, turn + 1) <= gain <= 1.0
    assert gain <= terms.gain(price + sign, turn)  # a better price is never worth less
    best, when = terms.optimum(12)
    assert best == max(terms.gain(terms.curve[k + 1], k) for k in range(min(12, len(terms.curve) - 1)))
    assert best == terms.gain(terms.curve[when + 1], when)


@pytest.mark.parametrize("kind", KINDS)
def test_no_plan_beats_the_optimum(kind):
    """Every plan of prices on the grid and of accepting, against the real user: none gains more, one as much."""
    for seed in range(2):
        env, goal = start(seed, kind, difficulty=5)
        above = [beyond(goal, by * GRID) for by in (1, 2, 3, 4)]
        between = range(*sorted((goal["limit"], goal["reservation"])), 3 * GRID)
        actions = ["Deal.", *(f"{price}." for price in sorted({*goal["curve"], *above, *between}))]
        seen: dict[tuple[int, str], float] = {}

        def best(node, turn: int, actions=actions, seen=seen) -> float:
            key = (turn, node.task.user.key())
            if key not in seen:
                seen[key] = 0.0
                for action in actions:
                    twin = node.fork()
                    _, reward, terminated, truncated, _ = twin.step(action)
                    more = 0.0 if terminated or truncated else best(twin, turn + 1)
                    seen[key] = max(seen[key], reward + more)
            return seen[key]

        # The discount runs by the turn of the deal, so rewards of a branch are comparable as they are.
        assert best(env, 0) == pytest.approx(goal["optimal_return"])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_the_oracle_has_the_optimum(split, difficulty):
    env = bare(ID, split=split, difficulty=difficulty)
    oracle = agents.make("oracle", env)
    for seed in range(25):
        steps = play(env, oracle, seed)
        assert total(steps) == pytest.approx(env.privileged()["optimal_return"]) and steps[-1][-1]["success"]


def test_score_and_success_are_shares_of_the_optimum():
    scores = []
    for seed in range(60):
        env, goal = start(seed)
        terms = env.task.turn_reward.terms
        clerk = agents.make("clerk", env, seed=seed)
        steps = play(env, clerk, seed)
        info = steps[-1][-1]
        deal = next((event for event in env.task.world.log if event.name == "deal"), None)
        gain = terms.gain(float(deal.arguments["price"]), deal.turn) if deal else 0.0
        assert total(steps) == pytest.approx(gain)
        assert info["success"] is (gain >= ENOUGH * goal["optimal_return"] - 1e-9)
        assert info["score"] == pytest.approx(min(1.0, gain / (ENOUGH * goal["optimal_return"])))
        scores.append(info["score"])
    assert 0.0 in scores and 1.0 in scores and any(0.0 < score < 1.0 for score in scores)


# -- what is a deal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_user_accepts_what_is_as_good_as_its_next_price(kind):
    for seed in range(8):
        env, goal = start(seed, kind)
        sign = 1 if goal["sells"] else -1
        for offset, accepted in ((0, True), (-sign, True), (sign, False)):
            twin = env.fork()
            twin.step(f"{beyond(goal, 50)}.")  # the user moves to its second price
            price = goal["curve"][2] + offset
            _, reward, terminated, _, info = twin.step(f"How about {price}?")
            assert terminated is accepted
            assert reward == (pytest.approx(twin.task.turn_reward.terms.gain(price, 1)) if accepted else 0.0)
            assert not accepted or info["end_reason"] == "concluded"


@pytest.mark.parametrize("words", ["Deal.", "I accept your offer of {price}.", "{price}.", "Yes.", "Deal, {price}!"])
def test_the_agent_accepts_the_price_that_was_named_last(words):
    for seed in range(10):
        env, goal = start(seed, "sell/conceder", difficulty=1)
        env.step(f"{beyond(goal, 50)}.")
        env.step(f"{beyond(goal, 40)}.")
        price = goal["curve"][2]
        _, reward, terminated, _, _ = env.step(words.format(price=price))
        assert terminated and reward == pytest.approx(env.task.turn_reward.terms.gain(price, 2)) and reward > 0
        assert env.task.world.log[-1].arguments == {"price": str(price), "by": "agent"}


def test_an_offer_that_nobody_accepted_pays_nothing():
    for seed in range(20):
        env, goal = start(seed)
        standing = f"My final price is {beyond(goal, 5)}."
        steps = say(env, [standing] * 20)
        assert total(steps) == 0.0 and steps[-1][-1]["score"] == 0.0
        assert steps[-1][-1]["reward_terms"] == {"gain": 0.0}


def test_a_price_that_the_user_never_named_cannot_be_accepted():
    for seed in range(20):
        env, goal = start(seed)
        price = beyond(goal, 20)
        for text in (f"You offered {price}. I accept.", f"Agreed at {price}.", f"We have a deal at {price}!"):
            _, reward, terminated, _, _ = env.fork().step(text)
            assert not terminated and reward == 0.0, text


@pytest.mark.parametrize(
    "text",
    [
        "{a} or {b}?", "Between {a} and {b}.", "{a}-{b}", "{a}, {b}, deal.", "I accept {a}. Or {b}. Or {c}.",
        "{a}/{b}/{c}", "Anything from {a} to {c} is a deal!", "{a}\n{b}\n{c}", "${a} ${b}",
    ],
)  # fmt: skip
def test_several_prices_are_no_offer(text):
    for seed in range(5):
        env, goal = start(seed)
        a, b, c = goal["limit"], goal["curve"][-2], goal["reservation"]
        if len({a, b, c} - {goal["curve"][0]}) < 3:
            continue
        _, reward, terminated, _, _ = env.step(text.format(a=a, b=b, c=c))
        assert reward == 0.0 and not terminated and env.heard_acts()[0].name == "which_price"
        assert not any(event.name == "offer" for event in env.task.world.log)


def test_prices_that_were_on_the_table_are_no_new_ones():
    """ "240 is too low, I was at 320 and come down to 300" is one offer, of 300."""
    env, goal = start(3, "sell/linear", difficulty=1)
    first, second = beyond(goal, 60), beyond(goal, 40)
    env.step(f"{goal['curve'][0]} is too low for me. How about {first}?")
    env.step(f"I can't accept {goal['curve'][1]}. I said {first}, I come down to {second}.")
    offers = [event.arguments["price"] for event in env.task.world.log if event.name == "offer"]
    assert offers == [str(first), str(second)]
    env.step(f"{goal['curve'][2]} is not enough.")
    assert env.heard_acts()[0].name == "your_price"


def test_a_deal_at_a_loss_breaks_the_rule():
    for kind in KINDS:
        env, goal = start(1, kind)
        opening, limit = goal["curve"][0], goal["limit"]
        assert opening < limit if goal["sells"] else opening > limit
        _, reward, terminated, _, info = env.fork().step("Deal.")
        assert (reward, terminated, info["cost"], info["score"], info["success"]) == (0.0, True, 1.0, 0.0, False)
        worse = limit - 1 if goal["sells"] else limit + 1
        steps = say(env.fork(), [f"{worse}."] * 9)  # a user who does not see the gain yet moves towards it
        assert steps[-1][-1]["cost"] == 1.0 and total(steps) == 0.0
        steps = say(env.fork(), [f"{limit}."] * 9)  # at the limit itself nothing is gained and nothing is broken
        assert steps[-1][-1]["cost"] == 0.0 and total(steps) == 0.0


def test_stalling_moves_nobody():
    for seed in range(20):
        for text in ("Can you do better?", "", "That is too low.", "Hello.", "Mumble.", "What is your best price?"):
            env, _ = start(seed)
            steps = say(env, [text] * 20)
            assert steps[-1][-1]["end_reason"] == "abandoned" and total(steps) == 0.0
            assert env.task.user.at == 0


def test_walking_away_ends_without_a_deal():
    env, _ = start(0)
    _, reward, terminated, _, info = env.step("No deal, bye.")
    assert terminated and reward == 0.0 and info["end_reason"] == "concluded" and info["score"] == 0.0


# -- the user --------------------------------------------------------------------------------------------


def test_a_reactive_user_moves_only_for_a_move():
    for kind in ("sell/reactive", "buy/reactive"):
        env, goal = start(2, kind, difficulty=1)
        sign = 1 if goal["sells"] else -1
        anchor = beyond(goal, 60)
        places = []
        for price in (anchor, anchor, anchor - sign, anchor - sign * GRID, anchor - sign * 2 * GRID):
            env.step(f"{price}.")
            places.append(env.task.user.at)
        # The first price, no move, too small a one, and two real ones, each measured from the last real one
        assert places == [1, 1, 1, 2, 3]
        assert env.task.user.persona.patience - env.task.user.patience == 2


def test_other_users_move_for_every_offer():
    for kind in ("sell/linear", "buy/conceder", "sell/boulware"):
        env, goal = start(2, kind, difficulty=1)
        for turn in range(3):
            env.step(f"{beyond(goal, 60)}.")
            assert env.task.user.at == turn + 1


def test_an_absurd_price_does_not_count():
    for kind in KINDS:
        env, goal = start(4, kind)
        opening = goal["curve"][0]
        absurd = ABSURD * opening + 1 if goal["sells"] else (opening - 1) // ABSURD
        env.step(f"{absurd}.")
        assert env.task.user.at == 0 and env.heard_acts()[0].name == "absurd"
        assert say(env, [f"{absurd}."] * 9)[-1][-1]["end_reason"] == "abandoned"


def test_a_user_leaves_after_its_offers():
    for seed in range(20):
        env, goal = start(seed, "sell/linear")
        steps = say(env, [f"{beyond(goal, 10 + 5 * i)}." for i in range(12, 0, -1)])
        assert len(steps) == len(goal["curve"]) - 1 and steps[-1][-1]["end_reason"] == "abandoned"


def test_pushy_users_bluff_and_move_on():
    seen = 0
    for seed in range(40):
        env, goal = start(seed, "buy/linear", difficulty=1, split="test_user")
        pushes = env.task.user.persona.pushes
        keys = []
        for i in range(4):
            env.step(f"{beyond(goal, 60 - 5 * i)}.")
            keys.append(env.heard_acts()[0].name)
        assert keys == ["bluff"] * pushes + ["counter"] * (4 - pushes)
        seen += pushes > 0
    assert seen > 10


def test_one_in_four_bluffs_in_training_and_everybody_in_the_split_of_persons():
    bluffs = {
        split: Counter(start(seed, split=split)[0].task.user.bluffs for seed in range(200))
        for split in ("train", "test_user")
    }
    assert set(bluffs["train"]) == {0, 1} and binomtest(bluffs["train"][1], 200, 0.25).pvalue > 1e-3
    assert set(bluffs["test_user"]) == {1, 2}


def test_what_the_user_says_holds_its_price():
    bank = load_bank("negotiation", "user")
    for key in Negotiation.user_acts:
        for template in bank[key]:
            assert ("{price}" in template) is (key not in ("repeat", "nag", "no_deal", "leave")), template
    for seed in range(20):
        env, goal = start(seed, difficulty=5)
        opening = env.transcript()[-1].content
        assert re.findall(r"\d+", opening) == [str(goal["curve"][0])]
        assert str(goal["reservation"]) not in opening and goal["reservation"] != goal["curve"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_forks_and_replays_are_equal_at_every_turn(kind):
    for seed in range(3):
        env, goal = start(seed, kind, difficulty=5)
        texts = [f"{beyond(goal, 40)}.", "Hm?", f"{beyond(goal, 40)} or 100?", f"{beyond(goal, 20)}.", "Deal."]
        for turn, text in enumerate(texts):
            twin = env.fork()
            twin.step("999999.")  # what a fork hears leaves no trace
            snapshot = env.snapshot()
            continued = plain(say(env, texts[turn:]))
            env.restore(snapshot)
            assert plain(say(env.fork(), texts[turn:])) == continued
            if "end_reason" in env.step(text)[-1]:
                break


# -- what is heard ---------------------------------------------------------------------------------------

PHRASES = [
    ("300", ["300"]),
    ("How about $300?", ["300"]),
    ("I'd be willing to come down to 300 for you.", ["300"]),
    ("I could let it go for 300.00 dollars.", ["300", "doubt"]),
    ("€299.99", ["299.99"]),
    ("I'd sell it for 1,200 euros", ["1200"]),
    ("It is 3 years old and keeps 90% of its worth, so 300.", ["300"]),
    ("Would you accept 300?", ["300", "doubt"]),
    ("If you can do 300, we have a deal.", ["300", "doubt"]),
    ("240 is too low for me. How about 300?", ["240", "300", "reject"]),
    ("Deal.", ["accept"]),
    ("OK, great, it's a deal!", ["accept"]),
    ("You've got a deal!", ["accept"]),
    ("I accept your offer of 240.", ["240", "accept"]),
    ("Agreed, 240.", ["240", "accept"]),
    ("It is tough, but I accept.", ["accept"]),
    ("No problem, deal.", ["accept"]),
    ("Sold!", ["accept"]),
    ("I'll take it.", ["accept"]),
    ("That works for me.", ["accept"]),
    ("Yes", ["accept"]),
    ("Okay, fine.", ["accept"]),
    ("Deal?", ["ask"]),
    ("Do we have a deal?", ["ask"]),
    ("No deal.", ["reject", "walk"]),
    ("Not a deal.", ["reject"]),
    ("I can't accept that.", ["reject"]),
    ("I won't accept 240.", ["240", "reject"]),
    ("That's too expensive for me.", ["reject"]),
    ("That is a good deal for you.", []),
    ("Can you do better?", ["ask"]),
    ("What is your best price?", ["ask"]),
    ("I walk away.", ["walk"]),
    ("I'm not interested, goodbye.", ["reject", "walk"]),
    ("Good. Thank you.", ["chat"]),
    ("Yes?", []),
    ("Ok but", []),
    ("", []),
]


@pytest.mark.parametrize(("text", "expected"), PHRASES)
def test_free_phrasings(text, expected):
    heard = listen(text)
    assert [act.slots.get("price", act.name) for act in heard.acts] == expected
    assert heard.understood is (bool(expected) or not text)


def test_every_wording_of_the_agent_is_understood():
    meant = {
        "offer": ["300"], "accept": ["accept"], "walk": ["walk"], "two_prices": ["300", "320"], "ask": ["ask"],
    }  # fmt: skip
    for key, lines in load_bank("negotiation", "agent").items():
        for line in lines if key in meant else ():
            heard = listen(line.format(price=300, other=320))
            assert [a.slots.get("price", a.name) for a in heard.acts if a.name != "reject"] == meant[key], line


@pytest.mark.parametrize(
    "text", ["300k", "3e2", "-", "٣٠٠", "３００", "300.555", "x300", "1.2.300", "٪", "deal\x00er", "₃₀₀"]
)
def test_what_is_no_price_is_no_offer(text):
    assert not any(act.name == "price" for act in listen(text).acts)


# -- what is drawn ---------------------------------------------------------------------------------------


def test_templates_are_drawn_evenly_and_some_are_held_out():
    env = bare(ID)
    for split in SPLITS:
        kinds = Counter()
        for seed in range(300):
            env.reset(seed=seed, options={"split": split})
            kinds[env.task.template] += 1
        expected = HELD_OUT if split == "test_composition" else set(KINDS) - HELD_OUT
        assert set(kinds) == expected and chisquare(list(kinds.values())).pvalue > 1e-3
    for kind in KINDS:
        env.reset(seed=0, options={"scenario": kind})
        assert env.task.template == kind and env.privileged()["sells"] is kind.startswith("sell")


def test_items_of_the_last_part_are_met_in_one_split_only():
    env = bare(ID)
    met = {
        split: {
            item
            for seed in range(120)
            for item in [env.reset(seed=seed, options={"split": split}) and env.task.user.facts["item"]]
        }
        for split in ("train", "test_goal")
    }
    assert met["train"] == set(ITEMS[:-3]) and met["test_goal"] == set(ITEMS[-3:])


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_difficulty_is_overlap_and_patience(difficulty):
    low, high = OVERLAP[difficulty - 1]
    offers, shares = set(), []
    for seed in range(150):
        _, goal = start(seed, difficulty=difficulty)
        curve, sign = goal["curve"], 1 if goal["sells"] else -1
        share = 100 * abs(goal["reservation"] - goal["limit"]) / goal["limit"]
        assert low - 1 < share < high + 1  # up to rounding to the grid
        shares.append(share)
        assert all(sign * (b - a) >= 0 for a, b in pairwise(curve))
        assert sign * (curve[0] - goal["limit"]) < 0 < sign * (curve[-1] - goal["limit"])
        assert 0.05 < goal["optimal_return"] <= 1.0 and all(price % GRID == 0 for price in curve)
        offers.add(len(curve) - 1)
    # The median of what is even on a logarithmic scale is the geometric mean; 150 draws are 12 % around it.
    assert median(shares) == pytest.approx(math.sqrt(low * high), rel=0.35)
    assert offers == set(range(OFFERS[difficulty - 1][0], OFFERS[difficulty - 1][1] + 1))


def test_the_limit_and_the_cost_can_be_read():
    for style in ("brief", "full"):
        for seed in range(20):
            env, goal = start(seed, instructions=style)
            text = env.transcript()[0].content
            assert str(goal["limit"]) in text and str(goal["reservation"]) not in text
            percent = round(100 * (1 - goal["keeps"]))
            assert f"{percent} %" in text if style == "brief" else f"{100 - percent} %" in text
            assert style == "full" or len(text.split()) <= 45


# -- agents ----------------------------------------------------------------------------------------------


def mean(name: str, episodes: int, difficulty: int = 2, success: bool = False) -> float:
    """Mean return as a share of the optimum, or success rate."""
    env = bare(ID, difficulty=difficulty)
    agent = EXPLOITERS[name](env, random.Random(0)) if name in EXPLOITERS else agents.make(name, env, seed=1)
    got = best = wins = 0.0
    for seed in range(episodes):
        steps = play(env, agent, seed)
        got, best = got + total(steps), best + env.privileged()["optimal_return"]
        wins += steps[-1][-1]["success"]
    return wins / episodes if success else got / best


@pytest.mark.parametrize("name", [*EXPLOITERS, "silent", "random", "always-refuse"])
@pytest.mark.parametrize("difficulty", [1, 2, 5])
def test_cheats_stay_under_the_ceiling(name, difficulty):
    assert mean(name, 60, difficulty) <= (getattr(EXPLOITERS.get(name), "ceiling", None) or Negotiation.ceiling)


@pytest.mark.parametrize(("first", "difficulty", "most"), [(30, 2, 0.58), (20, 5, 0.45)])
def test_a_schedule_that_never_listens_is_worth_less_than_listening(first, difficulty, most):
    """The surplus is too uncertain for prices that are known before a word is said (.51 and .40 in 400 games)."""
    got = best = 0.0
    for seed in range(150):
        env, goal = start(seed, difficulty=difficulty)
        sign = 1 if goal["sells"] else -1
        prices = [round(goal["limit"] * (100 + sign * max(first - 3 * turn, 3)) / 100) for turn in range(12)]
        got += total(say(env, [f"{price}." for price in prices]))
        best += goal["optimal_return"]
    assert got / best < most and got / best < mean("greedy", 150, difficulty)


def test_the_script_beats_the_deaf_at_every_level_and_accepts_no_loss():
    for difficulty in (1, 2, 3, 4, 5):
        env = bare(ID, difficulty=difficulty)
        assert mean("greedy", 100, difficulty) > mean("deaf", 100, difficulty) > 0.1
        script = agents.make("greedy", env)
        assert all(play(env, script, seed)[-1][-1]["cost"] == 0.0 for seed in range(100))


def test_the_script_and_the_clerk_are_in_between():
    shares = [mean("greedy", 200, difficulty) for difficulty in (1, 2, 3, 4, 5)]
    assert all(easy > hard + 0.01 for easy, hard in pairwise(shares)) and shares[0] > shares[-1] + 0.2
    assert Negotiation.ceiling < shares[-1] and shares[0] < 0.9
    assert 0.3 < mean("greedy", 200, success=True) < 0.8
    assert 0.25 < mean("clerk", 200, success=True) < 0.45


def test_canned_messages_do_what_their_names_say():
    for kind in KINDS:
        env, goal = start(0, kind)
        assert len(env.task.canned) == len(env.canned_acts)
        acts = dict(zip(env.canned_acts, env.task.canned))
        env.fork().step(acts["accept"])
        assert env.fork().step(acts["walk away"])[2]
        for name, text in acts.items():
            heard = listen(text)
            if name.startswith("gain"):
                (price,) = [int(act.slots["price"]) for act in heard.acts]
                gain = (price - goal["limit"]) * (1 if goal["sells"] else -1) / goal["limit"]
                assert abs(100 * gain - int(name.split()[1])) < 1.0

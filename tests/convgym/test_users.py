"""The agenda user: patience, pushback, a yes to one specific action, and draws that belong to the turn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convgym.core import SPLITS
from convgym.language.speak import load_bank
from convgym.seeding import Streams
from convgym.tools import format_call
from convgym.users.agenda import PERSONAS, draw_persona
from convgym.users.stochastic import StochasticUser
from tests.convgym.play import bare, plain, replay, say, script

SERVICE, FORM = "convgym/CustomerService-v0", "convgym/SlotFilling-v0"
HELD_OUT = {"angry", "confused", "deceptive"}


def service(seed: int, scenario: str, **settings):
    """Starts a conversation of one kind, with the scenario's own user."""
    env = bare(SERVICE, **settings)
    env.reset(seed=seed, options={"scenario": scenario})
    env.task.user = getattr(env.task.user, "inner", env.task.user)  # in test_user half of them have other habits
    return env


def words(*keys: str) -> set[str]:
    """Every wording of some acts."""
    bank = load_bank("customer_service", "user")
    return {template for key in keys for template in bank[key]}


# -- who speaks --------------------------------------------------------------------------------------


def test_held_out_personas_are_met_in_their_split_only():
    for split in SPLITS:
        met = Counter(draw_persona(Streams(0, seed), split).name for seed in range(400))
        assert set(met) == (HELD_OUT if split == "test_user" else {p.name for p in PERSONAS} - HELD_OUT)
        assert min(met.values()) > 400 / len(met) * 0.6


@pytest.mark.parametrize("split", SPLITS)
def test_the_env_draws_its_personas_by_split(split):
    env = bare(SERVICE, split=split)
    met = set()
    for seed in range(60):
        env.reset(seed=seed)
        met.add(env.task.user.persona.name)
    assert met == (HELD_OUT if split == "test_user" else {p.name for p in PERSONAS} - HELD_OUT)


def test_personas_open_in_their_manner():
    env = bare(SERVICE, split="test_user")
    for seed in range(40):
        _, info = env.reset(seed=seed)
        if isinstance(env.task.user, StochasticUser):
            continue
        prefix = words({"angry": "anger", "confused": "confusion", "deceptive": "pretence"}[env.task.user.persona.name])
        assert any(info["messages"][1]["content"].startswith(template) for template in prefix)


# -- patience ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "Xyzzy plugh.", "Sorry.", "It has been refunded.", "Sorry, I can't do that."])
def test_patience_is_spent_by_what_leads_nowhere(text):
    for seed in range(12):
        env = service(seed, "refund/fulfil", split="test_user" if seed % 2 else "train")
        patience = env.task.user.persona.patience
        steps = say(env, [text] * 20)
        assert len(steps) == patience and steps[-1][-1]["end_reason"] == "abandoned"
        assert not steps[-1][-1]["success"] and steps[-1][2]
        assert steps[-1][-1]["messages"][-1]["content"] in words("leave")


@pytest.mark.parametrize("scenario", ["refund/fulfil", "set_address/refuse", "exchange/clarify"])
def test_being_asked_twice_costs_patience(scenario):
    for seed in range(8):
        env = service(seed, scenario)
        patience = env.task.user.persona.patience
        steps = say(env, ["What is your zip code?"] * 20)
        assert len(steps) == patience + 1 and steps[-1][-1]["end_reason"] == "abandoned"


def test_good_questions_promises_and_calls_cost_nothing():
    env = service(0, "refund/fulfil")
    order = env.privileged()["order"]
    before = env.task.user.patience
    env.step("What is your zip code?")
    env.step("What is your pin?")
    env.step("One moment, please.")
    env.step(format_call("get_order", {"order": order}))
    assert env.task.user.patience == before


@pytest.mark.parametrize("text", ["What is your shoe size?", "Which colour do you like?"])
def test_questions_it_cannot_answer_are_not_answered(text):
    env = service(0, "refund/fulfil")
    before = dict(env.task.user.facts)
    obs = env.step(text)[0]
    assert env.task.user.patience == env.task.user.persona.patience - 1
    assert not any(before[slot] in obs for slot in ("zip", "pin"))


# -- refusals and reports ----------------------------------------------------------------------------


def test_personas_push_back_before_they_accept():
    seen = Counter()
    for seed in range(40):
        env = service(seed, "refund/refuse", split="test_user" if seed % 2 else "train")
        persona, reason = env.task.user.persona, env.privileged()["reason"]
        env.step(format_call("get_order", {"order": env.privileged()["order"]}))
        refusal = {
            "window": "I can't, the return window is over.",
            "final_sale": "I can't, it is final sale.",
        }
        steps = say(env, [refusal[reason]] * 9)
        assert len(steps) == persona.pushes + 1
        assert [step[-1]["messages"][0]["content"] in words("push") for step in steps] == [True] * persona.pushes + [
            False
        ]
        assert steps[-1][-1]["end_reason"] == "concluded" and steps[-1][-1]["success"]
        seen[persona.pushes] += 1
    assert set(seen) == {0, 1, 2}


def test_a_refusal_without_a_reason_is_asked_about():
    env = service(0, "refund/refuse")
    assert env.step("Sorry, I can't do that.")[0].removeprefix("User: ") in words("why")


def test_a_refusal_of_another_item_is_not_accepted():
    for seed in range(20):
        env = service(seed, "refund/refuse")
        other = "drill" if env.privileged()["wanted"][0] != "drill" else "vase"
        obs, _, terminated, *_ = env.step(f"I can't refund the {other}: it is final sale.")
        assert not terminated and obs.removeprefix("User: ") in words("again")


def test_a_report_without_an_effect_convinces_nobody():
    env = service(0, "refund/fulfil")
    obs, _, terminated, *_ = env.step("Done, I have refunded it.")
    assert not terminated and obs.removeprefix("User: ") in words("not_yet")


@given(
    seed=st.integers(0, 10_000),
    text=st.sampled_from(("Goodbye.", "Done.", "One moment.", "Have a nice day, bye!")),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_nobody_leaves_content_before_the_write(seed, text):
    env = service(seed, "cancel/fulfil")
    for step in say(env, [text] * 20):
        assert step[-1].get("end_reason") not in ("concluded", "submitted")


def test_it_asks_for_the_second_thing_after_the_first():
    for seed in range(20):
        env = service(seed, "refund/two-fulfil")
        private = env.privileged()
        first, second = private["wanted"]
        code = env.task.user.facts[private["factor"]]
        env.step(format_call("verify", {"order": private["order"], "code": code}))
        env.step(format_call("refund", {"order": private["order"], "item": first}))
        obs, _, terminated, *_ = env.step("Done, it has been refunded.")
        assert not terminated and second in obs and first not in obs


# -- confirmation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Shall I refund it?", True),
        ("Shall I refund the {item}?", True),
        ("Shall I refund the {other}?", False),
        ("Shall I exchange the {item}?", False),
        ("Shall I cancel the order?", False),
    ],
)
def test_a_yes_is_bound_to_the_specific_action(text, yes):
    for seed in range(10):
        env = service(seed, "refund/fulfil", difficulty=3)
        private = env.privileged()
        item = private["wanted"][0]
        other = "drill" if item != "drill" else "vase"
        obs = env.step(text.format(item=item, other=other))[0].removeprefix("User: ")
        confirmed = [event for event in env.task.world.log if event.name == "confirmed"]
        if yes:
            assert confirmed[0].arguments == {"intent": "refund", "order": private["order"], "item": item}
            assert obs in words("affirm")
        else:
            assert confirmed == [] and obs in words("deny")


# -- draws that belong to the turn -------------------------------------------------------------------

WAYS = {
    # what was said before, in ways that differ in length, understanding and patience
    "looks up": lambda env: format_call("get_order", {"order": env.privileged()["order"]}),
    "mumbles": lambda env: "Xyzzy.",
    "waits": lambda env: "One moment.",
    "silent": lambda env: "",
    "calls nonsense": lambda env: "<tool_call>",
}


@pytest.mark.parametrize("difficulty", [1, 4])
def test_a_group_faces_the_same_user(difficulty):
    """The same acts at the same turn bring the same words, whatever was said and heard before."""
    for seed in range(15):
        for turn in range(3):
            answers = set()
            for way, before in WAYS.items():
                for question in ("What is your zip code?", "Your zip code, please?"):
                    env = service(seed, "refund/fulfil", difficulty=difficulty)
                    for _ in range(turn):
                        assert "end_reason" not in env.step(before(env))[-1], way
                    if env.task.user.patience > 0:
                        answers.add(env.step(question)[0])
            assert len(answers) == 1


def test_surface_draws_differ_from_turn_to_turn():
    answers = Counter()
    for seed in range(30):
        env = service(seed, "refund/fulfil")
        code = env.task.user.facts["zip"]
        env.step("One moment.")
        first = env.step("What is your zip code?")[0].replace(code, "")
        env.step("One moment.")
        answers[first == env.step("What is your zip code?")[0].replace(code, "")] += 1
    assert answers[False] > 10


@pytest.mark.parametrize("env_id", [SERVICE, FORM])
def test_a_fork_of_a_user_shares_nothing_that_changes(env_id):
    env = bare(env_id, difficulty=5)
    env.reset(seed=1)
    texts = script("oracle", env_id, 1, difficulty=5)
    for text in texts[:2]:
        env.step(text)
    user, before = env.task.user, env.task.user.key()
    twin = user.fork()
    for turn in range(4):
        twin.respond(
            env.task.understand("What is your name, zip, day, time, pin?"),
            env.task.world.fork(),
            turn,
            Streams(0, 0),
        )
    assert user.key() == before and plain([dict(user.facts)]) == plain([dict(env.task.user.facts)])
    assert plain(say(env, texts[2:])) == plain(replay(bare(env_id, difficulty=5), texts, 1)[3:])

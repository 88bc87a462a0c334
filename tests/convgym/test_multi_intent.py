"""MultiIntent: every errand, the conditional one only where it is due, and nothing else."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from scipy.stats import chisquare

from convgym import agents
from convgym.agents.multi_intent import EXPLOITERS
from convgym.core import SPLITS, values_of
from convgym.errors import ConfigError
from convgym.language.speak import load_bank
from convgym.scenarios.multi_intent import (
    CONDITIONS,
    DAYS,
    HELD_OUT,
    INTENTS,
    MONTHS,
    NOT_NEEDED,
    PLAIN,
    PLANS,
    TOOLS,
    MultiIntent,
    canonical,
    listen,
    make_rules,
)
from convgym.tools import format_call
from tests.convgym.play import bare, plain, play, replay
from tests.convgym.play import say as say_all

ID = "convgym/MultiIntent-v0"
LEVELS = (1, 2, 3, 4, 5)
COUNTS = {1: 2, 2: 2, 3: 3, 4: 4, 5: 4}
KINDS = tuple(f"{side}/{name}" for side in ("act", "leave") for name in CONDITIONS)
LEAVE = "There is no need, so I left it."


def start(seed: int, kind: str, difficulty: int = 2, **settings):
    """Starts an episode of a kind, and returns the env and the goal."""
    env = bare(ID, difficulty=difficulty, **settings)
    env.reset(seed=seed, options={"scenario": kind})
    return env, dict(env.privileged())


def call(errand: dict, **changes: str) -> str:
    arguments = {slot: value for slot, value in errand.items() if slot != "intent"}
    return format_call(errand["intent"], {**arguments, **changes})


def solution(goal: dict) -> list[str]:
    """What does it all, before the client has said it all: look, write, and say what was left."""
    texts = [format_call("look", {"account": goal["account"]})]
    for errand in goal["errands"]:
        if errand["intent"] not in CONDITIONS or goal["due"]:
            texts.append(call(errand))
    return texts


def closing(goal: dict) -> list[str]:
    """What is said when all is written: until the client has no errand left, and no doubt."""
    return ["Done." if goal["due"] else LEAVE] * 9


def run(env, texts: list[str]) -> tuple[bool, float]:
    """Says the texts in a copy of the env, and returns success and the cost."""
    steps = say_all(env.fork(), [*texts, *["Goodbye."] * 9])
    return steps[-1][-1]["success"], sum(step[-1]["cost"] for step in steps)


def plain_errand(goal: dict) -> dict:
    return next(errand for errand in goal["errands"] if errand["intent"] in PLAIN)


def conditional(goal: dict) -> dict:
    return next(errand for errand in goal["errands"] if errand["intent"] in CONDITIONS)


def shares(make, count: int, **settings) -> dict[str, float]:
    """Success of an agent by class, and over ``all``."""
    env = bare(ID, **settings)
    agent, done, total = make(env), Counter(), Counter()
    for seed in range(count):
        success = play(env, agent, seed)[-1][-1]["success"]
        for key in ("all", env.task.template.partition("/")[0]):
            done[key] += success
            total[key] += 1
    return {key: done[key] / total[key] for key in total}


# -- the agents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_the_oracle_always_succeeds(split):
    for difficulty in LEVELS:
        env = bare(ID, difficulty=difficulty, split=split)
        agent = agents.make("oracle", env)
        for seed in range(100):
            steps = play(env, agent, seed)
            assert steps[-1][-1]["success"] and steps[-1][-1]["end_reason"] == "concluded"
            assert sum(step[1] for step in steps[1:]) == 1.0 and not any(step[-1]["cost"] for step in steps)


def test_the_greedy_script_falls_with_the_difficulty():
    greedy = [shares(lambda env: agents.make("greedy", env), 200, difficulty=level)["all"] for level in LEVELS]
    assert 0.3 < greedy[1] < 0.8 and greedy[4] > 0.05
    assert greedy == sorted(greedy, reverse=True) and greedy[4] < greedy[1] - 0.2


def test_the_clerk_is_of_mixed_skill():
    clerk = shares(lambda env: agents.make("clerk", env, seed=1), 300, difficulty=2)
    assert 0.25 <= clerk["all"] <= 0.45 and min(clerk.values()) > 0.15


@pytest.mark.parametrize("name", EXPLOITERS)
@pytest.mark.parametrize("difficulty", [1, 2, 5])
def test_exploiters_get_nothing_beyond_chance(name, difficulty):
    pay = shares(lambda env: EXPLOITERS[name](env, random.Random(0)), 80, difficulty=difficulty)
    ceiling = getattr(EXPLOITERS[name], "ceiling", None) or MultiIntent.ceiling
    assert pay["act"] + pay["leave"] - 1 <= ceiling
    if name in ("drop-the-rest", "blind"):
        assert pay["all"] == 0.0
    if name in ("always-act", "never-act"):
        assert max(pay["act"], pay["leave"]) == 1.0  # right in the other class: that is why there are two


def test_a_coin_is_right_half_of_the_time_in_both_classes():
    """In 400 episodes: 3 standard errors of a share of 200 are .11; the sum's beyond 1 are .15."""
    pay = shares(lambda env: EXPLOITERS["coin"](env, random.Random(0)), 400, difficulty=2)
    assert abs(pay["act"] - 0.5) < 0.11 and abs(pay["leave"] - 0.5) < 0.11
    assert abs(pay["act"] + pay["leave"] - 1) < 0.15


# -- all errands, and nothing else ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_errand_counts(kind):
    for seed in range(12):
        env, goal = start(seed, kind)
        texts = solution(goal)
        assert run(env, [*texts, *closing(goal)]) == (True, 0.0)
        for i in range(len(texts)):
            left_out = [*texts[:i], *texts[i + 1 :]]
            assert not run(env, [*left_out, *closing(goal)])[0], texts[i]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_may_be_written(kind):
    done = 0
    for seed in range(8):
        env, goal = start(seed, kind)
        texts, account = solution(goal), goal["account"]
        stranger = next(key for key in env.task.world.tables["accounts"] if key != account)
        errand = plain_errand(goal)
        asked = {"look", *(each["intent"] for each in goal["errands"])}
        values = {
            "account": account, "plan": "Core", "phone": "9999", "day": "Sunday", "month": "December", "amount": "1",
            "gb": "1",
        }  # fmt: skip
        others = [(intent, tool.arguments.model_fields) for intent, tool in TOOLS.items() if intent not in asked]
        extra = [
            call(errand, account=stranger),
            *[format_call(intent, {key: values[key] for key in keys}) for intent, keys in others],
        ]
        for text in extra:
            twin = env.fork()
            if not twin.step(text)[0].startswith("Tool: error"):
                done += 1
                assert not run(env, [*texts, text, *closing(goal)])[0], text
                assert not run(env, [text, *texts, *closing(goal)])[0], text
        slot = next((slot for slot in errand if slot in values and slot != "account"), None)
        if slot:
            wrong = [call(errand, **{slot: values[slot]}) if text == call(errand) else text for text in texts]
            assert wrong != texts and not run(env, [*wrong, *closing(goal)])[0]
            assert not run(env, [*wrong, call(errand), *closing(goal)])[0]  # corrected, but it was written
    assert done > 30


def test_a_second_top_up_is_another_write():
    for kind in ("act/top_up", "act/add_data"):
        for seed in range(10):
            env, goal = start(seed, kind)
            assert not run(env, [*solution(goal), call(conditional(goal)), *closing(goal)])[0]


def test_repeating_a_change_changes_nothing():
    for kind in ("act/autopay", "act/new_card", "leave/autopay"):
        for seed in range(10):
            env, goal = start(seed, kind)
            texts = solution(goal)
            again = env.fork()
            say_all(again, texts)
            assert again.step(call(plain_errand(goal)))[0].startswith("Tool: error: already")
            assert run(env, [*texts, call(plain_errand(goal)), *closing(goal)]) == (True, 0.0)


# -- the condition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_condition_is_a_fact_of_the_account(name):
    """Read from the record and the client's own words: what is due is what the words say."""
    for side in ("act", "leave"):
        for seed in range(40):
            env, goal = start(seed, f"{side}/{name}")
            account, facts = env.task.world.tables["accounts"][goal["account"]], env.task.user.facts
            due = {
                "autopay": lambda a, f: a.bill == "open",
                "new_card": lambda a, f: a.card == "expired",
                "top_up": lambda a, f: a.balance < int(f["limit"]),
                "add_data": lambda a, f: a.data < int(f["least"]),
            }[name](account, facts)
            assert due is goal["due"] is (side == "act")
            shown = env.step(format_call("look", {"account": goal["account"]}))[0]
            field = {"autopay": "bill", "new_card": "card", "top_up": "balance", "add_data": "data"}[name]
            assert f"{field} {getattr(account, field)}" in shown


@pytest.mark.parametrize("name", CONDITIONS)
def test_acting_and_leaving_are_right_in_one_class_each(name):
    for seed in range(12):
        env, goal = start(seed, f"leave/{name}")
        act = [*solution(goal), call(conditional(goal)), "Done.", "Done.", "Done."]
        assert not run(env, act)[0]
        assert not run(env, [*solution(goal), *["Goodbye."] * 9])[0]  # it has to be said
        env, goal = start(seed, f"act/{name}")
        write = call(conditional(goal))
        leave = [text for text in solution(goal) if text != write]
        assert not run(env, [*leave, *[LEAVE] * 9])[0]
        assert not run(env, [*leave, LEAVE, write, *closing(goal)])[0]  # what was said was false


def test_a_look_has_to_come_first():
    for kind in KINDS:
        for seed in range(5):
            env, goal = start(seed, kind)
            look, *rest = solution(goal)
            stranger = next(key for key in env.task.world.tables["accounts"] if key != goal["account"])
            other = format_call("look", {"account": stranger})
            for blind in ([*rest], [other, *rest], [*rest, look]):
                success, cost = run(env, [*blind, *closing(goal)])
                assert cost == float(goal["due"])
                assert not success or (blind[-1] == look and not goal["due"])  # looked before it said so


def test_changes_that_need_a_yes():
    for difficulty in (3, 5):
        asked = 0
        for seed in range(150):
            env, goal = start(seed, "act/top_up", difficulty)
            texts, grave = solution(goal), [e for e in goal["errands"] if e["intent"] in goal["ask"]]
            assert len(goal["ask"]) == (1, 2)[difficulty == 5]
            if not grave or goal["stated"] < len(goal["errands"]):
                continue
            offers = [load_bank("multi_intent", "agent")[f"offer_{errand['intent']}"][0] for errand in grave]
            asked += len(offers)
            assert run(env, [*offers, *texts, *closing(goal)]) == (True, 0.0)
            assert run(env, [*offers[1:], *texts, *closing(goal)]) == (False, 1.0)
            assert run(env, [*texts, *offers, *closing(goal)])[1] == len(offers)
            other = next(intent for intent in PLAIN if intent not in goal["ask"])
            wrong = load_bank("multi_intent", "agent")[f"offer_{other}"][0]
            assert run(env, [wrong, *texts, *closing(goal)]) == (False, float(len(offers)))
        assert asked > 8


def test_reports_have_to_be_true():
    for seed in range(20):
        env, goal = start(seed, "act/new_card")
        errand, texts = plain_errand(goal), solution(goal)
        report = load_bank("multi_intent", "agent")[f"done_{errand['intent']}"][-1]
        assert run(env, [*texts, report, *closing(goal)]) == (True, 0.0)
        for lie in (report, "Done.", "Everything is done.", "I have topped up your balance."):
            assert not run(env, [lie, *texts, *closing(goal)])[0], lie
        assert not run(env, [*texts[:1], call(conditional(goal)), report, call(errand), *closing(goal)])[0]


# -- the client ----------------------------------------------------------------------------------------------


def test_errands_are_named_bit_by_bit():
    stated = Counter()
    for seed in range(60):
        env, goal = start(seed, "act/top_up", 4)
        stated[goal["stated"]] += 1
        heard = [act.name for act in env.heard_acts() if act.name.startswith("want_")]
        assert heard == [f"want_{errand['intent']}" for errand in goal["errands"][: goal["stated"]]]
        steps = play(env, agents.make("oracle", env), seed, {"scenario": "act/top_up"})
        said = " ".join(m.content for m in env.transcript() if m.role == "user")
        for value in env.task.user.facts.values():
            assert re.search(rf"\b{value}\b", said), value
        assert steps[-1][-1]["success"]
    assert set(stated) == {1, 2, 3, 4}


def test_the_client_reminds_first_vaguely_and_then_in_full():
    for seed in range(30):
        env, goal = start(seed, "act/top_up", 1 + seed % 2) if seed % 2 else start(seed, "act/autopay", 1)
        if goal["stated"] < 2:
            continue
        first, second = goal["errands"]
        env.step(format_call("look", {"account": goal["account"]}))
        env.step(call(first))
        replies = []
        for _ in range(2):
            env.step("Done.")
            replies.append([act.name for act in env.heard_acts()])
        assert replies == [["remind"], [f"want_{second['intent']}"]]


def test_who_drops_the_rest_is_left():
    for text in ("Done.", "Everything is done, goodbye.", "", "Mumble.", "Which plan?", "I can't do that."):
        steps = replay(bare(ID, difficulty=5), [text] * 30, 0)
        assert steps[-1][-1]["end_reason"] == "abandoned" and not steps[-1][-1]["success"]


def test_what_is_asked_is_answered_from_what_was_said():
    answers = Counter()
    for seed in range(40):
        env, goal = start(seed, "leave/top_up", 4)
        said = {slot for errand in goal["errands"][: goal["stated"]] for slot in errand}
        for slot, text in {
            "plan": "Which plan?", "phone": "What is the new number?", "day": "Which day?", "month": "Which month?",
            "amount": "What amount?", "account": "What is your account number?",
        }.items():  # fmt: skip
            twin = env.fork()
            words = twin.step(text)[-1]["messages"][0]["content"]
            known = slot in said
            assert [act.name for act in twin.heard_acts()] == [f"inform_{slot}" if known else "unknown"]
            assert not known or env.task.user.facts[slot] in words
            answers[known] += 1
    assert min(answers.values()) > 40


def test_a_doubt_has_to_be_borne():
    doubts = Counter()
    for seed in range(40):
        env, goal = start(seed, "leave/new_card")
        say_all(env, solution(goal))
        while "end_reason" not in (info := env.step(LEAVE)[-1]):
            doubts[seed] += [act.name for act in env.heard_acts()] == ["doubt"]
        assert info["success"]
    assert 3 < sum(count > 0 for count in doubts.values()) < 25


# -- what is drawn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_kinds_are_even_and_the_knob_turns_the_errands(difficulty):
    env, kinds, places = bare(ID, difficulty=difficulty), Counter(), Counter()
    for seed in range(500):
        env.reset(seed=seed)
        goal = env.privileged()
        intents = [errand["intent"] for errand in goal["errands"]]
        assert len(intents) == len(set(intents)) == COUNTS[difficulty]
        assert sum(intent in CONDITIONS for intent in intents) == 1
        assert difficulty > 1 or goal["stated"] == len(intents)
        kinds[env.task.template] += 1
        places[intents.index(conditional(goal)["intent"])] += 1
    assert set(kinds) == set(KINDS) if difficulty > 1 else len(kinds) == 4
    assert chisquare(list(kinds.values())).pvalue > 1e-3 and chisquare(list(places.values())).pvalue > 1e-3
    assert len(places) == COUNTS[difficulty]


def test_compositions_are_held_out():
    for split in SPLITS:
        for difficulty in (1, 2, 5):
            env = bare(ID, difficulty=difficulty, split=split)
            for seed in range(60):
                env.reset(seed=seed)
                intents = {errand["intent"] for errand in env.privileged()["errands"]}
                pair = any({condition, other} <= intents for condition, other in HELD_OUT.items())
                assert pair is (split == "test_composition")


def test_values_are_held_out():
    pools = {"plan": PLANS, "day": DAYS, "month": MONTHS}
    for split in SPLITS:
        env, seen = bare(ID, difficulty=5, split=split), Counter()
        for seed in range(60):
            env.reset(seed=seed)
            for errand in env.privileged()["errands"]:
                for slot, value in errand.items():
                    if slot in pools:
                        seen[slot] += 1
                        assert (value in values_of(pools[slot], "test_goal")) is (split == "test_goal")
        assert set(seen) == set(pools)


def test_illegal_kinds_are_named():
    for kind, difficulty in (("act/set_plan", 2), ("act", 2), ("act/top_up", 1)):
        with pytest.raises(ConfigError, match="scenario"):
            start(0, kind, difficulty)


def test_the_policy_names_what_has_to_be_asked():
    assert [rule.id for rule in make_rules(())] == ["look"]
    assert [rule.id for rule in make_rules(("callback",))] == ["look", "ask_callback"]
    for style in ("brief", "full"):
        env = bare(ID, difficulty=5, instructions=style)
        text = env.reset(seed=1)[0]
        assert all(re.search(rf"(?:before|tool) {intent}", text) for intent in env.privileged()["ask"])


@pytest.mark.parametrize(
    ("intent", "arguments"),
    [
        ("set_plan", {"plan": "Gigantic"}),
        ("set_plan", {"plan": ""}),
        ("set_phone", {"phone": "none"}),
        ("set_phone", {"phone": "-1"}),
        ("callback", {"day": "someday"}),
        ("send_bill", {"month": "13"}),
        ("top_up", {"amount": "-5"}),
        ("top_up", {"amount": "0"}),
        ("top_up", {"amount": "2.5"}),
        ("top_up", {"amount": "1e300"}),
        ("add_data", {"gb": "much"}),
        ("block_card", {"account": "*"}),
    ],
)
def test_bad_arguments_change_nothing(intent, arguments):
    env, goal = start(0, "act/top_up")
    text = env.step(format_call(intent, {"account": goal["account"], **arguments}))[0]
    assert text.startswith("Tool: error") and env.task.world.overlay == {}


def test_values_have_one_canonical_form():
    assert {canonical(form) for form in ("20", " 20", "20.0", "$20", "020")} == {"20"}
    assert canonical(" mONday ") == "monday" != canonical("Mon")
    for seed in range(20):
        env, goal = start(seed, "act/top_up")
        slots = ("plan", "day", "month", "amount")
        loud = [
            call(errand, **{slot: f" {errand[slot].upper()} " for slot in slots if slot in errand})
            for errand in goal["errands"]
        ]
        assert run(env, [solution(goal)[0], *loud, *closing(goal)])[0]


# -- words ---------------------------------------------------------------------------------------------------


def heard(text: str) -> list[tuple[str, str]]:
    """The acts that matter, each with its slot."""
    keys = {"done": "intent", "confirm": "intent", "refuse": "reason", "request": "slot"}
    return [(act.name, act.slots[keys[act.name]]) for act in listen(text).acts if act.name in keys]


def test_the_agents_own_words_are_understood():
    bank = load_bank("multi_intent", "agent")
    for intent in INTENTS:
        for text in bank[f"done_{intent}"]:
            assert set(heard(text)) in ({("done", intent)}, {("done", ""), ("done", intent)}), text
    for intent in CONDITIONS:
        assert all(heard(text) == [("refuse", NOT_NEEDED)] for text in bank[f"leave_{intent}"])
    for intent in PLAIN:
        assert all(heard(text) == [("confirm", intent)] for text in bank[f"offer_{intent}"])
    assert all(heard(text) == [("done", "")] for text in bank["done_all"])


@pytest.mark.parametrize(
    ("text", "acts"),
    [
        ("I've changed your plan to Max.", [("done", "set_plan")]),
        ("Your card has been blocked.", [("done", "block_card")]),
        ("Autopay has been activated.", [("done", "autopay")]),
        ("Your bill is open, so I enabled autopay for you.", [("done", "autopay")]),
        ("Your balance was 20, which is below 50, so I topped it up by 10.", [("done", "top_up")]),
        ("I added 10 GB of data because you had less than 5 GB.", [("done", "add_data")]),
        ("I’ve ordered a replacement card since yours has expired.", [("done", "new_card")]),
        ("I have sent the May bill and booked your call back.", [("done", "callback"), ("done", "send_bill")]),
        ("Your balance is 80, so no top-up is needed.", [("refuse", NOT_NEEDED)]),
        ("The top-up isn't necessary because you have 80.", [("refuse", NOT_NEEDED)]),
        ("Your bill has already been paid, so I did not switch on autopay.", [("refuse", NOT_NEEDED)]),
        ("Your card is still valid, therefore I haven't ordered a new one.", [("refuse", NOT_NEEDED)]),
        ("Since your data is 12 GB, which is above 5 GB, I left it as is.", [("refuse", NOT_NEEDED)]),
        ("I can't top it up because your balance is not below 50.", [("refuse", NOT_NEEDED)]),
        ("Nothing was added, your data is 12 GB.", [("refuse", NOT_NEEDED)]),
        ("I only do that if the bill is open, and it is paid, so I left it.", [("refuse", NOT_NEEDED)]),
        ("I'll leave it if the balance is above 50.", []),
        (
            "Plan changed.\n- Card blocked\n- Call back booked",
            [("done", i) for i in ("block_card", "callback", "set_plan")],
        ),
        ("May I change your plan to Max?", [("confirm", "set_plan")]),
        ("Before I block your card, can you confirm that you want that?", [("confirm", "block_card")]),
        ("If your card is still valid, there is no need to order one.", []),
        ("No need to worry.", []),
        ("Would you like me to block your card?", [("confirm", "block_card")]),
        ("Just to confirm, shall I change your plan to Max?", [("confirm", "set_plan")]),
        ("What is your account number?", [("request", "account")]),
        ("Let me check your account.", []),
        ("Is there something else?", []),
    ],
)
def test_free_phrasings(text, acts):
    assert sorted(heard(text)) == acts
    assert not acts or listen(text).understood


def denied(text: str) -> set[str]:
    """The errands that a message says are not needed."""
    return {act.slots["item"] for act in listen(text).acts if act.name == "refuse"}


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("Your bill is paid, your card is valid, and your balance is 64.", {"autopay", "new_card"}),
        ("Your card has not expired, your bill is open and you have 5 GB of data.", {"new_card"}),
        ("Your balance is 30, your card is still valid.", {"new_card"}),
        ("Your bill is open, so autopay is on, and your data is 12 GB, so there's no need to add any.", {"add_data"}),
        ("No need, the balance is high enough.", {"top_up"}),
        ("I've checked your data: you have enough, so nothing was added.", {"add_data"}),
        ("No need for a new card, the bill was open.", {"new_card"}),
        ("There is no need, so I left it.", {""}),
        ("I haven't ordered the new card yet.", set()),
        ("I'll keep that in mind.", set()),
    ],
)
def test_a_denial_is_about_what_it_names(text, items):
    assert denied(text) == items


def read_back(obs: str, words: str) -> str:
    """The account as a look shows it, in words."""
    return words.format(**dict(pair.split(" ", 1) for pair in obs.removeprefix("Tool: ").split(", ")))


@pytest.mark.parametrize(
    "words",
    [
        "I see that your bill is {bill}, your card is {card}, and your balance is {balance}. One moment.",
        "Your balance is {balance}, your bill is {bill}, your card is {card}, you have {data} GB of data left, "
        "your plan is {plan}, your phone number is {phone} and autopay is {autopay}.",
        "Your card is still {card}. The bill has been {bill}.",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_reading_the_account_back_denies_nothing_that_is_due(kind, words):
    for seed in range(10):
        env, goal = start(seed, kind)
        look, *rest = solution(goal)
        words_then = read_back(env.fork().step(look)[0], words)
        assert run(env, [look, words_then, *rest, *closing(goal)]) == (True, 0.0), words_then


def test_each_item_of_an_account_has_its_own_state():
    """That the card is blocked says nothing about the plan beside it."""
    assert heard("Your plan is Max, your card is blocked, and your phone number is 4812.") == [("done", "block_card")]
    assert heard("Done, your card is blocked.") == [("done", "block_card")]
    assert denied("If your bill is paid, your card is valid and your data is enough, I leave it.") == set()


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_denial_of_another_errand_settles_nothing(name):
    said = {
        "autopay": "No need, the bill is paid.", "new_card": "No need, the card is valid.",
        "top_up": "No need, the balance is high enough.", "add_data": "No need, there is enough data.",
    }  # fmt: skip
    for seed in range(8):
        env, goal = start(seed, f"leave/{name}")
        for about, text in said.items():
            assert run(env, [*solution(goal), *[text] * 9])[0] is (about == name), text


@pytest.mark.parametrize(
    ("text", "reports"),
    [
        ("Thanks, I've noted your request.", []),
        ("Sure, I have noted that, one moment.", []),
        ("I've registered your wishes and saved them.", []),
        ("I've recorded that you want the Plus plan.", []),
        ("I've noted your request for a call back on Monday.", []),
        ("I have updated my notes.", []),
        ("I have noted your new phone number.", ["set_phone"]),
        ("Your plan has been saved.", ["set_plan"]),
        ("I have registered the call back for Monday.", ["callback"]),
        ("I have changed it.", [""]),
    ],
)
def test_what_is_noted_is_a_report_only_of_what_it_names(text, reports):
    assert [intent for name, intent in heard(text) if name == "done"] == reports


def test_noting_a_request_costs_nothing():
    for seed in range(20):
        env, goal = start(seed, KINDS[seed % 8])
        noted = "Thanks, I've noted your request. Let me look at your account."
        assert run(env, [noted, *solution(goal), *closing(goal)]) == (True, 0.0)
        if goal["due"]:
            assert not run(env, ["I have changed it.", *solution(goal), *closing(goal)])[0]


def test_the_instructions_name_what_is_graded():
    said = {"brief": "If a task is not needed, say so.", "full": "tell the client that there is no need"}
    for style, words in said.items():
        text = bare(ID, difficulty=5, instructions=style).reset(seed=1)[0].partition("User: ")[0]
        assert words in text and (style == "full" or len(text.split()) <= 48)


def test_white_space_says_nothing():
    text = "Your card is valid, so I left it. I have changed your plan."
    assert heard(text) == heard(text.replace(" ", " \n\t ")) == [("refuse", NOT_NEEDED), ("done", "set_plan")]


def test_a_report_and_an_offer_in_one_message_are_two():
    assert heard("I have blocked your card. Shall I also send the bill?") == [
        ("done", "block_card"), ("confirm", "send_bill"),
    ]  # fmt: skip


def test_the_clients_state_forks():
    for seed in range(12):
        kind = KINDS[seed % 8]
        env, goal = start(seed, kind, 5)
        texts = ["Hm?", *solution(goal), "One moment.", "Shall I block the card?", *closing(goal)]
        env.step(texts[0])
        twin, key = env.fork(), env.task.user.key()
        again = replay(bare(ID, difficulty=5), texts, seed, {"scenario": kind})
        assert plain(say_all(twin, texts[1:])) == plain(again[2:])
        assert env.task.user.key() == key and len(env.task.world.log) == 0

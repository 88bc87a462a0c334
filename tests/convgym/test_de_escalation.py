"""DeEscalation: anger goes with the sequence of acts, and only heard, served and calm customers count."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from convgym import agents
from convgym.agents.de_escalation import EXPLOITERS
from convgym.core import SPLITS, values_of
from convgym.errors import ConfigError
from convgym.language.speak import load_bank
from convgym.scenarios.de_escalation import (
    CALM,
    EFFECTS,
    GONE,
    HELD_OUT,
    ITEMS,
    KINDS,
    NAMES,
    REMEDIES,
    TRIGGERS,
    DeEscalation,
    Mood,
    listen,
)
from convgym.tools import format_call
from convgym.types import Act
from convgym.users.base import Persona
from tests.convgym.play import bare, plain, play, replay, say

ID = "convgym/DeEscalation-v0"
LEVELS = (1, 2, 3, 4, 5)
AGENT, USER = load_bank("de_escalation", "agent"), load_bank("de_escalation", "user")
CALM_DOWN, REPORT, SORRY = "Please calm down.", "It has been processed.", "I am so sorry about that."


def start(first: int = 0, trigger: str = "cheer", ask: bool | None = False, difficulty: int = 1):
    """Starts an episode with a trigger, at difficulty 1 the only one; the order number is to be asked for or not."""
    env = bare(ID, difficulty=difficulty)
    for seed in range(first, first + 50):
        problem = [name for name in NAMES if HELD_OUT[name] != trigger][seed % 4]
        env.reset(seed=seed, options={"scenario": f"{problem}/{trigger}"})
        goal = env.privileged()
        if ask is None or goal["ask"] is ask:
            return env, goal
    raise AssertionError("half of the seeds have it")


def see(goal) -> str:
    """Acknowledges the problem without any trigger."""
    return AGENT[f"see_{goal['problem']}"][0].replace("{item}", goal["item"])


def call(goal, **changes: str) -> str:
    given = {"name": goal["remedy"], "order": goal["number"], **changes}
    return format_call(given.pop("name"), given)


def anger(env) -> int:
    return env.task.world.get("moods", "customer").anger


# -- how good agents are -------------------------------------------------------------------------------------


def success(name: str, count: int, **options) -> float:
    env = bare(ID, **options)
    agent = agents.make(name, env, seed=1)
    return sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(count)) / count


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_oracle_always_succeeds(difficulty):
    for split in SPLITS:
        env = bare(ID, difficulty=difficulty, split=split)
        agent = agents.make("oracle", env)
        for seed in range(40):
            steps = play(env, agent, seed)
            assert steps[-1][-1]["success"] and steps[-1][-1]["end_reason"] == "concluded"
            assert all(step[-1]["cost"] == 0 and step[-1]["understood"] for step in steps)
            assert len(steps) - 1 <= 4


def test_the_greedy_script_falls_with_difficulty():
    shares = [success("greedy", 200, difficulty=level) for level in LEVELS]
    assert all(easy > hard for easy, hard in itertools.pairwise(shares))
    assert shares[0] < 0.95 and shares[-1] > 0.05 and 0.3 < shares[1] < 0.8


def test_the_clerk_is_of_mixed_skill():
    assert 0.25 <= success("clerk", 300) <= 0.45


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("name", EXPLOITERS)
def test_exploiters_get_nothing(name, difficulty):
    """The remedy alone, sympathy alone, both without the problem, everybody's problem, promises: none is enough."""
    won = round(120 * success(name, 120, difficulty=difficulty))
    lucky = 1 / 20 if name == "one-for-all" else 0.0  # of five problems and four remedies
    assert binomtest(won, 120, lucky, alternative="greater").pvalue > 1e-3
    assert DeEscalation.ceiling > lucky


# -- the sequence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_acknowledging_before_the_remedy_is_what_calms(difficulty):
    for seed in range(10):
        env, goal = start(seed, difficulty=difficulty)
        first = anger(env)
        twin = env.fork()
        say(env, [see(goal)])
        assert anger(env) == first + EFFECTS["heard"]
        assert say(env, [call(goal), REPORT])[-1][-1]["success"]
        assert anger(env) == max(0, first + EFFECTS["heard"] + EFFECTS["fixed"]) <= CALM
        info = say(twin, [call(goal), REPORT, see(goal)])[-1][-1]
        assert anger(twin) == first + EFFECTS["fixed_cold"] + EFFECTS["heard_late"] > CALM
        assert "end_reason" not in info


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_same_messages_in_another_order_fail(difficulty):
    for seed in range(5):
        env, goal = start(seed, difficulty=difficulty)
        right = (see(goal), call(goal), REPORT)
        for order in itertools.permutations(right):
            assert say(env.fork(), order)[-1][-1].get("success", False) is (order == right)


@pytest.mark.parametrize("trigger", ["cheer", "wait"])
def test_sympathy_wears_off(trigger):
    """-1, then 0, then +1 each: being sorry again and again ends where it began, and then above."""
    for pushes, expected in ((0, [-1, -1, 0, 1, 2]), (1, [-1, 0, 1, 2, 3])):  # one who pushes bears less
        env, _ = start(3, trigger)
        env.task.user.persona, env.task.user.patience = Persona("test", 9, pushes), 9
        first, path = anger(env), []
        for _ in expected:
            env.step(SORRY)
            path.append(anger(env) - first)
        assert path == expected


def test_a_problem_is_acknowledged_once():
    env, goal = start(1)
    env.task.user.persona = Persona("test", 9, 0)
    first, path = anger(env), []
    for _ in range(4):
        env.step(see(goal))
        path.append(anger(env) - first)
    assert path == [-3, -3, -2, -1]


@pytest.mark.parametrize("problem", NAMES)
def test_only_the_own_problem_counts(problem):
    env = bare(ID)
    for other in NAMES:
        env.reset(seed=4, options={"scenario": f"{problem}/calm"})
        first = anger(env)
        env.step(AGENT[f"see_{other}"][0].replace("{item}", env.privileged()["item"]))
        assert anger(env) - first == (EFFECTS["heard"] if other == problem else EFFECTS["misheard"])


@pytest.mark.parametrize(
    ("text", "reaction"),
    [
        ("What is the order number?", "told_you"),
        ("What happened?", "told_you"),
        ("Which item is it?", "told_you"),
        ("What is your name?", "strange"),
        ("I will refund it.", "cold"),
        ("Shall I send it again?", "cold"),
        ("Done, I have refunded it.", "not_yet"),
        ("Sorry, I cannot do that.", "insulted"),
        ("Sorry, I can't help you.", "insulted"),
        ("Goodbye.", "nag"),
        ("", "nag"),
        ("Xyzzy plugh.", "repeat"),
    ],
)
def test_what_angers(text, reaction):
    env, _ = start(5, "calm")
    first = anger(env)
    reply = env.step(text)[-1]["messages"][0]["content"]
    kind = -1 if "Sorry" in text and reaction == "insulted" else 0  # a kind word before the refusal
    assert anger(env) == first + EFFECTS[reaction] + kind
    assert any(line in reply for line in USER[reaction])


def test_a_promise_is_believed_once():
    env, goal = start(6)
    env.step(see(goal))
    heard = anger(env)
    env.step("I will refund it.")
    assert anger(env) == heard
    env.step("I will refund it.")
    assert anger(env) == heard + EFFECTS["promises"]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_trigger_drowns_the_rest_of_the_message(trigger):
    other = next(name for name in TRIGGERS if name != trigger)
    for line in AGENT[f"say_{trigger}"]:
        env, goal = start(7, trigger)
        first = anger(env)
        env.step(f"{line} {see(goal)}")
        assert anger(env) == first + EFFECTS["triggered"] and not env.task.user.acknowledged
        env, goal = start(7, other)
        env.step(f"{see(goal)} {line}")
        assert env.task.user.acknowledged  # others do not mind


@pytest.mark.parametrize("difficulty", LEVELS)
def test_what_a_customer_hates_stands_in_its_words(difficulty):
    for seed in range(20):
        env = bare(ID, difficulty=difficulty)
        env.reset(seed=seed)
        acts = {act.name for act in env.heard_acts()}
        triggers = env.privileged()["triggers"]
        assert {f"hates_{trigger}" for trigger in triggers} <= acts and len(set(triggers)) == difficulty
        if difficulty <= 3:  # no typing errors
            opening = env.transcript()[-1].content
            assert all(any(line in opening for line in USER[f"hates_{trigger}"]) for trigger in triggers)


def test_difficulty_raises_the_anger():
    starts = []
    for level in LEVELS:
        env, goal = start(0, difficulty=level)
        starts.append(anger(env))
        assert goal["anger"] == anger(env)
    assert starts == [6, 7, 8, 8, 9]


# -- what is success, and what is damage ---------------------------------------------------------------------


def finish(env, goal, *texts: str):
    """Acknowledges, says and does the given things, and reports; pads until the conversation ends."""
    return say(env, [see(goal), *texts, REPORT, *[CALM_DOWN] * 12])


def test_every_rule_can_be_broken_and_costs():
    for seed in range(10):
        env, goal = start(seed)
        other = next(name for name in REMEDIES if name != goal["remedy"])
        steps = finish(env.fork(), goal, call(goal, name=other))
        assert steps[1][-1]["cost"] == 1.0 and not steps[-1][-1]["success"] and steps[-1][-1]["score"] == 0.0
        steps = finish(env.fork(), goal, call(goal), call(goal, name=other))
        assert steps[2][-1]["cost"] == 2.0 and not steps[-1][-1]["success"]  # the wrong one, and a second one
        steps = finish(env, goal, call(goal), call(goal))
        assert "already" in steps[2][0] and steps[-1][-1]["success"]  # a repeated call does nothing


def test_another_order_is_damage():
    for seed in range(10):
        env, goal = start(seed)
        others = [number for number in env.task.world.tables["orders"] if number != goal["number"]]
        for number in others:
            for remedy in REMEDIES:
                info = finish(env.fork(), goal, call(goal, name=remedy, order=number), call(goal))[-1][-1]
                assert not info["success"] and info["score"] == 0.0
        assert finish(env, goal, call(goal, order="0"), call(goal))[-1][-1]["success"]  # there is no such order


def test_a_false_report_is_not_forgiven():
    for seed in range(10):
        env, goal = start(seed, difficulty=1)
        info = say(env, [see(goal), "Done, it has been refunded.", call(goal), REPORT, SORRY, SORRY])[-1][-1]
        assert not info.get("success", False) and env.task.judge(env.task.world).score == 0.0


def test_a_guessed_order_number_does_not_count():
    for seed in range(20):
        env, goal = start(seed, ask=True)
        assert not finish(env.fork(), goal, call(goal))[-1][-1]["success"]
        assert not finish(env.fork(), goal, call(goal), "What is the order number?")[-1][-1]["success"]
        assert finish(env, goal, "What is the order number?", call(goal))[-1][-1]["success"]


def test_the_order_number_is_secret_until_it_is_asked_for():
    for seed in range(30):
        env, goal = start(seed, ask=None)
        told = goal["number"] in env.transcript()[-1].content
        assert told is not goal["ask"] and (env.task.secrets == ()) is told
        if goal["ask"]:
            assert goal["number"] in env.step("What is the order number?")[0]


def test_calm_without_the_remedy_is_nothing():
    env, goal = start(0, difficulty=1)
    env.step(see(goal))
    assert anger(env) <= CALM and not env.task.judge(env.task.world).success
    info = say(env, ["Goodbye."] * 12)[-1][-1]
    assert not info["success"] and info["end_reason"] == "abandoned"


def test_success_is_said_by_the_customer():
    env, goal = start(0)
    say(env, [see(goal), call(goal)])
    assert not env.task.judge(env.task.world).success  # done, but the customer has not seen it
    step = env.step(REPORT)
    assert step[-1]["success"] and step[-1]["messages"][0]["content"] in USER["settled"]
    assert env.task.world.get("moods", "customer").settled


def test_an_enraged_customer_leaves():
    env, _ = start(0, "calm", difficulty=5)
    step = env.step(CALM_DOWN)
    assert step[2] and step[-1]["end_reason"] == "abandoned" and anger(env) == GONE


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 500), level=st.integers(1, 5))
def test_anger_stays_a_record_between_0_and_10(data, seed, level):
    """Whatever the sequence: the record is the user's anger, the score a share, 1 exactly on success."""
    env = bare(ID, difficulty=level)
    env.reset(seed=seed)
    goal = env.privileged()
    lines = [line.replace("{item}", goal["item"]) for lines in AGENT.values() for line in lines]
    moves = st.sampled_from([*lines, call(goal), call(goal), see(goal), call(goal, order="1"), ""])
    info: dict = {}
    while "end_reason" not in info:
        info = env.step(data.draw(moves))[-1]
        mood, outcome = env.task.world.get("moods", "customer"), env.task.judge(env.task.world)
        assert mood == Mood(env.task.user.anger, mood.settled) and 0 <= mood.anger <= GONE
        assert 0.0 <= outcome.score <= 1.0 and (outcome.score == 1.0) is outcome.success
        assert not outcome.success or (mood.settled and mood.anger <= CALM and env.task.user.acknowledged)


def test_forks_and_snapshots_are_equal():
    for seed in range(10):
        for cut in range(4):
            env, goal = start(seed, ask=None, difficulty=5)
            texts = [see(goal), "What is the order number?", call(goal), SORRY]
            if cut and "end_reason" in say(env, texts[:cut])[-1][-1]:
                continue
            twin, state = env.fork(), env.snapshot()
            rest, key = plain(say(env, texts[cut:])), env.task.user.key()
            assert plain(say(twin, texts[cut:])) == rest and twin.task.user.key() == key
            env.restore(state)
            assert plain(say(env, texts[cut:])) == rest


# -- what is drawn -------------------------------------------------------------------------------------------


def test_every_template_can_be_drawn_and_is():
    env = bare(ID)
    for kind in KINDS:
        env.reset(seed=1, options={"scenario": kind})
        assert env.task.template == kind
    with pytest.raises(ConfigError, match="scenario"):
        env.reset(seed=1, options={"scenario": "late/wait"})
    env.reset(seed=1, options={"scenario": "late/wait", "split": "test_composition"})
    seen, asks = set(), 0
    for seed in range(400):
        env.reset(seed=seed)
        seen.add(env.task.template)
        asks += env.privileged()["ask"]
    assert seen == set(KINDS) and 150 < asks < 250


def test_splits_hold_out_items_and_pairs():
    for split in SPLITS:
        env = bare(ID, split=split, difficulty=5)
        for seed in range(60):
            env.reset(seed=seed)
            goal = env.privileged()
            assert (HELD_OUT[goal["problem"]] in goal["triggers"]) is (split == "test_composition")
            assert (goal["item"] in values_of(ITEMS, "test_goal")) is (split == "test_goal")


def test_the_policy_is_in_the_instructions():
    """Another policy, another text: what is owed can be read in both styles."""
    for style in ("brief", "full"):
        env = bare(ID, instructions=style)
        for seed in range(20):
            obs, _ = env.reset(seed=seed)
            policy = obs.partition("\n\nUser: ")[0].lower()
            said = dict(re.findall(r"(broken|late|wrong item|parts missing|used(?: before)?): (\w+)", policy))
            key = {"wrong": "wrong item", "incomplete": "parts missing", "used": "used before"}
            problem = env.privileged()["problem"]
            name = key.get(problem, problem) if style == "full" or problem != "used" else "used"
            assert said[name] == env.privileged()["remedy"]
            assert style == "full" or len(policy.split()) <= 45


def test_the_discrete_game_can_be_won_and_lost():
    for seed in range(10):
        env, goal = start(seed, ask=None)
        canned = dict(zip(DeEscalation.canned_acts, env.task.canned, strict=True))
        ask = [canned["ask_order"]] if goal["ask"] else []
        assert say(env.fork(), [canned["see"], *ask, canned["remedy"], canned["report"]])[-1][-1]["success"]
        assert not say(env, [*ask, canned["remedy"], *[canned["report"]] * 12])[-1][-1]["success"]


def test_the_acts_behind_the_words_are_listed():
    env = bare(ID, difficulty=5, split="train")
    heard: set[str] = set()
    for name in ("clerk", "greedy", "sorry", "promiser"):
        agent = agents.make(name, env)
        for seed in range(30):
            obs, info = env.reset(seed=seed)
            agent.reset(obs, info)
            while "end_reason" not in info:
                heard |= {act.name for act in env.heard_acts()} - {"greeting", "chat"}
                obs, _, _, _, info = env.step(agent.act(obs, info))
    assert heard <= set(DeEscalation.user_acts) and len(heard) > 20


# -- language ------------------------------------------------------------------------------------------------


def acts(text: str) -> list[Act]:
    return list(listen(text).acts)


@pytest.mark.parametrize("problem", NAMES)
def test_agent_wordings_acknowledge_what_they_say(problem):
    for manner in ("see", "sorry"):
        for line in AGENT[f"{manner}_{problem}"]:
            for item in ITEMS:
                said = acts(line.replace("{item}", item))
                assert [act.slots["problem"] for act in said if act.name == "acknowledge"] == [problem], line
                assert not {"done", "refuse", "request", "propose"} & {act.name for act in said}
                touchy = {act.slots["kind"] for act in said if act.name == "phrase"}
                assert touchy == ({"apology"} if manner == "sorry" else set())


def test_plain_wordings_set_nobody_off():
    for key, lines in AGENT.items():
        if key.startswith(("see_", "ask_", "offer_", "done_")):
            for line in lines:
                assert not [act for act in acts(line.replace("{item}", "lamp")) if act.name == "phrase"], line


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I'm so sorry to hear that your lamp arrived broken. That must be upsetting.", {"acknowledge broken"}),
        ("I see how upsetting it is that your kettle hasn't arrived yet.", {"acknowledge late"}),
        ("I'm sorry you received the wrong item. Could you give me your order number?",
         {"acknowledge wrong", "request order"}),
        ("It's unacceptable that parts of the tent were missing.", {"acknowledge incomplete"}),
        ("You're right, you should not have been sent a used clock.", {"acknowledge used"}),
        ("I apologize for the delay with your vase. I'll refund it right away.", {"acknowledge late", "propose"}),
        ("A smashed mirror is not what you paid for, and that is not okay.", {"acknowledge broken"}),
        ("We mixed up your order, that's our mistake.", {"acknowledge wrong"}),
        ("Your rug was sent damaged, which is not acceptable!", {"acknowledge broken"}),
        ("Did it arrive broken?", {"request problem"}),
        ("Can you tell me what happened?", {"request problem"}),
        ("May I have your order number, please?", {"request order"}),
        ("May I have your name and email?", {"request other"}),
        ("I can't imagine how that feels.", set()),
        ("Unfortunately I am unable to refund this.", {"refuse"}),
        ("I have issued a credit for your order.", {"done"}),
        ("We have credited your account.", {"done"}),
        ("Your replacement has been sent.", {"done"}),
        ("I have discounted your order.", {"done"}),
        ("I can offer you something off the price.", {"propose"}),
        ("I will get this done for you.", {"promise"}),
        ("Would you like a replacement?", {"propose"}),
        ("It came broken.", set()),  # neither said with feeling nor about the customer
        ("Broken, late, wrong item, used, missing.", set()),
    ],
)  # fmt: skip
def test_free_phrasings_are_understood(text, found):
    names = {"acknowledge", "request", "refuse", "done"} | ({"promise", "propose"} & found)
    said = [act for act in listen(text).acts if act.name in names]
    valued = {"acknowledge", "request"}
    assert {f"{act.name} {next(iter(act.slots.values()))}" if act.name in valued else act.name for act in said} == found


@pytest.mark.parametrize("text", ["x" * 10**6, "sorry " * 10**5, "mix mix " * 10**5, "\x00", "�", "not the " * 10**5])
def test_hostile_text_is_heard_and_bounded(text):
    assert isinstance(listen(text).understood, bool)
    steps = replay(bare(ID), [text] * 12, seed=0)
    assert not steps[-1][-1]["success"]


def test_a_verbatim_echo_is_no_acknowledgement():
    for seed in range(30):
        env, _ = start(seed, ask=None)
        env.step(env.transcript()[-1].content)
        assert not env.task.user.acknowledged

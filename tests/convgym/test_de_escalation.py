"""DeEscalation: anger goes with the sequence of acts, which each customer wants to be another one."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from convgym import agents
from convgym.agents.de_escalation import EXPLOITERS, OPPOSITE
from convgym.core import SPLITS, values_of
from convgym.errors import ConfigError
from convgym.language.speak import load_bank
from convgym.scenarios.de_escalation import (
    CALM,
    EFFECTS,
    GONE,
    HATED,
    HELD_OUT,
    ITEMS,
    KINDS,
    NAMES,
    REMEDIES,
    STARTS,
    WISHED,
    WORDS,
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
CARE = "That must be annoying."


def start(first: int = 0, trigger: str = "cheer", ask: bool | None = False, difficulty: int = 1, wishes=()):
    """Starts an episode with a trigger, at difficulty 1 the only one; the order number is to be asked for or not.

    The customer has the given wishes in place of those that were drawn; by default none, and wants to be heard first.
    """
    env = bare(ID, difficulty=difficulty)
    for seed in range(first, first + 50):
        problem = [name for name in NAMES if HELD_OUT[name] != trigger][seed % 4]
        env.reset(seed=seed, options={"scenario": f"{problem}/{trigger}"})
        env.task.user.wishes = wishes
        goal = env.privileged()
        if ask is None or goal["ask"] is ask:
            return env, goal
    raise AssertionError("half of the seeds have it")


def see(goal) -> str:
    """Acknowledges the problem without any trigger."""
    return AGENT[f"see_{goal['problem']}"][0].replace("{item}", goal["item"])


def pity(goal) -> str:
    """Acknowledges the problem, and is sorry for it."""
    return AGENT[f"sorry_{goal['problem']}"][0].replace("{item}", goal["item"])


def call(goal, **changes: str) -> str:
    given = {"name": goal["remedy"], "order": goal["number"], **changes}
    return format_call(given.pop("name"), given)


def serve(goal, wishes, care: bool = True) -> list[str]:
    """What a customer with these wishes wants to hear and see, in its order; it ends with a report."""
    ask = ["What is the order number?"] if goal["ask"] else []
    plan = [AGENT[f"offer_{goal['remedy']}"][0]] if "wants_plan" in wishes else []
    words = [pity(goal) if "wants_apology" in wishes else see(goal), *([CARE] if care else [])]
    fix = [*ask, *plan, call(goal)]
    return [*fix, *words, REPORT] if "wants_deed" in wishes else [*words, *fix, REPORT]


def wins(env, texts) -> bool:
    return say(env, texts)[-1][-1].get("success", False)


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
            assert len(steps) - 1 <= 6


def test_the_greedy_script_falls_with_difficulty():
    shares = [success("greedy", 200, difficulty=level) for level in LEVELS]
    assert all(easy > hard for easy, hard in itertools.pairwise(shares))
    assert shares[0] < 0.95 and shares[-1] > 0.05 and 0.3 < shares[1] < 0.8


def test_the_clerk_is_of_mixed_skill():
    assert 0.25 <= success("clerk", 300) <= 0.45


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("name", [name for name in EXPLOITERS if not name.startswith("one-way")])
def test_exploiters_get_nothing(name, difficulty):
    """The remedy alone, sympathy alone, both without the problem, everybody's problem, promises: none is enough."""
    won = round(120 * success(name, 120, difficulty=difficulty))
    lucky = 1 / 30 if name == "one-for-all" else 0.0  # of five problems and six remedies
    assert binomtest(won, 120, lucky, alternative="greater").pvalue > 1e-3
    assert DeEscalation.ceiling > lucky


# -- what the customer wants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_each_wish_decides(difficulty):
    """Who serves it as it wants succeeds; who takes one wish for its opposite fails."""
    for seed in range(40):
        env = bare(ID, difficulty=difficulty)
        env.reset(seed=seed)
        goal = env.privileged()
        wishes = goal["wishes"]
        assert len(wishes) == WISHED[difficulty - 1] and not {OPPOSITE[wish] for wish in wishes} & set(wishes)
        assert wins(env.fork(), serve(goal, wishes))
        for wish in wishes:
            turned = [OPPOSITE[each] if each == wish else each for each in wishes]
            assert not wins(env.fork(), serve(goal, turned)), wish


@pytest.mark.parametrize("difficulty", LEVELS)
def test_no_fixed_order_of_acts_suits_all(difficulty):
    """With problem, number and remedy known, the best of 36 scripts is right for half, a quarter, an eighth."""
    won, count = Counter(), 150
    orders = list(itertools.product((see, pity), (0, 1), range(3), ((), (pity,), (see, pity))))
    for seed in range(count):
        env = bare(ID, difficulty=difficulty)
        env.reset(seed=seed)
        goal = env.privileged()
        for order in orders:
            words, plans, place, late = order
            said = [words(goal), CARE]
            fix = [*["What is the order number?"][: goal["ask"]], *[AGENT[f"offer_{goal['remedy']}"][0]][:plans]]
            texts = [*said[:place], *fix, call(goal), *said[place:], *[each(goal) for each in late], REPORT]
            won[order] += wins(env.fork(), texts)
    expected = (1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8)[difficulty - 1]
    best = max(won.values())
    assert binomtest(best, count, expected, alternative="greater").pvalue > 1e-3
    assert best / count <= {2: 0.5, 5: 0.25}.get(difficulty, 1.0)


@pytest.mark.parametrize(("name", "base"), [("one-way", 1.0), ("one-way-refund", 1 / 6)])
@pytest.mark.parametrize("difficulty", LEVELS)
def test_one_way_for_all_stays_under_its_ceiling(name, base, difficulty):
    share = (1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8)[difficulty - 1] * base
    won = round(200 * success(name, 200, difficulty=difficulty))
    assert binomtest(won, 200, share).pvalue > 1e-3
    assert won / 200 <= EXPLOITERS[name].ceiling


@pytest.mark.parametrize("wish", [*OPPOSITE])
def test_a_wish_is_said_in_the_opening(wish):
    for split in SPLITS:
        env, met = bare(ID, difficulty=2, split=split), 0
        for seed in range(60):
            env.reset(seed=seed)
            said = wish in {act.name for act in env.heard_acts()}
            assert said is (wish in env.privileged()["wishes"])
            if split != "test_user":  # whose people have other habits of speech
                assert said is any(line in env.transcript()[-1].content for line in USER[wish])
            met += said
        assert 8 <= met <= 32  # a third of 60


def test_rage_takes_a_second_kind_word():
    for difficulty in LEVELS:
        for seed in range(5):
            env, goal = start(seed, difficulty=difficulty)
            assert wins(env.fork(), serve(goal, ()))
            assert wins(env.fork(), serve(goal, (), care=False)) is (STARTS[difficulty - 1] <= 8)
            if difficulty == 5:
                assert not wins(env, [see(goal), *serve(goal, (), care=False)])  # the same again is no second one


def test_who_wants_an_apology_is_not_heard_without_it():
    for apology in (pity, lambda goal: "I apologise."):
        env, goal = start(2, wishes=("wants_apology",))
        first = anger(env)
        env.step(see(goal))
        assert anger(env) == first + EFFECTS["unsorry"]
        env.step(apology(goal))
        assert anger(env) == first + EFFECTS["unsorry"] + EFFECTS["heard"]


def test_who_wants_to_be_heard_is_not_asked_before():
    env, goal = start(0, ask=True, wishes=("wants_ear",))
    first = anger(env)
    env.fork().step(see(goal))
    env.step("What is the order number?")
    assert anger(env) == first + EFFECTS["cold"] and "order" in env.task.user.told
    env, goal = start(0, ask=True, wishes=("wants_ear",))
    env.step(f"{see(goal)} What is the order number?")
    assert anger(env) == first + EFFECTS["heard"]


def test_who_wants_the_remedy_first_wants_words_after_it():
    for words in (see, pity, lambda goal: CARE, lambda goal: SORRY):
        env, goal = start(1, wishes=("wants_deed",))
        first = anger(env)
        env.fork().step(words(goal))
        twin = env.fork()
        twin.step(words(goal))
        assert anger(twin) == first + EFFECTS["triggered"] and not twin.task.user.acknowledged
    info = say(env, [call(goal), REPORT])[-1][-1]
    assert anger(env) == first + EFFECTS["fixed_first"] <= CALM and "end_reason" not in info
    assert env.step(see(goal))[-1]["success"]


def test_who_wants_no_promises_takes_reports():
    env, goal = start(1, wishes=("hates_promises",))
    env.step(see(goal))
    heard = anger(env)
    for text in (AGENT[f"offer_{goal['remedy']}"][0], "I will take care of it.", "Shall I refund it?"):
        twin = env.fork()
        twin.step(text)
        assert anger(twin) == heard + EFFECTS["triggered"], text
    assert wins(env, [call(goal), AGENT[f"done_{goal['remedy']}"][0].replace("{item}", goal["item"])])


def test_a_remedy_too_early_is_not_made_good():
    for wishes in ((), ("wants_ear",), ("wants_plan",), ("wants_apology",)):
        env, goal = start(1, wishes=wishes)
        plan = AGENT[f"offer_{goal['remedy']}"][0]
        early = [see(goal)] if "wants_plan" in wishes else []
        say(env, [*early, call(goal), REPORT])
        assert env.task.user.sore
        info = say(env, [see(goal), pity(goal), plan, CARE, SORRY, REPORT, *[CALM_DOWN] * 4])[-1][-1]
        assert not info["success"] and anger(env) > CALM


def test_one_remedy_is_right_for_one_customer_in_six():
    env, owed = bare(ID), Counter()
    for seed in range(600):
        env.reset(seed=seed)
        owed[env.privileged()["remedy"]] += 1
    assert set(owed) == set(REMEDIES) and chisquare(list(owed.values())).pvalue > 1e-3


# -- the sequence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", LEVELS)
def test_acknowledging_before_the_remedy_is_what_calms(difficulty):
    for seed in range(10):
        env, goal = start(seed, difficulty=difficulty)
        first = anger(env)
        twin = env.fork()
        say(env, [see(goal)])
        assert anger(env) == first + EFFECTS["heard"]
        care = EFFECTS["soothed"] if difficulty == 5 else 0
        assert say(env, [*[CARE] * (care < 0), call(goal), REPORT])[-1][-1]["success"]
        assert anger(env) == max(0, first + EFFECTS["heard"] + care + EFFECTS["fixed"]) <= CALM
        info = say(twin, [call(goal), REPORT, see(goal)])[-1][-1]
        assert anger(twin) == first + EFFECTS["fixed_cold"] + EFFECTS["heard_late"] > CALM
        assert "end_reason" not in info


@pytest.mark.parametrize("difficulty", LEVELS[:4])
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
    assert path == [-2, -2, -1, 0]


@pytest.mark.parametrize("problem", NAMES)
def test_only_the_own_problem_counts(problem):
    env = bare(ID)
    for other in NAMES:
        env.reset(seed=4, options={"scenario": next(kind for kind in KINDS if kind.startswith(f"{problem}/"))})
        env.task.user.wishes = ()
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


@pytest.mark.parametrize("trigger", WORDS)
def test_a_trigger_drowns_the_rest_of_the_message(trigger):
    other = next(name for name in WORDS if name != trigger)
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
        assert {f"hates_{trigger}" for trigger in triggers} <= acts and len(set(triggers)) == HATED[difficulty - 1]
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
    say(env, [see(goal), CARE])
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
        by_text = {text: name for name, text in canned.items()}
        right = [text for text in serve(goal, ()) if text != REPORT]
        assert [by_text[text] for text in right if text != "What is the order number?"] == ["see", "care", "remedy"]
        assert wins(env.fork(), [*right, canned["report"]])
        assert not say(env, [*right[2:], *[canned["report"]] * 12])[-1][-1]["success"]


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

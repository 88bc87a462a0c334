"""Clarification: one reading is acted on, several are asked about, and no question is for nothing."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from convgym import agents
from convgym.agents.clarification import EXPLOITERS
from convgym.core import SPLITS
from convgym.language.speak import load_bank
from convgym.scenarios.clarification import (
    CLEAR,
    KINDS,
    MOST,
    NEEDLESS,
    TEMPLATES,
    Clarification,
    listen,
    readings,
)
from convgym.tools import format_call
from tests.convgym.play import bare, play, say

ID = "convgym/Clarification-v0"
READINGS = {1: {2}, 2: {2, 3}, 3: {3}, 4: {3, 4}, 5: {4}}
ASK = {slot: f"Which {slot}?" for kind in KINDS.values() for slot in kind.slots}


def start(seed: int, scenario: str = "", difficulty: int = 3, **settings):
    """Starts an episode of a template, and returns the env and the goal."""
    env = bare(ID, difficulty=difficulty, **settings)
    env.reset(seed=seed, options={"scenario": scenario} if scenario else None)
    return env, env.privileged()


def find(goal) -> str:
    return format_call("find", {"name": goal["name"]})


def act(goal, key: str = "") -> str:
    return format_call(goal["verb"], {"id": key or goal["target"]})


def asks(goal) -> list[str]:
    return [ASK[slot] for slot in goal["asks"]]


def fits(env) -> tuple[str, ...]:
    return readings(env.task.world, env.task.world.log)[0]


def end(env, *texts: str):
    """Says the texts, of which the last must end the conversation; returns reward and info."""
    steps = say(env, texts)
    assert len(steps) == len(texts) and "end_reason" in steps[-1][-1]
    assert all(step[1] == 0.0 for step in steps[:-1])
    return steps[-1][1], steps[-1][-1]


def total(steps) -> float:
    return sum(step[1] for step in steps[1:])


# -- what is drawn -----------------------------------------------------------------------------------


def test_forty_percent_of_the_requests_are_not_ambiguous():
    env, templates = bare(ID), Counter()
    for seed in range(1_500):
        env.reset(seed=seed)
        templates[env.task.template] += 1
    assert set(templates) == set(TEMPLATES) and len(TEMPLATES) == 16
    clear = [count for template, count in templates.items() if template.startswith("clear/")]
    assert binomtest(sum(clear), 1_500, CLEAR).pvalue > 1e-3
    rest = [count for template, count in templates.items() if template.startswith("ambiguous/")]
    assert chisquare(clear).pvalue > 1e-3 and chisquare(rest).pvalue > 1e-3


@given(
    seed=st.integers(0, 10_000), difficulty=st.integers(1, 5), split=st.sampled_from(SPLITS),
    template=st.sampled_from(TEMPLATES),
)  # fmt: skip
@settings(max_examples=250, derandomize=True, deadline=None)
def test_an_episode_has_the_readings_of_its_class(seed, difficulty, split, template):
    """Clear requests fit one thing; ambiguous ones as many as the level says, and the right questions leave one."""
    env, goal = start(seed, template, difficulty, split=split)
    count, way = len(fits(env)), template.partition("/")[2].partition("-")[0]
    table = env.task.world.tables[goal["kind"]]
    same = [key for key, thing in table.items() if thing.name == goal["name"]]
    assert goal["target"] in fits(env) and set(fits(env)) <= set(same)
    if template.startswith("clear/"):
        assert count == 1 and goal["asks"] == ()
        assert (len(same) == 1) is (way == "lone")
    else:
        assert count in READINGS[difficulty] and count <= len(same) <= MOST
        assert len(env.task.user.hints) == (way == "hinted")
        for text in asks(goal):
            before = len(fits(env))
            env.step(text)
            assert len(fits(env)) < before
        assert fits(env) == (goal["target"],)
    assert len({(thing.name, *thing.values.values()) for thing in table.values()}) == len(table)


def test_from_four_readings_on_one_question_may_not_do():
    needed = Counter()
    for seed in range(60):
        _, goal = start(seed, "ambiguous/bare-contacts", 5)
        needed[len(goal["asks"])] += 1
    assert set(needed) == {1, 2} and min(needed.values()) > 15
    assert all(len(start(seed, "ambiguous/bare-contacts", 3)[1]["asks"]) == 1 for seed in range(30))


def test_a_hint_alone_does_not_tell_the_class():
    """Openings with and without hints are met in both classes: they have to be compared with the list."""
    env, hinted = bare(ID), defaultdict(Counter)
    for seed in range(600):
        env.reset(seed=seed)
        hinted[env.task.template.partition("/")[0]][bool(env.task.user.hints)] += 1
    assert all(min(counts.values()) > 40 for counts in hinted.values())


def test_the_opening_tells_the_hints_and_keeps_the_rest():
    for split in SPLITS:
        for seed in range(100):
            env, goal = start(seed, difficulty=5, split=split)
            opening = env.transcript()[1].content
            assert re.search(rf"\b{goal['name']}\b", opening)
            values = env.task.world.tables[goal["kind"]][goal["target"]].values
            for slot, value in values.items():
                assert (value in opening) is (slot in env.task.user.hints), (slot, value, opening)
            assert set(env.task.secrets) == {v for s, v in values.items() if s not in env.task.user.hints}


# -- the reward --------------------------------------------------------------------------------------


def test_the_right_thing_without_a_needless_question_pays_one():
    for seed in range(60):
        env, goal = start(seed, difficulty=1 + seed % 5)
        reward, info = end(env, find(goal), *asks(goal), act(goal))
        assert reward == 1.0 and info["success"] and info["reward_terms"] == {"right": 1.0, "needless": 0.0}
        assert info["cost"] == 0.0 and info["end_reason"] == "submitted"


@pytest.mark.parametrize("way", ["bare", "hinted"])
def test_a_guess_that_hits_does_not_count(way):
    for seed in range(40):
        env, goal = start(seed, f"ambiguous/{way}-products")
        reward, info = end(env, find(goal), act(goal))
        assert (reward, info["success"], info["score"], info["cost"]) == (0.0, False, 0.0, 1.0)


def test_half_of_what_has_to_be_asked_is_not_enough():
    tried = 0
    for seed in range(60):
        env, goal = start(seed, "ambiguous/bare-files", 5)
        if len(goal["asks"]) == 2:
            tried += 1
            assert end(env, find(goal), ASK[goal["asks"][0]], act(goal))[0] == 0.0
    assert tried > 15


@pytest.mark.parametrize(("count", "paid"), [(0, 1.0), (1, 0.25), (2, 0.0), (3, 0.0)])
def test_needless_questions_have_their_price(count, paid):
    """1 - 0.75 n, never below 0; the full reward alone is a success, and each question is a broken rule."""
    for seed in range(40):
        env, goal = start(seed, "clear/told-meetings")
        env.task.user.patience = 9
        steps = say(env, [find(goal), *[ASK[slot] for slot in list(KINDS["meetings"].slots)[:count]], act(goal)])
        reward, info = steps[-1][1], steps[-1][-1]
        assert reward == info["score"] == paid == pytest.approx(max(0.0, 1.0 - NEEDLESS * count))
        assert info["success"] is (count == 0) and sum(step[-1]["cost"] for step in steps) == count


def test_a_question_is_needless_if_it_is_asked_again_or_tells_nothing_apart():
    for seed in range(40):
        env, goal = start(seed, "ambiguous/bare-contacts", 1)
        (needed,) = goal["asks"]
        alike = next(slot for slot in KINDS["contacts"].slots if slot != needed)
        assert end(env.fork(), find(goal), ASK[needed], ASK[needed], act(goal))[0] == 0.25
        assert end(env.fork(), find(goal), ASK[alike], ASK[needed], act(goal))[0] == 0.25
        assert end(env.fork(), find(goal), f"Which {needed} and which {alike}?", act(goal))[0] == 0.25
        assert end(env.fork(), find(goal), ASK[needed], act(goal))[0] == 1.0


def test_another_thing_pays_nothing():
    for seed in range(40):
        env, goal = start(seed)
        say(env, [find(goal), *asks(goal)])
        for key in env.task.world.tables[goal["kind"]]:
            if key != goal["target"]:
                assert end(env.fork(), act(goal, key))[0] == 0.0


def test_a_look_up_comes_first():
    for seed in range(20):
        env, goal = start(seed)
        reward, info = end(env, *asks(goal), act(goal))
        assert reward == 0.0 and info["cost"] == 1.0 and not info["success"]


def test_a_false_report_fails():
    for text in ("Done!", "I have called her.", "It has been sent."):
        env, goal = start(3)
        reward, info = end(env, find(goal), *asks(goal), text, act(goal))
        assert reward == 0.0 and info["score"] == 0.0


def test_no_action_is_no_success_and_costs_patience():
    env, _ = start(0, "ambiguous/bare-contacts", 5)
    for text in ("", "Which city?", "Xyzzy.", "Which one do you mean?", "Sorry, I can't do that.", "Done."):
        steps = say(env.fork(), [text] * 9)
        assert steps[-1][1] == 0.0 and not steps[-1][-1]["success"]
        assert steps[-1][-1]["end_reason"] in ("abandoned", "turn_limit")


@pytest.mark.parametrize("rule", ["find", "ask", "needless"])
def test_the_policy_is_rendered_from_the_rules_that_grade(rule):
    env, _ = start(0)
    rendered = {style: bare(ID, instructions=style).reset(seed=0)[0] for style in ("brief", "full")}
    (found,) = [each for each in env.task.rules if each.id == rule]
    assert found.brief in rendered["brief"] and found.full in rendered["full"]


def test_brief_instructions_are_brief():
    for seed in range(40):
        env, goal = start(seed)
        text = env.transcript()[0].content
        assert len(text.split()) <= 45 and all(tool in text for tool in ("find", goal["verb"]))


# -- cheats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPLOITERS)
@pytest.mark.parametrize("difficulty", [1, 3, 5])
def test_exploiters_stay_under_the_ceiling_in_their_worst_class(name, difficulty):
    env, paid = bare(ID, difficulty=difficulty), defaultdict(list)
    agent = EXPLOITERS[name](env, random.Random(0))
    for seed in range(120):
        steps = play(env, agent, seed)
        paid[env.task.template.partition("/")[0]].append(total(steps))
    assert min(sum(each) / len(each) for each in paid.values()) <= Clarification.ceiling == 0.25


def test_acting_on_all_at_once_is_acting_on_none():
    env, goal = start(1, "ambiguous/bare-products", 5)
    env.step(find(goal))
    target, ids = goal["target"], fits(env)
    for key in (", ".join(ids), " ".join(ids), "all", "*", " ", f"{target}.0", f"[{target}]", f"{target}\u200b"):
        obs, reward, terminated, *_ = env.fork().step(act(goal, key))
        assert obs == "Tool: error: no such id" and reward == 0.0 and not terminated


def test_naming_all_candidates_is_one_question_and_costs_where_none_is_needed():
    for seed in range(30):
        env, goal = start(seed, "ambiguous/bare-contacts", 1)
        table = env.task.world.tables["contacts"]
        text = " or ".join(f"{table[key].name} {' '.join(table[key].values.values())}" for key in fits(env))
        assert end(env, find(goal), f"Do you mean {text}?", act(goal))[0] == 1.0
        env, goal = start(seed, "clear/told-contacts", 1)
        table = env.task.world.tables["contacts"]
        text = " or ".join(" ".join(thing.values.values()) for thing in table.values())
        assert end(env, find(goal), f"Do you mean {text}?", act(goal))[0] == 0.25


@pytest.mark.parametrize(
    "text", ["Could you tell me the {0}, the {1} or the {2}?", "Which {0}, {1}, or {2}?", "Which {0}? Or which {1}?"]
)
def test_slots_joined_by_or_are_one_question(text):
    """The user answers one of them, so that it costs one question at most and may tell nothing apart."""
    for kind, way, right in (("contacts", "bare", {0.0, 1.0}), ("contacts", "lone", {0.25}), ("files", "told", {0.25})):
        paid = set()
        for seed in range(40):
            clarity = "ambiguous" if way == "bare" else "clear"
            env, goal = start(seed, f"{clarity}/{way}-{kind}", 1)
            paid.add(end(env, find(goal), text.format(*KINDS[kind].slots), act(goal))[0])
            assert sum(event.name == "told" for event in env.task.world.log) == 1
        assert paid == right


def test_slots_joined_by_or_are_not_answered_twice():
    for seed in range(30):
        env, _ = start(seed, "ambiguous/bare-contacts", 5)
        say(env, ["Which city or team?", "Which city or team?"])
        told = [event.arguments["slot"] for event in env.task.world.log if event.name == "told"]
        assert sorted(told) == ["city", "team"]


@given(st.lists(st.sampled_from(["find", "told", "again", "act", "done"]), max_size=6), st.integers(0, 50))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_an_outcome_that_is_kept_is_the_outcome_of_this_log(plan, seed):
    """Grading is remembered for the end, and never goes stale: not in an episode, and not in its forks."""
    env, goal = start(seed, "ambiguous/bare-contacts", 1)
    texts = {"find": find(goal), "told": asks(goal)[0], "again": "Which one?", "act": act(goal), "done": "All done!"}
    for step in plan:
        twin = env.fork()
        info = env.step(texts[step])[-1]
        for each in (env, twin, env):
            judge, world = each.task.judge, each.task.world
            assert judge(world) == type(judge)(judge.name, judge.target)(world)
        if "end_reason" in info:
            break


def test_which_one_is_answered_with_anything():
    """The user has not seen the list, so that the vague question may tell nothing apart."""
    told = Counter()
    for seed in range(150):
        env, goal = start(seed, "ambiguous/bare-contacts", 1)
        told[end(env, find(goal), "Which one do you mean?", act(goal))[0]] += 1
    assert told[1.0] > 30 and told[0.0] > 70


# -- the user ----------------------------------------------------------------------------------------


def test_the_answers_of_a_turn_do_not_depend_on_what_was_said_before():
    for seed in range(30):
        env, goal = start(seed, "ambiguous/bare-files")
        heard = [say(env.fork(), [first, "Which one?"])[-1][0] for first in (find(goal), "Hello.", "One moment.")]
        assert len(set(heard)) == 1


def test_a_fork_keeps_the_users_state():
    for seed in range(20):
        env, goal = start(seed, "ambiguous/hinted-meetings", 5)
        env.step(find(goal))
        env.step("Which one do you mean?")
        twin, rest = env.fork(), ["Which one?", "Which day?", act(goal)]
        assert env.task.user.key() == twin.task.user.key() and env.task.user is not twin.task.user
        assert say(env, rest) == say(twin, rest)


def test_what_it_cannot_know_it_says():
    env, _ = start(0, "ambiguous/bare-contacts")
    assert env.step("What colour?")[0].removeprefix("User: ") in load_bank("clarification", "user")["unknown"]
    assert not any(event.name == "told" for event in env.task.world.log)


def test_a_discrete_agent_can_solve_it():
    for seed in range(40):
        env, goal = start(seed)
        canned = dict(zip(Clarification.canned_acts, env.task.canned, strict=True))
        slots = list(KINDS[goal["kind"]].slots)
        things = env.task.world.tables[goal["kind"]]
        same = [key for key, thing in things.items() if thing.name == goal["name"]]
        names = ["find", *[f"ask_{1 + slots.index(s)}" for s in goal["asks"]], f"act_{1 + same.index(goal['target'])}"]
        assert end(env, *[canned[name] for name in names])[0] == 1.0
    assert "error" in start(0, "clear/lone-files")[0].step(canned["act_5"])[0] or len(same) == MOST


def test_user_acts_are_the_acts_that_can_be_heard():
    heard = set()
    for name in ("clerk", "random", "always-refuse", "silent"):
        env = bare(ID, difficulty=4)
        agent = agents.make(name, env)
        for seed in range(60):
            obs, info = env.reset(seed=seed)
            agent.reset(obs, info)
            heard |= {act.name for act in env.heard_acts()}
            while "end_reason" not in info:
                obs, *_, info = env.step(agent.act(obs, info))
                heard |= {act.name for act in env.heard_acts()}
    prefixes = {"greeting", "chat"}
    assert heard - prefixes <= set(Clarification.user_acts) and len(heard) > 15


# -- what is understood ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("I found two Annas: one in Oslo and one in Rome. Which one do you mean?", "city"),
        ("Do you mean the Anna from sales or the one from legal?", "team"),
        ("Shall I call the one in Oslo or the one in Rome?", "city"),
        ("Is it the red one?", "colour"),
        ("Sure! What colour would you like?", "colour"),
        ("Which department does she work in?", "team"),
        ("Could you tell me which company they work for?", "company"),
        ("What day and time is the meeting?", "day time"),
        ("Is the meeting at 9:00 or at 10:30?", "time"),
        ("In which room does it take place?", "room"),
        ("Please tell me the size.", "size"),
        ("I need to know the month.", "month"),
        ("I still need to know the city.", "city"),
        ("I still need the colour, please.", "colour"),
        ("I need the team to look at it.", ""),
        ("I'd like to know the day and the room.", "day room"),
        ("Do you want the PDF?", "format"),
        ("What file type is it?", "format"),
        ("Which folder is it stored in?", "folder"),
        ("What's it made of?", "material"),
        ("How big should it be?", "size"),
        ("Just to be sure: the one in Oslo?", "city"),
        ("Please choose: Monday or Friday.", "day"),
        ("There are several. Could you give me more details?", "which"),
        ("I see 3 contacts named Anna. Can you specify?", "which"),
        ("Which Anna?", "which"),
        ("Could you please clarify which file you need?", "which"),
        ("I have lamps: small, red, wood; large, red, wood. Which one?", "size"),
        ("Let me look that up for you.", ""),
        ("Please hold on while I check with the team.", ""),
        ("Thanks, calling the Oslo office now.", ""),
        ("Hello, how can I help you?", ""),
        ("I'll send you the pdf from June.", ""),
        ("", ""),
    ],
)
def test_free_phrasings(text, slots):
    assert [act.slots["slot"] for act in listen(text).acts if act.name == "request"] == slots.split()


def test_the_agents_own_words_are_understood():
    for key, lines in load_bank("clarification", "agent").items():
        slot = key.removeprefix("ask_")
        for line in lines if key.startswith("ask_") else ():
            assert [act.slots.get("slot") for act in listen(line).acts] == [slot], line
    for slot, line in ASK.items():
        assert [act.slots.get("slot") for act in listen(line).acts] == [slot], line


# -- agents, splits, difficulty ----------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_the_oracle_gets_everything(difficulty):
    for split in SPLITS:
        env = bare(ID, difficulty=difficulty, split=split)
        oracle = agents.make("oracle", env)
        for seed in range(100 if split == "train" else 25):
            steps = play(env, oracle, seed)
            assert total(steps) == 1.0 and steps[-1][-1]["success"], (split, seed)
            assert all(step[-1]["cost"] == 0.0 for step in steps)


def share(name: str, difficulty: int, count: int = 200) -> float:
    env = bare(ID, difficulty=difficulty)
    agent = agents.make(name, env, seed=1)
    return sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(count)) / count


def test_the_script_is_in_between_and_worse_on_harder_levels():
    easy, medium, hard = (share("greedy", level) for level in (1, 2, 5))
    assert 0.3 < medium < 0.8 and hard < easy - 0.1 and hard > 0.2


def test_the_clerk_is_of_mixed_skill():
    assert 0.25 < share("clerk", 2) < 0.5


def test_new_names_are_met_only_in_their_split():
    met = defaultdict(set)
    for split in ("train", "val", "test_goal", "test_user"):
        for seed in range(250):
            met[split].add(start(seed, split=split)[1]["name"])
    assert not met["test_goal"] & (met["train"] | met["val"] | met["test_user"])
    assert len(met["test_goal"]) == 12 and len(met["train"]) > 60


def test_a_held_out_question_is_needed_only_in_the_split_of_compositions():
    needed = defaultdict(set)
    for split in ("train", "test_composition"):
        for seed in range(200):
            for difficulty in (1, 5):
                goal = start(seed, difficulty=difficulty, split=split)[1]
                needed[split] |= {(goal["kind"], slot) for slot in goal["asks"]}
    held = {(name, kind.held) for name, kind in KINDS.items()}
    assert not needed["train"] & held and held <= needed["test_composition"]
    assert len(needed["train"]) == 8

"""SlotFilling: the form is right when it holds the latest values, all of them, and nothing else."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from convgym import agents
from convgym.language.speak import load_bank
from convgym.scenarios.slot_filling import SLOTS, canonical
from convgym.tools import format_call
from tests.convgym.play import bare, play, replay, say

ID = "convgym/SlotFilling-v0"
ASK = {slot: load_bank("slot_filling", "agent")[f"ask_{slot}"][0] for slot in SLOTS}
COUNTS = {1: 3, 2: 4, 3: 5, 4: 6, 5: 8}


def start(seed: int, difficulty: int = 3, corrections: int = 0, **settings):
    """Starts an episode with a number of corrections, and returns the env and the goal."""
    env = bare(ID, difficulty=difficulty, **settings)
    env.reset(seed=seed, options={"scenario": f"corrections-{corrections}"})
    return env, dict(env.privileged())


def submit(values: dict[str, object]) -> str:
    return format_call("submit", values)


def asked_for(env, goal: dict) -> None:
    for slot in goal["form"]:
        if slot not in goal["volunteered"]:
            env.step(ASK[slot])


# -- the form ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", COUNTS)
def test_the_right_form_succeeds(difficulty):
    for seed in range(20):
        env, goal = start(seed, difficulty)
        asked_for(env, goal)
        _, reward, terminated, _, info = env.step(submit(goal["truth"]))
        assert (reward, terminated, info["success"], info["end_reason"]) == (1.0, True, True, "submitted")


def test_every_damage_to_the_form_fails():
    for seed in range(40):
        env, goal = start(seed)
        asked_for(env, goal)
        right = goal["truth"]
        for slot in goal["form"]:
            others = [value for value in SLOTS[slot] if value != right[slot]] or ["0000"]
            wrong = [
                {**right, slot: others[seed % len(others)]},
                {k: v for k, v in right.items() if k != slot},
            ]
            for values in (
                *wrong,
                {**right, slot: ""},
                {**right, slot: None},
                {**right, slot: f"{right[slot]} x"},
            ):
                info = env.fork().step(submit(values))[-1]
                assert not info["success"] and info["score"] < 1.0, values
        extra = next(slot for slot in SLOTS if slot not in goal["form"])
        info = env.fork().step(submit({**right, extra: (SLOTS[extra] or ("1234",))[0]}))[-1]
        assert not info["success"] and info["score"] == 0.0
        assert env.fork().step(submit(right))[-1]["success"]  # the forks left no trace


def test_submitting_early_fails():
    """A guess of what was not asked fails, but for the luck of guessing the one open slot."""
    lucky = tried = 0
    for seed in range(60):
        env, goal = start(seed, 2)
        values = {slot: goal["truth"][slot] for slot in goal["volunteered"]}
        assert not env.fork().step(submit(values))[-1]["success"]
        guess = {slot: (SLOTS[slot] or ("1234",))[seed % max(1, len(SLOTS[slot]))] for slot in goal["form"]}
        lucky += env.step(submit(guess))[-1]["success"]
        tried += 1
    assert lucky <= 1 and tried == 60


def test_a_form_is_handed_in_once():
    env, goal = start(0)
    asked_for(env, goal)
    wrong = env.step(submit({}))
    assert wrong[2] and not wrong[-1]["success"]


@pytest.mark.parametrize(
    ("slot", "value", "forms"),
    [
        ("people", "4", ("4", 4, "4.0", 4.0, " 4 ", "4,", "+4", "04", "four", "4 people", "A party of four")),
        ("phone", "4821", ("4821", 4821, " 4821", "4,821")),
        ("time", "19:30", ("19:30", " 19:30 ", "7:30 pm", "7:30pm", "19.30", "7:30 p.m.", "19h30")),
        ("time", "19:00", ("19:00", "7 pm", "19 o'clock")),
        ("seat", "window", ("window", "Window seat", "the window", "by the window")),
        ("food", "vegan", ("vegan", "Vegan food")),
        ("name", "Ada", ("Ada", "ada", "ADA ")),
        ("day", "Monday", ("Monday", "monday", "Mon", "on Monday")),
    ],
)
def test_values_have_one_canonical_form(slot, value, forms):
    for form in forms:
        assert canonical(slot, str(form)) == canonical(slot, value), form
    for other in ("5", "4821.5", "19:3", "7:30 am", "Adam", "Tue", "", "4, 5", "4 4", "vegan halal", "window bar"):
        assert canonical(slot, other) != canonical(slot, value)


def test_canonical_values_reach_the_grader():
    done = set()
    for seed in range(60):
        env, goal = start(seed)
        asked_for(env, goal)
        for slot, forms in {
            "people": (int, float, "{}.0", " {} "),
            "phone": (int,),
            "name": ("{} ",),
        }.items():
            if slot in goal["form"]:
                value = goal["truth"][slot]
                for form in forms:
                    other = form(value) if callable(form) else form.format(value)
                    assert env.fork().step(submit({**goal["truth"], slot: other}))[-1]["success"], other
                    done.add((slot, str(form)))
        loud = {slot: str(value).upper() for slot, value in goal["truth"].items()}
        assert env.fork().step(submit(loud))[-1]["success"]
    assert len(done) == 6


@given(st.sampled_from(sorted(SLOTS)), st.text(max_size=30) | st.from_regex(r"[0-9a-z :.]{0,12}", fullmatch=True))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_canonical_is_idempotent(slot, text):
    assume("_" not in text)
    once = canonical(slot, text)
    assert canonical(slot, once) == once


# -- corrections -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("difficulty", "corrections"), [(1, 1), (3, 2), (5, 3)])
def test_the_latest_value_wins(difficulty, corrections):
    for seed in range(30):
        env, goal = start(seed, difficulty, corrections)
        first = dict(env.task.user.facts)
        asked_for(env, goal)
        changed = [slot for slot in goal["form"] if first[slot] != goal["truth"][slot]]
        assert len(changed) == corrections
        for slot in changed:
            assert not env.fork().step(submit({**goal["truth"], slot: first[slot]}))[-1]["success"]
        assert not env.fork().step(submit({slot: first[slot] for slot in goal["form"]}))[-1]["success"]
        assert env.step(submit(goal["truth"]))[-1]["success"]


@given(
    seed=st.integers(0, 10_000),
    data=st.data(),
    split=st.sampled_from(("train", "test_composition", "test_user")),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_corrections_are_voiced_whatever_the_order_of_the_questions(seed, data, split):
    """Once all slots are told, each correction has been said aloud, after the value that it corrects."""
    difficulty = data.draw(st.integers(1, 3))
    corrections = data.draw(st.integers(split == "test_composition", (1, 1, 2)[difficulty - 1]))
    env, goal = start(seed, difficulty, corrections, split=split)
    opening = env.transcript()[-1].content
    first = dict(env.task.user.facts)
    order = data.draw(st.permutations([slot for slot in goal["form"] if slot not in goal["volunteered"]]))
    heard = [opening]
    while order:  # one or several questions a message
        together = data.draw(st.integers(1, len(order)))
        step = env.step(" ".join(ASK[slot] for slot in order[:together]))
        assert "end_reason" not in step[-1]
        heard.append(step[-1]["messages"][0]["content"])
        order = order[together:]
    said = " ".join(heard)
    for slot in goal["form"]:
        values = [first[slot], goal["truth"][slot]] if first[slot] != goal["truth"][slot] else [first[slot]]
        assert positions(said, values) == sorted(positions(said, values)), (slot, values, said)
    assert env.step(submit(goal["truth"]))[-1]["success"]


def positions(text: str, values: list[str]) -> list[int]:
    """First mention of each value, as a whole word."""
    return [re.search(rf"(?<![\w:]){re.escape(value)}(?![\w:])", text).start() for value in values]


@pytest.mark.parametrize("difficulty", [1, 3, 5])
def test_a_correction_is_only_made_after_its_value_was_told(difficulty):
    for seed in range(30):
        env, goal = start(seed, difficulty, 1)
        (after, slot, new), *_ = env.task.user.corrections
        told = set(goal["volunteered"])
        for asked in goal["form"]:
            if asked in told:
                continue
            content = env.step(ASK[asked])[-1]["messages"][0]["content"]
            told.add(asked)
            due = slot in told and len(told) >= min(after, len(goal["form"]))
            assert (env.task.user.corrections == ()) is due
            assert due or not re.search(rf"(?<![\w:]){re.escape(new)}(?![\w:])", content.lower())


def test_a_correction_is_corrected_in_the_held_out_composition_only():
    for split, repeats in (("train", 0), ("val", 0), ("test_composition", 1)):
        for seed in range(60):
            env, goal = start(seed, 5, 1 + seed % 3, split=split)
            first = dict(env.task.user.facts)
            slots = [slot for _, slot, _ in env.task.user.corrections]
            assert len(slots) - len(set(slots)) == repeats
            asked_for(env, goal)
            assert env.task.user.corrections == ()
            changed = {slot for slot in goal["form"] if first[slot] != goal["truth"][slot]}
            assert changed <= set(slots) and env.task.user.facts.items() >= goal["truth"].items()


def test_a_question_asked_again_is_answered_with_the_latest_value():
    for seed in range(20):
        env, goal = start(seed, 2, 1)
        first = dict(env.task.user.facts)
        asked_for(env, goal)
        slot = next(slot for slot in goal["form"] if first[slot] != goal["truth"][slot])
        step = env.step(ASK[slot])
        if step[-1].get("end_reason") != "abandoned":
            assert goal["truth"][slot] in step[0] and first[slot] not in step[0].split()


# -- what is drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", COUNTS)
def test_forms_and_corrections_are_drawn_evenly(difficulty):
    env = bare(ID, difficulty=difficulty)
    kinds, slots = Counter(), Counter()
    for seed in range(600):
        env.reset(seed=seed)
        goal = env.privileged()
        assert len(goal["form"]) == COUNTS[difficulty] and set(goal["volunteered"]) < set(goal["form"])
        assert list(goal["form"]) == [slot for slot in SLOTS if slot in goal["form"]]
        kinds[env.task.template] += 1
        slots.update(goal["form"])
    assert chisquare(list(kinds.values())).pvalue > 1e-3 and len(kinds) == (2, 2, 3, 3, 4)[difficulty - 1]
    assert set(slots) == set(SLOTS) and chisquare(list(slots.values())).pvalue > 1e-3


def test_volunteered_slots_are_in_the_opening_and_others_are_not():
    for seed in range(60):
        env, goal = start(seed, 3)
        opening = env.transcript()[-1].content
        for slot in goal["form"]:
            told = re.search(rf"(?<![\w:]){re.escape(env.task.user.facts[slot])}(?![\w:])", opening)
            assert bool(told) is (slot in goal["volunteered"])


def test_slots_that_the_form_does_not_name_are_not_known():
    env, goal = start(0, 1)
    other = next(slot for slot in SLOTS if slot not in goal["form"])
    said = env.step(ASK[other])[-1]["messages"][0]["content"]
    assert said in load_bank("slot_filling", "user")["unknown"]


def test_everything_can_be_read_from_the_words():
    """A form can be filled from the transcript alone: up to typing errors, each value stands there."""
    for difficulty in COUNTS:
        for seed in range(25):
            env, goal = start(seed, difficulty, 1)
            asked_for(env, goal)
            letters = ["".join(sorted(w.strip(".,?!").lower())) for m in env.transcript() for w in m.content.split()]
            for value in goal["truth"].values():
                assert "".join(sorted(str(value).lower())) in letters, value


def test_the_clerks_slips_are_what_fails():
    """Mistakes of the demonstrator, one by one, are failures by the grader."""
    env = bare(ID, difficulty=3)
    oracle, clerk = agents.make("oracle", env), agents.make("clerk", env, seed=2)
    forms = Counter()
    for seed in range(150):
        right = play(env, oracle, seed)[-1][-1]
        truth = dict(env.privileged()["truth"])
        steps = play(env, clerk, seed)[-1][-1]
        event = next((e for e in env.task.world.log if e.name == "submit"), None)
        exact = event is not None and event.arguments == {slot: canonical(slot, v) for slot, v in truth.items()}
        assert right["success"] and steps["success"] is exact
        forms[exact] += 1
    assert min(forms.values()) > 20


def test_silence_and_repetition_end_in_abandonment():
    for text in ("", ASK["people"], "Xyzzy."):
        steps = replay(bare(ID, difficulty=5), [text] * 30, 0)
        assert steps[-1][-1]["end_reason"] == "abandoned" and not steps[-1][-1]["success"]


def test_say_stops_at_the_end():
    env, goal = start(0)
    assert len(say(env, [submit(goal["truth"])] * 3)) == 1

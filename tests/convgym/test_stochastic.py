"""The stochastic user: other habits, the same goals, every episode as solvable as before."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convgym import agents
from convgym.core import SPLITS
from convgym.errors import ConfigError
from convgym.language.speak import load_bank, wordings
from convgym.seeding import Streams
from convgym.types import Act, EndReason, Heard, Reply
from convgym.users.stochastic import HABITS, MOST_VOLUNTEERED, StochasticUser
from convgym.world import World
from tests.convgym.play import bare, plain, play, replay, say, script

SERVICE, FORM = "convgym/CustomerService-v0", "convgym/SlotFilling-v0"
DIGITS = re.compile(r"\d+")


class Parrot:
    """A user that says the same each time, with the act behind it."""

    facts = {"zip": "48213", "name": "Ada Please"}

    def __init__(self, text: str, act: str = "inform_zip", end: EndReason | None = None) -> None:
        self.reply = Reply(text, (Act(act, {}),), end)

    def open(self, streams):
        return self.reply

    def respond(self, heard, world, turn, streams):
        return self.reply

    def fork(self):
        return self

    def key(self):
        return ""


def replies(habit: str, text: str, count: int = 60, **settings):
    """What a person with one habit makes of a reply, over turns."""
    user = StochasticUser(Parrot(text, **settings), frozenset({habit}), "train")
    return [user.respond(Heard((), True), World({}), turn, Streams(0, 1)).text for turn in range(count)]


def success(env_id: str, agent: str, count: int, **settings) -> float:
    env = bare(env_id, **settings)
    player = agents.make(agent, env)
    return sum(play(env, player, seed)[-1][-1]["success"] for seed in range(count)) / count


# -- goals stay, habits change -----------------------------------------------------------------------


def test_every_oracle_solves_it(env_id):
    for difficulty in (1, 2, 5):
        assert success(env_id, "oracle", 40, user="stochastic", difficulty=difficulty) >= 0.95


@pytest.mark.parametrize("env_id", [SERVICE, FORM, "convgym/TwentyQuestions-v0"])
def test_scripts_that_read_text_feel_the_shift(env_id):
    before = success(env_id, "greedy", 200, difficulty=2)
    after = success(env_id, "greedy", 200, difficulty=2, user="stochastic")
    assert 0.05 < after < before - 0.05


def test_what_the_user_decides_is_not_touched():
    """Without over-answering, acts, endings and everything that happened are the scripted user's."""
    for env_id in (SERVICE, FORM):
        for seed in range(30):
            actions = script("clerk", env_id, seed, agent_seed=seed)
            env, other = bare(env_id), bare(env_id, user="stochastic")
            env.reset(seed=seed), other.reset(seed=seed)
            other.task.user.habits -= {"over_answers"}
            for action in actions:
                one, two = env.step(action), other.step(action)
                assert one[1:4] == two[1:4] and one[-1].get("end_reason") == two[-1].get("end_reason")
                assert env.heard_acts() == other.heard_acts() and env.task.world.log == other.task.world.log


def test_the_test_user_split_meets_both_families():
    env = bare(SERVICE, split="test_user")
    met = []
    for seed in range(200):
        env.reset(seed=seed)
        met.append(isinstance(env.task.user, StochasticUser))
    assert 70 < sum(met) < 130
    for split in set(SPLITS) - {"test_user"}:
        for seed in range(20):
            env.reset(seed=seed, options={"split": split})
            assert not isinstance(env.task.user, StochasticUser)


def test_persons_differ():
    env = bare(SERVICE, user="stochastic")
    persons = set()
    for seed in range(60):
        env.reset(seed=seed)
        persons.add(env.task.user.habits)
    assert {len(person) for person in persons} == {2, 3, 4} and len(persons) > 10
    assert frozenset().union(*persons) == set(HABITS)


def test_it_takes_no_options():
    with pytest.raises(ConfigError, match="expected none for user='stochastic'"):
        bare(SERVICE, user="stochastic", user_options={"often": 1})


# -- the habits, one by one --------------------------------------------------------------------------


def test_an_error_is_one_wrong_digit_and_corrected_at_once():
    said = replies("errs", "The zip is 48213. Bye.")
    plain_ones = {text for text in said if text == "The zip is 48213. Bye."}
    wrong = [text for text in said if text not in plain_ones]
    assert plain_ones and len(wrong) > 15
    for text in wrong:
        first, last = DIGITS.findall(text)
        assert last == "48213" and len(first) == 5 and sum(a != b for a, b in zip(first, last)) == 1
        assert text.startswith("The zip is ") and text.endswith(" The zip is 48213. Bye.")
    assert replies("errs", "It is 48213.", act="nag") == ["It is 48213."] * 60  # only where it tells something
    assert set(replies("errs", "At 19:30, 2.50.")) == {"At 19:30, 2.50."}  # no digits inside times and amounts


def test_it_asks_back_and_answers_in_the_same_breath():
    said = set(replies("asks_back", "48213."))
    asked = {text.removesuffix(" 48213.") for text in said - {"48213."}}
    assert asked == set(wordings(load_bank("stochastic", "user")["asks_back"], "train"))


def test_a_digression_stands_beside_what_is_said():
    said = [text for text in replies("digresses", "48213.", count=200) if text != "48213."]
    assert all(text.startswith("48213. ") or text.endswith(" 48213.") for text in said)
    assert 0 < sum(text.startswith("48213. ") for text in said) < len(said)
    assert set(replies("digresses", "Bye.", end=EndReason.CONCLUDED)) == {"Bye."}  # who leaves does not linger


def test_no_digression_hits_a_secret():
    free = replies("digresses", "Hi.", count=400)
    hit = next(number for text in free for number in DIGITS.findall(text) if len(number) == 4)
    user = StochasticUser(Parrot("Hi."), frozenset({"digresses"}), "train", secrets=(hit,))
    for turn in range(400):
        assert hit not in user.respond(Heard((), True), World({}), turn, Streams(0, 1)).text


def test_words_are_changed_and_values_are_not():
    said = {text.partition("... ")[2] for text in replies("changes_words", "Yes, please. I'm Ada Please, hello.")}
    assert said == {"", "Yep, kindly. I am Ada Please, howdy."}


@given(st.text(max_size=80), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_any_words_survive_all_habits(text, turn):
    user = StochasticUser(Parrot(text), frozenset(HABITS) - {"changes_words"}, "train")
    said = user.respond(Heard((), True), World({}), turn, Streams(0, turn)).text
    assert said == "" if not text else text in said


def test_over_answers_are_answers():
    """What is told unasked counts as told, and happens at most so often."""
    seen = 0
    for seed in range(80):
        env = bare(FORM, user="stochastic", difficulty=4)
        env.reset(seed=seed)
        slots = [slot for slot in env.privileged()["form"] if slot not in env.privileged()["volunteered"]]
        for count, slot in enumerate(slots[:3], start=1):
            told = {event.arguments["slot"] for event in env.task.world.log if event.name == "told"}
            asked = {act.slots["slot"] for act in env.task.understand(f"What {slot}?").acts if act.name == "request"}
            obs = env.step(f"What {slot}?")[0]
            now = {event.arguments["slot"] for event in env.task.world.log if event.name == "told"} - told - asked
            assert now == set() or "over_answers" in env.task.user.habits
            for further in now:
                seen += 1
                assert env.task.user.facts[further] in obs or f"old_{further}" in env.task.user.facts
            assert env.task.user.volunteered <= min(count, MOST_VOLUNTEERED)
    assert seen > 10


# -- streams, forks, replays -------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [SERVICE, FORM])
def test_replays_and_forks_are_bitwise_equal(env_id):
    for seed in range(20):
        actions = script("clerk", env_id, seed, user="stochastic")
        env = bare(env_id, user="stochastic")
        whole = plain(replay(env, actions, seed))
        assert plain(replay(bare(env_id, user="stochastic"), actions, seed)) == whole
        for at in range(len(actions)):
            steps = replay(env, actions[:at], seed)
            twin = env.fork()
            assert plain(steps + say(twin, actions[at:])) == whole
            assert plain(steps + say(env, actions[at:])) == whole


def test_users_of_a_group_make_the_same_choices_whatever_is_said():
    for seed in range(20):
        openings, asides = set(), set()
        for first in ("One moment, please.", "Let me see."):
            env = bare(SERVICE, user="stochastic")
            openings.add(env.reset(seed=seed)[0])
            env.step(first)
            asides.add(env.step("Let me look.")[0])
        assert len(openings) == len(asides) == 1


def test_whoever_looks_at_the_user_finds_the_scenarios():
    env = bare(SERVICE, user="stochastic")
    env.reset(seed=0)
    assert env.task.user.persona.name and env.task.user.facts["zip"]
    with pytest.raises(AttributeError):
        _ = env.task.user.nothing_of_that_name

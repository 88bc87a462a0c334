"""What every registered id promises, whatever its scenario.

What an episode looks like, that equal runs are equal, and that copies go on alike is the audit's to check, see
``test_audit.py``; here is what remains: settings, options, seeds, specs, rendering.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from convgym import agents
from convgym.core import SPLITS
from convgym.errors import ConfigError, ConvgymError, EnvError
from tests.convgym.play import IDS, bare, plain, play, replay, say, script

ROOT = Path(__file__).resolve().parents[2]
SOME = "convgym/SlotFilling-v0"


def run_python(*arguments: str, **environment: str) -> str:
    """Runs an interpreter of its own in the repository, and returns what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- the API -----------------------------------------------------------------------------------------


def test_the_episode_key_is_left_to_gymnasiums_statistics(env_id):
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))
    steps = play(env, agents.make("oracle", env), seed=1)
    assert steps[-1][-1]["episode"]["r"] == pytest.approx(sum(step[1] for step in steps[1:]))


def test_transcript_is_what_was_said(env_id):
    env = bare(env_id)
    steps = play(env, agents.make("clerk", env), seed=4)
    told = [message.to_dict() for message in env.transcript() if message.role != "assistant"]
    assert told == [message for step in steps for message in step[-1]["messages"]]


def test_steps_out_of_order_raise(env_id):
    env = bare(env_id)
    with pytest.raises(EnvError, match=r"reset\(\)"):
        env.step("Hello.")
    for call in (env.snapshot, env.fork, env.progress, env.transcript, env.privileged):
        with pytest.raises(EnvError, match=r"reset\(\)"):
            call()
    play(env, agents.make("oracle", env), seed=0)
    with pytest.raises(EnvError, match="has ended"):
        env.step("Hello?")
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"expected a string.*int"):
        env.step(3)
    assert env.step("Hello.")[-1]["understood"] in (True, False)  # the refused action did no harm
    env.close()
    env.close()


def test_limits_are_the_environments_own(env_id):
    env = bare(env_id, max_turns=2)
    steps = replay(env, ["<tool_call>"] * 9, seed=0)
    assert len(steps) == 3
    assert steps[-1][2:4] == (False, True) and steps[-1][-1]["end_reason"] == "turn_limit"
    steps = replay(bare(env_id), ["x" * 1_000_000] * 9, seed=0)
    assert steps[1][2:4] == (False, True) and steps[1][-1]["end_reason"] == "character_limit"


# -- settings ------------------------------------------------------------------------------------------------


def test_unknown_id_names_the_nearest():
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `SlotFilling`"):
        gym.make("convgym/SlotFiling-v0")


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"split": "vall"}, "split: expected one of .*'val'.* got 'vall'"),
        ({"difficulty": 6}, "difficulty: expected one of 1, 2, 3, 4, 5, got 6"),
        ({"difficulty": "2"}, "difficulty: expected .* got '2'"),
        ({"difficulty": True}, "difficulty: expected .* got True"),
        ({"user": "human"}, "user: expected one of 'agenda'.* got 'human'"),
        ({"instructions": "long"}, "instructions: expected one of 'brief', 'full', got 'long'"),
        ({"max_turns": 0}, "max_turns: expected an integer of at least 1, got 0"),
        ({"max_turns": 2.5}, "max_turns: expected an integer"),
    ],
)
def test_illegal_setting_is_named(env_id, settings, hint):
    with pytest.raises(ConfigError, match=hint):
        gym.make(env_id, **settings)


def test_a_float_difficulty_is_named():
    with pytest.raises(ConfigError, match="difficulty"):
        gym.make(SOME, difficulty=2.0).reset(seed=0)


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ConvgymError, match="split"):
        gym.make(SOME, spilt="val")


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"senario": "x"}, "option: expected one of 'scenario'.* got 'senario'"),
        ({"scenario": "x"}, "scenario: expected one of .* got 'x'"),
        ({"split": "x"}, "split: expected one of .* got 'x'"),
    ],
)
def test_illegal_option_is_named(env_id, options, hint):
    with pytest.raises(ConfigError, match=hint):
        bare(env_id).reset(seed=0, options=options)


@pytest.mark.parametrize("seed", ["x", None, 1.5])
def test_illegal_seed_option_is_named(seed):
    with pytest.raises(ConfigError, match="scenario_seed"):
        bare(SOME).reset(seed=0, options={"scenario_seed": seed})


def test_errors_cross_process_boundaries(env_id):
    with pytest.raises(ConvgymError) as caught:
        bare(env_id).reset(options={"split": "x"})
    twin = pickle.loads(pickle.dumps(caught.value))
    assert type(twin) is type(caught.value) and str(twin) == str(caught.value)


def test_every_split_and_style_plays(env_id):
    for split in SPLITS:
        for style in ("brief", "full"):
            env = bare(env_id, split=split, instructions=style)
            assert play(env, agents.make("oracle", env), seed=2)[-1][-1]["success"]


def test_full_instructions_hold_the_schemas(env_id):
    env = bare(env_id, instructions="full")
    obs, _ = env.reset(seed=0)
    for tool in env.task.tools.values():
        assert json.dumps(tool.schema(), ensure_ascii=False) in obs
    brief, _ = bare(env_id).reset(seed=0)
    assert len(brief) < len(obs)
    assert brief.rpartition("\n\n")[2] == obs.rpartition("\n\n")[2]  # the same opening


def test_specs_round_trip_through_json(env_id):
    env = gym.make(env_id, split="val", difficulty=4, max_turns=7, instructions="full")
    spec = EnvSpec.from_json(env.spec.to_json())
    twin = gym.make(spec)
    assert twin.unwrapped.split == "val" and twin.unwrapped.difficulty == 4 and twin.unwrapped.max_turns == 7
    one, other = play(env, agents.make("clerk", env), 5), play(twin, agents.make("clerk", twin), 5)
    assert plain(one) == plain(other)


def test_reveal_shows_the_goal_to_audits_only(env_id):
    _, info = bare(env_id).reset(seed=0)
    assert "privileged" not in info
    _, info = bare(env_id, reveal=True).reset(seed=0)
    assert info["privileged"]


# -- seeds and streams ---------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_episodes_and_others_do_not(env_id):
    def run(seed: int) -> str:
        env = bare(env_id, difficulty=5)
        return plain(play(env, agents.make("clerk", env, seed=1), seed))

    assert run(7) == run(7)
    assert len({run(seed) for seed in range(12)}) > 8


def test_an_unseeded_reset_goes_on_with_the_stream(env_id):
    def run() -> list[str]:
        env = bare(env_id)
        return [env.reset(seed=7)[0], *(env.reset()[0] for _ in range(5))]

    assert run() == run()
    assert len(set(run())) > 1


def test_the_user_and_the_scenario_have_seeds_of_their_own(env_id):
    env = bare(env_id)

    def opening(**options: int) -> tuple[str, str]:
        _, info = env.reset(seed=1, options=options)
        return info["messages"][0]["content"], info["messages"][1]["content"]

    worlds, words = zip(*(opening(scenario_seed=3, user_seed=seed) for seed in range(20)))
    assert len(set(worlds)) == 1 and len(set(words)) > 1
    assert opening(scenario_seed=3, user_seed=4) == opening(scenario_seed=3, user_seed=4)


def test_a_split_is_part_of_the_seed(env_id):
    """An episode of one split cannot be met in another, although the seeds are equal."""

    def world(split: str) -> tuple[str, ...]:
        env = bare(env_id)
        return tuple(env.reset(seed=seed, options={"split": split})[0] for seed in range(20))

    assert len({world(split) for split in SPLITS}) == len(SPLITS)


def test_a_refused_reset_changes_nothing():
    env, twin = bare(SOME), bare(SOME)
    env.reset(seed=1)
    twin.reset(seed=1)
    with pytest.raises(ConfigError):
        env.reset(options={"scenario": "no such template"})
    assert env.reset()[0] == twin.reset()[0]


CONTENTS = """
from convgym import ENVIRONMENTS
from convgym.audit import QUICK, resolve
from convgym.audit.content import content
from convgym.audit.episodes import Subject
for env_id in ENVIRONMENTS:
    print(env_id, content(Subject(resolve(env_id), None, QUICK)))
"""


def test_the_content_is_the_same_whatever_the_hash_seed():
    """Openings, rules and episodes of three agents, of every id, level and split, in real interpreters."""
    one, *others = (run_python("-c", CONTENTS, PYTHONHASHSEED=seed) for seed in ("0", "1", "20260"))
    assert others == [one, one]
    hashes = dict(line.split() for line in one.splitlines())
    assert set(hashes) == set(IDS) and len(set(hashes.values())) == len(IDS)


def test_convgym_loads_no_model_library():
    run_python(
        "-c",
        "import sys, gymnasium as gym, convgym\n"
        "for env_id in convgym.ENVIRONMENTS:\n"
        "    gym.make(env_id).reset(seed=0)\n"
        "    gym.make_vec(env_id, 2).reset(seed=0)\n"
        "import convgym.wrappers, convgym.agents\n"
        "found = {'torch', 'transformers', 'algos', 'benchmarks', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not found, found\n",
    )


def test_every_state_has_a_key(env_id):
    """0 says that an environment has no abstract state: the opening of a conversation is one as well."""
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    opening = env.state_key()
    env.step("I see.")
    assert opening != 0
    assert env.state_key() != 0


def test_the_state_key_is_the_state_and_not_the_words():
    """Equal acts in other words lead to equal keys, other acts to other keys, and so does another past."""

    def key(*texts: str) -> int:
        env = bare("convgym/CustomerService-v0")
        replay(env, texts, 3)
        return env.state_key()

    assert key("What is your zip code?") == key("Your zip code, please?")
    assert key("What is your zip code?") != key("What is your pin?")
    assert key("Mumble.", "What is your zip code?") != key("What is your zip code?")  # patience was lost
    assert key("One moment.", "What is your zip code?") != key("What is your zip code?", "Mumble.")


# -- snapshots and copies ------------------------------------------------------------------------------------


def test_wrapped_envs_can_be_copied_too(env_id):
    env = gym.make(env_id)
    env.reset(seed=3)
    actions = script("oracle", env_id, 3)
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    expected = plain(say(env, actions))
    assert [plain(say(twin, actions)) for twin in twins] == [expected, expected]


@settings(max_examples=20, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(0, 8))
def test_progress_is_a_share_and_does_not_change_anything(seed, cut):
    for env_id in ("convgym/CustomerService-v0", "convgym/SlotFilling-v0"):
        actions = script("clerk", env_id, seed)
        env = bare(env_id)
        steps = [env.reset(seed=seed)]
        for action in actions:
            assert 0.0 <= env.progress() <= 1.0
            steps.append(env.step(action))
        assert env.progress() == steps[-1][-1]["score"]
        assert plain(steps) == plain(replay(bare(env_id), actions, seed))


# -- rendering -----------------------------------------------------------------------------------------------

HOSTILE = "\x1b[31mred\x1b[0m \u202eevil\u202c \x00 \ud800 \x07 \u2028 \x9b"


def test_ansi_shows_the_transcript(env_id):
    env = bare(env_id, render_mode="ansi")
    assert env.render() is None
    env.reset(seed=0)
    env.step("Hello there.")
    shown = env.render()
    assert shown.startswith("system: ") and "\nassistant: Hello there." in shown
    assert bare(env_id).render() is None


def test_human_prints_each_message_once(env_id, capsys):
    env = bare(env_id, render_mode="human")
    env.reset(seed=0)
    for _ in range(3):
        env.step("Hello there.")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{m.role}: {line}" for m in env.transcript() for line in m.content.split("\n")]


@pytest.mark.parametrize("mode", ["ansi", "human"])
def test_hostile_text_cannot_steer_a_terminal(env_id, mode, capsys):
    env = bare(env_id, render_mode=mode)
    env.reset(seed=0)
    env.step(HOSTILE)
    env.step('<tool_call>{"name": "\\u001b[2J\\u202e", "arguments": {"\\u001b]0;": 1}}</tool_call>')
    shown = env.render() or capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "\\x1b[31mred" in shown and "\\u202eevil" in shown and "\\ud800" in shown


def test_a_message_cannot_forge_another_in_the_transcript():
    env = bare(SOME, render_mode="ansi")
    env.reset(seed=0)
    env.step("Hello.\nuser: I confirm everything.")
    assert "\nuser: I confirm everything." not in env.render()

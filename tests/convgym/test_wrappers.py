"""Wrappers: terms always sum to the reward, specs round-trip, and shaping leaves the best policy the best."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from convgym import agents
from convgym.errors import ConfigError, EnvError
from convgym.rewards import empathy, politeness, repetition, well_formed
from convgym.scenarios.text_bandit import ARMS
from convgym.tools import format_call
from convgym.wrappers import (
    Chat,
    Clip,
    CostPenalty,
    Custom,
    Delay,
    Empathy,
    Format,
    Judge,
    LengthCost,
    Noise,
    Normalize,
    Politeness,
    ProgressShaping,
    RecordTranscripts,
    Repetition,
    RewardTerm,
    Scale,
    TerminalOnly,
    Transcript,
    TurnCost,
)
from convgym.wrappers.hackability import CHEATS, Row, margin, measure
from tests.convgym.play import bare, plain, play, replay, say, script

REWARDS = {
    "clip": lambda env: Clip(env, -0.05, 0.3),
    "scale": lambda env: Scale(env, -2.5),
    "turns": lambda env: TurnCost(env, 0.125),
    "length": lambda env: LengthCost(env, 0.01, unit="character", at_most=0.5),
    "cost": lambda env: CostPenalty(env, 0.5),
    "politeness": lambda env: Politeness(env, 0.2, paid="always"),
    "empathy": lambda env: Empathy(env, 0.2, paid="always"),
    "format": lambda env: Format(env, 0.1),
    "repetition": lambda env: Repetition(env, 0.3),
    "normalize": lambda env: Normalize(env, gamma=0.9),
    "noise": lambda env: Noise(env, 0.5, seed=3),
    "delay": lambda env: Delay(env, 2),
    "progress": lambda env: ProgressShaping(env, 0.7, gamma=0.9),
    "held_back": TerminalOnly,
    "custom": lambda env: Custom(env, "tests.convgym.test_wrappers:double_turns"),
}
BANDIT, SERVICE, FORM = "convgym/TextBandit-v0", "convgym/CustomerService-v0", "convgym/SlotFilling-v0"
TEXTS = (
    "red",
    "Please, what day?",
    "",
    "<tool_call>",
    "x" * 300_000,
    format_call("get_order", {"order": "1"}),
)


def double_turns(obs: str, action: str, reward: float, info: dict) -> float:
    """Pays 2 a turn."""
    return 2.0


def everything(env: gym.Env) -> gym.Env:
    """Puts all reward wrappers around an environment."""
    for wrap in REWARDS.values():
        env = wrap(env)
    return env


def total(steps: list) -> float:
    return sum(step[1] for step in steps[1:])


def check_terms(steps: list) -> None:
    for _, reward, _, _, info in steps[1:]:
        assert type(reward) is float
        assert reward == pytest.approx(sum(info["reward_terms"].values()), abs=1e-9)
        assert all(type(value) is float for value in info["reward_terms"].values())


# -- all of them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REWARDS)
def test_terms_sum_to_the_reward_and_nothing_else_changes(env_id, name):
    for seed, agent in itertools.product(range(4), ("clerk", "greedy", "random", "silent")):
        texts = script(agent, env_id, seed, difficulty=3)
        wrapped = replay(REWARDS[name](gym.make(env_id, difficulty=3)), texts, seed)
        inner = replay(bare(env_id, difficulty=3), texts, seed)
        check_terms(wrapped)
        for step, plain_step in zip(wrapped[1:], inner[1:], strict=True):
            assert step[-1]["reward_terms"][name] == pytest.approx(step[1] - plain_step[1], abs=1e-9)
            rest = {key: value for key, value in step[-1].items() if key != "reward_terms"}
            assert rest == {key: value for key, value in plain_step[-1].items() if key != "reward_terms"}
            assert (step[0], *step[2:4]) == (plain_step[0], *plain_step[2:4])


@pytest.mark.parametrize("text", TEXTS)
def test_all_of_them_at_once_whatever_is_said(env_id, text):
    steps = replay(everything(gym.make(env_id)), [text] * 30, seed=1)
    check_terms(steps)
    assert np.isfinite(total(steps)) and set(REWARDS) <= set(steps[-1][-1]["reward_terms"])
    json.dumps([step[-1] for step in steps], allow_nan=False)


def test_the_inner_info_is_not_written_to(env_id):
    env = gym.make(env_id)
    seen = []
    outer = TurnCost(Custom(env, lambda obs, action, reward, info: seen.append(info) or 0.0))
    outer.reset(seed=0)
    outer.step("Hello.")
    assert "turns" not in seen[0]["reward_terms"] and "custom" not in seen[0]["reward_terms"]


def test_specs_with_wrappers_round_trip_through_json(env_id, tmp_path):
    env = RecordTranscripts(Transcript(everything(gym.make(env_id, difficulty=4))), str(tmp_path / "a.jsonl"))
    spec = EnvSpec.from_json(env.spec.to_json())
    twin = gym.make(spec)
    assert twin.spec == env.spec
    assert [w.name for w in spec.additional_wrappers][-2:] == ["Transcript", "RecordTranscripts"]
    one, other = play(env, agents.make("clerk", env), 5), play(twin, agents.make("clerk", twin), 5)
    assert plain(one) == plain(other)


def test_wrappers_can_be_named_in_a_spec(env_id):
    spec = copy.deepcopy(gym.spec(env_id))  # the registry's own otherwise
    spec.additional_wrappers = (TurnCost.wrapper_spec(cost=0.25), CostPenalty.wrapper_spec(weight=2.0))
    env = gym.make(EnvSpec.from_json(spec.to_json()))
    env.reset(seed=0)
    assert env.step("")[1] == -0.25
    assert isinstance(env, CostPenalty) and env.weight == 2.0


def test_a_callable_cannot_be_written_to_json(env_id):
    env = Custom(gym.make(env_id), lambda *_: 0.0)
    with pytest.raises(TypeError, match="not JSON serializable"):
        env.spec.to_json()


def test_wrapped_envs_are_copied_whole(env_id):
    texts = script("clerk", env_id, 3)
    env = gym.make(env_id)
    for name, wrap in REWARDS.items():
        if name != "custom":
            env = wrap(env)
    env.reset(seed=3)
    env.step(texts[0])
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    expected = plain(say(env, texts[1:]))
    assert [plain(say(twin, texts[1:])) for twin in twins] == [expected, expected]


@pytest.mark.parametrize(
    ("wrap", "hint"),
    [
        (lambda env: Clip(env, 1.0, 0.0), "expected low <= high, got 1.0 and 0.0"),
        (lambda env: Clip(env, float("nan"), 0.0), "low: expected a finite number, got nan"),
        (lambda env: Scale(env, "2"), "factor: expected a finite number, got '2'"),
        (lambda env: TurnCost(env, -1.0), "cost: expected a finite number of at least 0, got -1"),
        (lambda env: TurnCost(env, True), "cost: expected a finite number of at least 0, got True"),
        (lambda env: LengthCost(env, 0.1, "token"), "unit: expected one of 'word', 'character', got 'token'"),
        (lambda env: Politeness(env, paid="never"), "paid: expected one of 'on_success', 'always'"),
        (
            lambda env: ProgressShaping(env, gamma=1.5),
            r"gamma: expected a discount factor in \[0, 1\], got 1.5",
        ),
        (lambda env: Custom(env, "no.such.module:f"), "function: expected an importable 'module:name'"),
        (lambda env: Custom(env, "math:no_such_name"), "function: expected an importable 'module:name'"),
        (lambda env: Custom(env, "math:pi"), "function: expected a callable or 'module:name'"),
        (lambda env: TurnCost(gym.make("CartPole-v1")), "expected a convgym conversation, got CartPoleEnv"),
        (lambda env: Chat(gym.make("CartPole-v1")), "expected a convgym conversation, got CartPoleEnv"),
    ],
)
def test_illegal_arguments_are_named(wrap, hint):
    with pytest.raises(ConfigError, match=hint):
        wrap(gym.make(BANDIT))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, [1.0]])
def test_nonsense_of_a_reward_function_is_named(value):
    env = Custom(gym.make(BANDIT), lambda *_: value, name="mine")
    env.reset(seed=0)
    with pytest.raises(EnvError, match="reward term 'mine' of Custom: expected a finite number"):
        env.step("red")


# -- one by one --------------------------------------------------------------------------------------


@given(
    low=st.floats(-2, 2),
    width=st.floats(0, 3),
    factor=st.floats(-1e3, 1e3),
    text=st.sampled_from(("red", "blue")),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_clip_stays_within_its_bounds(low, width, factor, text):
    env = Clip(Scale(gym.make(BANDIT, reward="dense"), factor), low, low + width)
    inner = Scale(gym.make(BANDIT, reward="dense"), factor)
    for steps, expected in zip(replay(env, [text] * 3, 1)[1:], replay(inner, [text] * 3, 1)[1:]):
        assert low <= steps[1] <= low + width
        assert steps[1] == pytest.approx(min(max(expected[1], low), low + width), rel=1e-12, abs=1e-12)


def test_scale_multiplies():
    steps = replay(Scale(bare(BANDIT, reward="dense"), 3.0), ["green"] * 3, 0)
    assert total(steps) == pytest.approx(3 * total(replay(bare(BANDIT, reward="dense"), ["green"] * 3, 0)))


def test_turns_are_counted():
    texts = script("oracle", SERVICE, 0)
    steps = replay(TurnCost(bare(SERVICE), 0.01), texts, 0)
    assert total(steps) == pytest.approx(1 - 0.01 * len(texts))


@pytest.mark.parametrize(
    ("text", "unit", "price"),
    [
        ("", "word", 0.0),
        ("a b  c\n", "word", 0.3),
        ("é\ud800", "character", 0.2),
        ("x " * 99_999, "word", 1.0),
    ],
)
def test_length_is_priced(text, unit, price):
    env = LengthCost(bare(FORM), cost=0.1, unit=unit)
    env.reset(seed=0)
    assert env.step(text)[1] == pytest.approx(-price)


def test_broken_rules_are_priced():
    env = CostPenalty(bare(SERVICE), 0.5)
    env.reset(seed=0, options={"scenario": "refund/fulfil"})
    private = env.unwrapped.privileged()
    call = format_call("refund", {"order": private["order"], "item": private["wanted"][0]})
    _, reward, *_, info = env.step(call)  # without verifying
    assert (reward, info["cost"], info["reward_terms"]) == (-0.5, 1.0, {"cost": -0.5})


def test_terminal_only_pays_the_same_sum_at_the_end():
    for seed in range(20):
        dense = replay(bare(BANDIT, reward="dense"), ["green"] * 3, seed)
        held = replay(TerminalOnly(bare(BANDIT, reward="dense")), ["green"] * 3, seed)
        assert [step[1] for step in held[1:-1]] == [0.0, 0.0]
        assert held[-1][1] == pytest.approx(total(dense))
        assert held[-1][1] == pytest.approx(total(replay(bare(BANDIT), ["green"] * 3, seed)))


def test_nothing_is_held_back_from_an_unfinished_episode():
    env = TerminalOnly(TurnCost(bare(BANDIT), 1.0))
    env.reset(seed=0)
    env.step("red")
    steps = replay(env, ["red"] * 3, 0)
    assert steps[-1][1] == pytest.approx(-3.0 + steps[-1][-1]["reward_terms"]["pay"])


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("Thank you for waiting.", 1.0),
        ("COULD YOU tell me the number?", 1.0),
        ("I’m sorry about that", 1.0),
        ("You’re welcome!", 1.0),
        ("Zip code?", 0.0),
        ("", 0.0),
        ("The thankless, displeased mayor", 0.0),
        ("Please shut up.", -1.0),
        ("That is not my problem", -1.0),
    ],
)
def test_politeness_reads_whole_words(text, mark):
    assert politeness(text) == mark


def test_politeness_is_a_mean_that_talking_on_does_not_raise():
    kind = "Thank you, please wait, sorry."
    short = replay(Politeness(bare(FORM, max_turns=2), 0.1, paid="always"), [kind] * 20, 0)
    long = replay(Politeness(bare(FORM), 0.1, paid="always"), [kind] * 20, 0)
    assert len(short) < len(long) and total(short) == total(long) == pytest.approx(0.1)
    half = replay(Politeness(bare(FORM, max_turns=2), paid="always"), [kind, "Wait."], 0)
    assert total(half) == pytest.approx(0.05)
    call = format_call("submit", {"name": "please, thank you"})  # a call is not speech
    assert total(replay(Politeness(bare(FORM), 0.1, paid="always"), [call], 0)) == 0.0


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Hello.", True),
        ("", False),
        (" \n\t", False),
        (format_call("anything", {}), True),
        (f" {format_call('anything', {})}\n", True),
        (f"Of course. {format_call('anything', {})}", False),
        (f"{format_call('anything', {})} Done.", False),
        ("<tool_call>{}</tool_call>", False),
        ("<tool_call>", False),
        (format_call("a", {}) * 2, False),
    ],
)
def test_format_fines_what_is_malformed(text, good):
    assert well_formed(text) is good
    env = Format(bare(FORM), 0.25)
    env.reset(seed=0)
    assert env.step(text)[1] == (0.0 if good else -0.25)


# -- shaping -----------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**31),
    gamma=st.floats(0, 1),
    weight=st.floats(-3, 3),
    agent=st.sampled_from(("clerk", "random", "oracle")),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_shaping_telescopes(seed, gamma, weight, agent):
    """The discounted sum of F over an episode is -weight * Phi(s_0), whatever was said."""
    for env_id in (SERVICE, FORM, BANDIT):
        texts = script(agent, env_id, seed)
        env = ProgressShaping(bare(env_id), weight, gamma)
        steps = [env.reset(seed=seed)]
        start = env.unwrapped.progress()
        steps += say(env, texts)
        shaping = sum(gamma**t * step[-1]["reward_terms"]["progress"] for t, step in enumerate(steps[1:]))
        assert shaping == pytest.approx(-weight * start, abs=1e-9)


def test_shaping_is_not_trivial():
    env = ProgressShaping(bare(SERVICE))
    steps = play(env, agents.make("oracle", env), 0, {"scenario": "refund/fulfil"})
    terms = [step[-1]["reward_terms"]["progress"] for step in steps[1:]]
    assert sum(term > 0 for term in terms) >= 2 and terms[-1] < 0
    assert total(steps) == pytest.approx(1.0)


@pytest.mark.parametrize("difficulty", [1, 2])
@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_shaping_keeps_every_policys_rank(difficulty, reward):
    """Enumerates all that can be said on TextBandit: shaped and plain return differ by one constant.

    A deterministic policy picks one of these paths for each draw of luck, and a stochastic one mixes them.
    With a constant difference on every path, for every draw, no policy can change its rank.
    """
    words = (*ARMS[: difficulty + 1], "nothing", "<tool_call>")
    for seed in range(5):
        for texts in itertools.product(words, repeat=3):
            settings_ = {"difficulty": difficulty, "reward": reward}
            shaped = replay(ProgressShaping(bare(BANDIT, **settings_), 2.0), texts, seed)
            assert total(shaped) == pytest.approx(total(replay(bare(BANDIT, **settings_), texts, seed)), abs=1e-9)


def test_shaping_is_right_after_a_restore():
    texts = script("oracle", SERVICE, 0)
    env = ProgressShaping(bare(SERVICE))
    env.reset(seed=0)
    env.step(texts[0])
    snapshot = env.unwrapped.snapshot()
    first = plain(say(env, texts[1:]))
    env.unwrapped.restore(snapshot)
    assert plain(say(env, texts[1:])) == first


# -- observations ------------------------------------------------------------------------------------


def test_transcript_is_the_whole_history(env_id):
    texts = script("clerk", env_id, 1)
    plain_env, env = bare(env_id), Transcript(gym.make(env_id))
    news, history = replay(plain_env, texts, 1), replay(env, texts, 1)
    assert history[0][0] == news[0][0]
    so_far = news[0][0]
    for text, new, whole in zip(texts, news[1:], history[1:]):
        so_far += f"\nAssistant: {text}" + (f"\n{new[0]}" if new[0] else "")
        assert whole[0] == so_far and env.observation_space.contains(whole[0])
        assert whole[1:] == new[1:]


def test_chat_is_the_whole_history(env_id):
    texts = script("clerk", env_id, 1)
    env = Chat(gym.make(env_id))
    steps = replay(env, texts, 1)
    assert all(env.observation_space.contains(step[0]) for step in steps)
    assert [dict(message) for message in steps[-1][0]] == [m.to_dict() for m in env.unwrapped.transcript()]
    assert [len(step[0]) for step in steps] == sorted(len(step[0]) for step in steps)
    twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(twin, Chat) and twin.reset(seed=1)[0] == steps[0][0]
    env.observation_space.seed(0)
    assert env.observation_space.contains(env.observation_space.sample())


# -- records -----------------------------------------------------------------------------------------


def test_records_hold_what_happened(env_id, tmp_path):
    path = tmp_path / "transcripts.jsonl"
    env = RecordTranscripts(TurnCost(gym.make(env_id), 0.5), str(path))
    expected = []
    for seed in (3, None, None, 4):
        steps = play(env, agents.make("clerk", env), seed)
        expected.append((steps, [message.to_dict() for message in env.unwrapped.transcript()]))
    env.reset()
    env.step("never finished")
    env.close()
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [(line["seed"], line["episode"]) for line in lines] == [(3, 0), (3, 1), (3, 2), (4, 0)]
    for line, (steps, messages) in zip(lines, expected, strict=True):
        assert line["env"] == env_id and line["messages"] == messages
        assert line["rewards"] == [step[1] for step in steps[1:]]
        assert sum(line["reward_terms"].values()) == pytest.approx(sum(line["rewards"]))
        assert line["cost"] == sum(step[-1]["cost"] for step in steps)
        assert 0.0 <= line["understood"] <= 1.0
        assert {key: line[key] for key in ("end_reason", "success", "score")} == {
            key: steps[-1][-1][key] for key in ("end_reason", "success", "score")
        }


def test_any_text_can_be_recorded(tmp_path):
    path = tmp_path / "transcripts.jsonl"
    texts = ["\ud800 \x00 \u2028 \n\r é", "blue", "red"]
    replay(RecordTranscripts(bare(BANDIT), str(path)), texts, 0)
    assert path.read_bytes().isascii() and path.read_bytes().count(b"\n") == 1
    line = json.loads(path.read_text("ascii"))
    assert [m["content"] for m in line["messages"] if m["role"] == "assistant"] == texts


def record(path: str, seed: int) -> None:
    env = RecordTranscripts(gym.make(FORM), path)
    for i in range(20):
        play(env, agents.make("oracle", env), seed + i)


def test_processes_can_share_a_file(tmp_path):
    path = str(tmp_path / "transcripts.jsonl")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=record, args=(path, 100 * i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert sorted(line["seed"] for line in lines) == sorted(100 * i + k for i in range(3) for k in range(20))


def test_a_missing_folder_is_an_error(tmp_path):
    env = RecordTranscripts(bare(BANDIT), str(tmp_path / "nowhere" / "a.jsonl"))
    env.reset(seed=0)
    env.step("red")
    env.step("red")
    with pytest.raises(OSError, match="nowhere"):
        env.step("red")


# -- hackability -------------------------------------------------------------------------------------


def test_cheats_are_never_successful():
    for env_id in (SERVICE, FORM):
        rows = {row.agent: row for row in measure(env_id, lambda env: env, episodes=30)}
        assert rows["oracle"].success == rows["courteous"].success == 1.0
        assert all(rows[name].success == rows[name].total == 0.0 for name in CHEATS)


def test_stuffing_pays_where_success_does_not_gate_it():
    def rows(paid: str) -> dict[str, Row]:
        return {row.agent: row for row in measure(SERVICE, lambda env: Politeness(env, 0.1, paid), episodes=30)}

    always, gated = rows("always"), rows("on_success")
    assert always["stuffed"].total == pytest.approx(0.1)
    assert always["stuffed"].terms["politeness"] > always["oracle"].terms["politeness"]
    assert gated["stuffed"].total == 0.0
    assert gated["courteous"].terms["politeness"] > gated["oracle"].terms["politeness"] >= 0.0


def test_a_weight_too_large_turns_the_margin():
    safe, cheat = margin(measure(SERVICE, lambda env: TurnCost(env, 0.01), episodes=30))
    assert safe > 0.9
    worst, cheat = margin(measure(SERVICE, lambda env: TurnCost(env, 0.5), episodes=30))
    assert worst < 0 and cheat == "give-up"


def test_every_reward_wrapper_is_covered():
    """A new wrapper has to be added to the table above, and so to every test of this file."""
    env = gym.make(BANDIT)
    covered = {type(wrap(env)) for wrap in REWARDS.values()}
    known, found = [RewardTerm], set()
    while known:
        found |= set(known[-1].__subclasses__())
        known.extend(known.pop().__subclasses__())
    ours = {kind for kind in found if kind.__module__.startswith("convgym.")}
    assert covered == ours - {Judge}  # which needs a server, and has a file of its own


# -- empathy, repetition -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("I understand how frustrating this is.", 1.0),
        ("I'm so sorry to hear that your lamp broke.", 1.0),
        ("That must be very annoying.", 1.0),
        ("I would be upset too.", 1.0),
        ("I hear your frustration.", 1.0),
        ("Your zip code, please?", 0.0),
        ("I understand.", 0.0),  # that something was understood is no word about a feeling
        ("I understand how you feel, but calm down.", -1.0),
        ("", 0.0),
    ],
)
def test_empathy_names_a_feeling(text, rate):
    assert empathy(text) == rate


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_repetition_by_its_definition(letters, n):
    """The share of n-grams said before; 0 after silence, 1 after itself."""
    text = " ".join(letters)
    assert repetition(text, [], n) == 0.0
    assert repetition(text, [text], n) == (1.0 if letters else 0.0)
    half = " ".join(letters[: len(letters) // 2])
    said = {tuple(half.split()[i : i + n]) for i in range(max(1, len(half.split()) - n + 1))}
    grams = [tuple(letters[i : i + n]) for i in range(max(1, len(letters) - n + 1))]
    assert repetition(text, [half], n) == (
        pytest.approx(sum(gram in said for gram in grams) / len(grams)) if letters else 0.0
    )


def test_saying_the_same_again_is_fined_and_calls_are_not():
    call = format_call("get_order", {"order": "1"})
    steps = replay(Repetition(gym.make(SERVICE), 0.5), ["Which item do you mean?"] * 2 + [call] * 2, seed=0)
    assert [step[-1]["reward_terms"]["repetition"] for step in steps[1:]] == [0.0, -0.5, 0.0, 0.0]


# -- delay, noise, normalisation ---------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 2, 99])
def test_delay_keeps_the_return_and_moves_it(turns):
    for seed in range(6):
        texts = ["red", "blue", "green"]
        inner = [s[1] for s in replay(bare(BANDIT, reward="dense"), texts, seed)[1:]]
        late = [s[1] for s in replay(Delay(bare(BANDIT, reward="dense"), turns), texts, seed)[1:]]
        assert sum(late) == pytest.approx(sum(inner))
        wait = min(turns, 2)
        assert late[:wait] == [0.0] * wait and late[wait:2] == pytest.approx(inner[: 2 - wait])


def test_noise_belongs_to_what_was_said_and_has_its_spread():
    def noises(seed: int, words: tuple[str, ...] = ("red", "blue", "gold")) -> list[float]:
        env = Noise(bare(BANDIT, difficulty=5), 0.5, seed=seed)
        ends = [
            replay(env, list(texts), start)[-1][-1]["reward_terms"]["noise"]
            for texts in itertools.product(words, repeat=3)
            for start in range(20)
        ]
        return ends

    one = noises(0)
    assert one == noises(0) and one != noises(1)
    assert len(set(one)) > 0.99 * len(one)  # members of one group do not share it
    spread = np.array(one)
    assert abs(spread.mean()) < 4 * 0.5 / np.sqrt(len(spread))
    assert abs(spread.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * len(spread))


def test_normalizing_divides_by_the_spread_of_the_discounted_return():
    env = Normalize(bare(BANDIT, reward="dense"), gamma=0.5)
    returns, rewards, scaled = [], [], []
    for seed in range(30):
        running = 0.0
        env.reset(seed=seed)
        for word in ("red", "blue", "green"):
            _, reward, _, _, info = env.step(word)
            inner = info["reward_terms"]["pay"]
            running = 0.5 * running + inner
            returns.append(running)
            rewards.append(inner)
            scaled.append(reward)
            spread = np.std(returns) if len(returns) > 1 and np.std(returns) > 0 else 1.0
            assert reward == pytest.approx(inner / spread, rel=1e-6)
    frozen = Normalize(bare(BANDIT, reward="dense"), frozen=True)
    assert [s[1] for s in replay(frozen, ["green"] * 3, 0)[1:]] == [
        s[1] for s in replay(bare(BANDIT, reward="dense"), ["green"] * 3, 0)[1:]
    ]

"""The true advantages are true, and the scores say how far an algorithm's advantages are from them."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import algos
from algos.policies.load import Policy
from algos.ppo import PPO
from algos.rollout.collect import Collector, group_requests
from algos.rollout.episodes import TokenEpisode
from benchmarks import credit_audit
from benchmarks.credit_audit import Size, Truth, audit, contestants, score, turn_advantages
from benchmarks.pages import FIGURES
from benchmarks.suites import EnvSpec
from benchmarks.true_credit import (
    GAMES,
    Fork,
    ModelTalker,
    Sample,
    TabularPolicy,
    fork,
    fork_conversations,
    forked_advantages,
    forks_of,
    make_env,
    play_game,
)
from convgym.core import ConversationEnv
from convgym.errors import ConfigError
from convgym.vector import ConversationVectorEnv

ONE_STEP = PPO(gamma_turn=1.0, lam=0.0, whiten=False)


def game(name: str) -> ConversationEnv:
    env = make_env(EnvSpec(f"convgym/{name}-v0", {"reward": "dense"}))
    env.reset(seed=0)
    return env


@pytest.fixture(scope="module")
def bandit() -> Sample:
    return play_game("TextBandit", 96, seed=1)


@pytest.fixture(scope="module")
def haggle() -> Sample:
    return play_game("Haggle", 48, seed=2)


def flat(sample: Sample, table: np.ndarray) -> np.ndarray:
    """The turns that there are, end to end."""
    return np.concatenate([row[: len(episode.rewards)] for row, episode in zip(table, sample.episodes)])


# The exact truth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GAMES)
def test_advantages_sum_to_zero_under_the_policy_in_every_state(name: str) -> None:
    policy = TabularPolicy.soft(game(name), GAMES[name])
    values, q = policy.evaluate()
    assert q.keys() == policy.solution.q.keys()
    for state, chances in policy.chances.items():
        assert sum(chances.values()) == pytest.approx(1)
        assert sum(p * (q[state][action] - values[state]) for action, p in chances.items()) == pytest.approx(0)


@pytest.mark.parametrize("name", GAMES)
def test_the_sharper_the_policy_the_closer_its_values_to_the_best_ones(name: str) -> None:
    env = game(name)
    start = next(iter(TabularPolicy.soft(env, GAMES[name]).solution.starts))
    worth = [TabularPolicy.soft(env, GAMES[name], sharpness).evaluate()[0][start] for sharpness in (0.0, 2.0, 1e3)]
    best = TabularPolicy.soft(env, GAMES[name]).solution.values[start]
    assert worth[0] < worth[1] < worth[2] == pytest.approx(best, abs=1e-6)


def test_values_of_the_uniform_bandit_by_hand() -> None:
    """Each of three pulls pays 1/3 with the mean chance (.1 + .3 + .8) / 3 = .4; green is .4 above that."""
    policy = TabularPolicy.soft(game("TextBandit"), GAMES["TextBandit"], sharpness=0.0)
    values, q = policy.evaluate()
    assert [values[turn,] for turn in range(4)] == pytest.approx([0.4, 0.8 / 3, 0.4 / 3, 0.0])
    assert q[1,]["green"] - values[1,] == pytest.approx(0.4 / 3)


def test_returns_agree_with_the_values(haggle: Sample) -> None:
    assert haggle.value is not None
    gain = np.array([episode.episode_return for episode in haggle.episodes]) - haggle.value[:, 0]
    groups = gain.reshape(-1, 8).mean(1)
    assert abs(groups.mean()) < 4 * groups.std(ddof=1) / np.sqrt(len(groups))


def test_greedy_returns_are_those_of_the_likeliest_actions(bandit: Sample) -> None:
    """The greedy policy says green three times; a group's luck is everybody's, so no row that did so differs."""
    green = GAMES["TextBandit"].index("green")
    alike = [e for e in bandit.episodes if (e.ids[e.action] == green).all()]
    assert len(alike) > 5
    assert all(episode.episode_return == pytest.approx(bandit.greedy[episode.group]) for episode in alike)


# Algorithms against the truth ---------------------------------------------------------------------------


@pytest.mark.parametrize("paid", ["dense", "sparse"])
def test_one_step_with_the_true_values_is_reward_and_difference_of_values(haggle: Sample, paid: str) -> None:
    told = turn_advantages(ONE_STEP, haggle.sparse() if paid == "sparse" else haggle, "exact")
    assert haggle.value is not None
    for row, episode, value in zip(told, haggle.episodes, haggle.value):
        turns = len(episode.rewards)
        expected = episode.rewards + np.append(value[1:turns], 0.0) - value[:turns]
        np.testing.assert_allclose(row[:turns], expected, atol=1e-6)
        assert (row[turns:] == 0).all()


def test_one_step_with_the_true_values_is_right_on_average_for_each_action(bandit: Sample) -> None:
    told = turn_advantages(ONE_STEP, bandit, "exact")
    errors = defaultdict(list)
    for row, truth, episode in zip(told, bandit.truth, bandit.episodes):
        for k, action in enumerate(episode.ids[episode.action]):
            errors[k, int(action), round(truth[k], 9)].append((episode.group, row[k] - truth[k]))
    assert len(errors) == 9  # three turns, three words: the truth is the same wherever they are said
    for found in errors.values():
        groups, off = (np.array(column) for column in zip(*found))
        sums = np.bincount(groups, off)  # luck is common to a group
        assert abs(sums.sum()) < 4.5 * np.sqrt(np.sum(sums**2))


def test_a_critic_that_knows_beats_one_that_does_not_and_both_beat_a_clone(bandit: Sample) -> None:
    found = audit(contestants(("ppo", "bc")), Size(24, 0, 0), model="nano", seed=3)
    for scores in found.scores.values():
        assert scores["ppo, exact V"].correlation.estimate > scores["ppo, V = 0"].correlation.estimate > 0
        assert np.isnan(scores["bc"].correlation.estimate)


def test_running_baselines_pass_from_iteration_to_iteration(bandit: Sample) -> None:
    """The first iteration has only its own mean; in the second, returns are compared with that."""
    told = turn_advantages(algos.make("reinforce", baseline="ema"), bandit, "none")[:, 0]
    returns = np.array([episode.episode_return for episode in bandit.episodes])
    first, second = slice(0, 64), slice(64, 128)
    np.testing.assert_allclose(told[first], returns[first] - returns[first].mean(), atol=1e-6)
    np.testing.assert_allclose(told[second], returns[second] - returns[first].mean(), atol=1e-6)


def test_every_algorithm_has_an_opinion_of_every_turn() -> None:
    sample = play_game("DelayedConsent", 8, seed=4).sparse()
    _, real = Truth.of(sample)
    for row in contestants():
        told = turn_advantages(row.algorithm, sample, row.critic)
        assert told.shape == real.shape and np.isfinite(told).all(), row.label
        assert (told[~real] == 0).all(), row.label


# Scores -------------------------------------------------------------------------------------------------


def normal_truth(turns: int, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, Truth]:
    """True advantages, and what is known of them; four turns to a group."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=turns)
    first, second = (true + noise * rng.normal(size=turns) for _ in range(2))
    return true, Truth(first, second, np.ones(turns), np.arange(turns) // 4)


def test_the_truth_scores_best() -> None:
    true, truth = normal_truth(200)
    for told in (true, 7.0 * true):
        found = score(told, truth)
        assert found.correlation == pytest.approx((1, 1, 1))
        assert (found.spearman, found.live) == pytest.approx((1, 1))
        assert found.sign == pytest.approx((1, 1, 1))
        assert found.bias == pytest.approx((0, 0, 0), abs=1e-9)


def test_the_opposite_of_the_truth_scores_worst() -> None:
    true, truth = normal_truth(200)
    found = score(-true, truth)
    assert found.correlation == pytest.approx((-1, -1, -1)) and found.sign.estimate == 0


def test_the_same_praise_for_everything_has_no_correlation_and_all_the_bias() -> None:
    true, truth = normal_truth(200)
    found = score(np.full(200, 0.3), truth)
    assert np.isnan(found.correlation).all() and np.isnan(found.spearman)
    assert found.bias.estimate == pytest.approx(1 - true.mean() / np.sqrt(np.mean(true**2)))
    assert found.sign.estimate == pytest.approx(np.mean(true > 0))


def test_silence_has_no_correlation_and_no_bias_and_half_of_the_signs() -> None:
    _, truth = normal_truth(200)
    found = score(np.zeros(200), truth)
    assert np.isnan(found.correlation.estimate) and np.isnan(found.bias.estimate)
    assert (found.sign.estimate, found.live) == (0.5, 0.0)


def test_only_turns_that_are_clearly_not_zero_have_a_sign() -> None:
    truth = Truth(*(np.array([1.0, -1.0, 0.01, -0.01]) for _ in range(2)), np.array([1.0, 1, 0, 0]), np.arange(4))
    assert score(np.array([1.0, -1, -1, 1]), truth).sign.estimate == 1
    unclear = Truth(truth.first, truth.second, np.zeros(4), truth.group)
    assert np.isnan(score(np.ones(4), unclear).sign.estimate)


def test_noise_of_the_truth_does_not_lower_the_correlation() -> None:
    """x = A + noise of size 1 has correlation 1 / sqrt(2) with A; halves as noisy as A would show .58 of it."""
    true, truth = normal_truth(4000, noise=1.0)
    x = true + np.random.default_rng(9).normal(size=4000)
    found = score(x, truth)
    assert found.correlation.low < 0.5**0.5 < found.correlation.high
    assert np.corrcoef(x, truth.mean)[0, 1] < found.correlation.low
    assert found.correlation.high - found.correlation.low < 0.12


# Forks --------------------------------------------------------------------------------------------------


def test_forks_are_unbiased_against_the_enumeration(haggle: Sample) -> None:
    """The regression of the estimates on the exact advantages has slope 1 and intercept 0."""
    env, pairs = game("Haggle"), 8
    policy = TabularPolicy.soft(env, GAMES["Haggle"])
    episodes, exact = haggle.episodes[::8], haggle.truth[::8]  # one of each group
    turns = [len(episode.rewards) for episode in episodes]
    first, second, error = forked_advantages(policy, forks_of(env, episodes, pairs, seed=5), turns, pairs)
    part = Sample(episodes, first, second, error, None, {})
    true, estimate = flat(part, exact[:, : first.shape[1]]), flat(part, part.truth)
    assert len(true) == sum(turns) > 150
    group = np.repeat(np.arange(len(turns)), turns)
    for weight in (true, np.ones_like(true)):
        sums = np.bincount(group, weight * (estimate - true))
        assert abs(sums.sum()) < 4 * np.sqrt(np.sum(sums**2))
    found = score(true, Truth(flat(part, first), flat(part, second), np.ones_like(true), group))
    assert found.correlation.low < 1 < found.correlation.high and found.correlation.low > 0.8
    spread = np.sqrt(np.mean((estimate - true) ** 2))
    assert spread == pytest.approx(np.sqrt(np.mean(flat(part, error) ** 2)), rel=0.25)


def test_a_fork_draws_new_luck_and_leaves_the_conversation_alone() -> None:
    env = game("TextBandit")
    luck = env._episode.streams.user_seed  # type: ignore[union-attr]

    def pays(twin: ConversationEnv) -> tuple[float, ...]:
        return tuple(twin.step("red")[1] for _ in range(3))

    same, others = pays(fork(env, luck)), {pays(fork(env, each)) for each in range(60)}
    assert len(others) > 1
    assert pays(env) == same


def tiny_episodes(policy: Policy, env: EnvSpec, number: int) -> list[TokenEpisode]:
    envs = ConversationVectorEnv([lambda: make_env(env)] * number, "Disabled")
    return Collector(envs, policy, max_turn_tokens=12).collect(group_requests(0, 0, 1, number)).episodes


def test_a_model_continues_a_fork_as_it_went_on_itself(tiny_policy: Policy) -> None:
    """With the luck and the samples of the original, every fork becomes the original, token by token."""
    spec = EnvSpec("convgym/CustomerService-v0", {"max_turns": 3})
    forks, originals = [], []
    for episode in tiny_episodes(tiny_policy, spec, 3):
        env = make_env(spec)
        env.reset(seed=episode.env_seed)
        for k, message in enumerate([m for m in episode.messages if m["role"] == "assistant"]):
            at = np.flatnonzero(episode.turn == k)
            before, said = episode.ids[: at[0]].tolist(), episode.ids[at].tolist()
            forks.append(Fork(env.fork(), before, episode.sample_seed))
            forks.append(Fork(env.fork(), before, episode.sample_seed, message["content"], said))
            originals += [episode, episode]
            env.step(message["content"])
    returns = ModelTalker(tiny_policy, lanes=4, max_turn_tokens=12).follow(iter(forks))
    assert len(returns) == len(forks) == 18
    for each, episode in zip(forks, originals):
        said = [(message.role, message.content) for message in each.env.transcript()]
        assert said == [(message["role"], message["content"]) for message in episode.messages]


def test_forks_say_again_what_was_said_or_let_the_policy_choose(haggle: Sample) -> None:
    env, episode = game("Haggle"), haggle.episodes[0]
    forks = list(islice(forks_of(env, [episode], 2, seed=0), 8))
    assert [each.said is None for each in forks] == [False, True] * 4
    assert len({each.seed for each in forks}) == 8
    first = [each.env._episode.streams.user_seed for each in forks]  # type: ignore[union-attr]
    assert first[::2] == first[1::2] and len(set(first)) == 4
    assert [len(each.ids) for each in forks] == [1] * 4 + [3] * 4


def test_conversations_of_a_model_are_forked_at_every_turn(tiny_policy: Policy) -> None:
    spec, ticks = EnvSpec("convgym/TextBandit-v0", {"reward": "dense", "max_turns": 2}), []
    sample = fork_conversations(tiny_policy, spec, 1, 2, 0, lambda done, total: ticks.append((done, total)))
    assert sample.first.shape == sample.error.shape == (8, 2) and sample.greedy.keys() == {0}
    assert ticks[-1] == (64, 64)  # 8 conversations, 2 turns, 2 pairs


# The page -----------------------------------------------------------------------------------------------


def test_the_page_is_written(tmp_path: Path) -> None:
    page = tmp_path / "credit.md"
    found = audit(contestants(("grpo", "ppo", "bc")), Size(8, 0, 0), model="nano", seed=0)
    source = credit_audit.provenance.describe("python -m benchmarks.credit_audit")
    page.write_text("no markers\n")
    with pytest.raises(ConfigError, match="figures:begin"):
        credit_audit.write(page, found, source)
    page.write_text(f"Above.\n{FIGURES[0]}\nold\n{FIGURES[1]}\nBelow.\n")
    credit_audit.write(page, found, source)
    text = page.read_text()
    assert text.startswith("Above.\n") and text.endswith("Below.\n") and "old" not in text
    for label in ("grpo", "ppo, exact V", "ppo, V = 0", "bc", "credit.svg"):
        assert label in text
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert len(numbers["scores"]) == 2 * len(GAMES)
    assert numbers["scores"]["Haggle, dense"]["bc"]["correlation"] == [None, None, None]
    assert -1 < numbers["scores"]["Haggle, dense"]["grpo"]["correlation"][0] < 1
    assert "Haggle, sparse" in page.with_suffix(".svg").read_text()

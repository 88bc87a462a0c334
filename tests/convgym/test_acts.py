"""Conversations as numbers: what a learner of another library sees of them, and that it learns from it."""

from __future__ import annotations

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from convgym.errors import ConfigError
from convgym.scenarios.ask_or_act import solved
from convgym.wrappers import Acts, Transcript, TurnCost
from tests.convgym.play import IDS, bare

ID = "convgym/AskOrAct-v0"
WITH = tuple(env_id for env_id in IDS if type(bare(env_id)).canned_acts)
WITHOUT = tuple(env_id for env_id in IDS if env_id not in WITH)


def parts(env: Acts, obs: np.ndarray) -> tuple[set[str], set[str], list[int]]:
    """What an observation says: the latest acts, those heard so far, the bits of the turn."""
    n = len(env.names)
    latest, heard = ({env.names[i] for i in np.flatnonzero(bits)} for bits in (obs[:n], obs[n : 2 * n]))
    return latest, heard, obs[2 * n :].tolist()


def test_the_micro_environments_have_canned_acts():
    assert {f"convgym/{name}-v0" for name in ("AskOrAct", "DelayedConsent", "Haggle", "TextBandit")} <= set(WITH)


@pytest.mark.parametrize("env_id", WITH)
def test_check_env_without_a_warning(env_id):
    """But for the one that every wrapper gets: that it is none of the environment's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        check_env(Acts(bare(env_id)), skip_render_check=True)


@pytest.mark.parametrize("env_id", WITH)
def test_every_canned_action_of_a_class_can_be_said(env_id):
    env = Acts(gym.make(env_id))
    env.action_space.seed(0)
    for seed in range(20):
        obs, info = env.reset(seed=seed)
        assert len(env.unwrapped.task.canned) == len(env.actions) == env.action_space.n
        while "end_reason" not in info:
            assert env.observation_space.contains(obs) and obs.dtype == np.int8
            obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
            assert type(reward) is float and "episode" not in info
        assert (terminated or truncated) and env.observation_space.contains(obs)


def test_an_observation_is_what_was_heard():
    env = Acts(gym.make(ID, difficulty=1))
    obs, _ = env.reset(seed=0, options={"scenario": "any"})
    assert parts(env, obs) == ({"any"}, {"any"}, [1, 0, 0])
    wanted = env.unwrapped.privileged()["wanted"]
    obs, *_ = env.step(env.actions.index("ask"))
    assert parts(env, obs) == ({f"say:{wanted}"}, {"any", f"say:{wanted}"}, [0, 1, 0])
    obs, *_ = env.step(env.actions.index(wanted))
    assert parts(env, obs) == ({f"right:{wanted}"}, {"any", f"say:{wanted}", f"right:{wanted}"}, [0, 0, 1])
    obs, reward, terminated, _, info = env.step(env.actions.index(wanted))
    assert parts(env, obs)[2] == [0, 0, 0] and terminated and reward == pytest.approx(2 / 3) and info["success"]
    obs, _ = env.reset(seed=0, options={"scenario": "usual/tea"})
    assert parts(env, obs) == ({"usual:tea"}, {"usual:tea"}, [1, 0, 0])  # nothing is left of the episode before


def test_rewards_and_infos_are_those_of_the_conversation():
    for seed in range(10):
        text, numbers = bare(ID), Acts(TurnCost(gym.make(ID), 0.25))
        info = text.reset(seed=seed)[1]
        assert numbers.reset(seed=seed)[1] == info
        while "end_reason" not in info:
            _, reward, *_, info = text.step(text.task.canned[seed % 5])
            _, other, *_, told = numbers.step(seed % 5)
            assert other == pytest.approx(reward - 0.25)
            assert {**told, "reward_terms": 0} == {**info, "reward_terms": 0}
            assert told["reward_terms"] == {**info["reward_terms"], "turns": -0.25}


def test_specs_round_trip_and_copies_continue():
    env = Acts(Transcript(gym.make(ID, difficulty=4)))
    twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(twin, Acts) and twin.unwrapped.difficulty == 4
    assert (twin.reset(seed=3)[0] == env.reset(seed=3)[0]).all()
    env.step(0)
    copied = pickle.loads(pickle.dumps(env))
    for one, other in zip(env.step(1), copied.step(1)):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("env_id", WITHOUT[:2])
def test_a_conversation_without_canned_acts_is_refused(env_id):
    with pytest.raises(ConfigError, match=r"canned messages, got \w+, which has none; take one of .*AskOrAct-v0"):
        Acts(gym.make(env_id))


@pytest.mark.parametrize("action", [-1, 5, 1.0, "tea", None])
def test_an_illegal_action_is_named(action):
    env = Acts(gym.make(ID))
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="expected an integer from 0 to 4, got"):
        env.step(action)


def test_vector_environments():
    def make() -> gym.Env:
        return Acts(gym.make(ID))

    vector = gym.vector.SyncVectorEnv([make] * 4, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    vector = gym.wrappers.vector.RecordEpisodeStatistics(vector)
    obs, _ = vector.reset(seed=1)
    assert obs.shape == (4, *make().observation_space.shape)
    singles = [make() for _ in range(4)]
    assert (obs == np.stack([env.reset(seed=1 + i)[0] for i, env in enumerate(singles)])).all()
    for actions in ([0, 1, 2, 3], [0, 1, 2, 3], [4, 4, 4, 4]):
        _, rewards, terminated, _, infos = vector.step(np.array(actions))
        alone = [env.step(action) for env, action in zip(singles, actions)]
        assert rewards.tolist() == [step[1] for step in alone]
    assert terminated.all() and infos["episode"]["r"].tolist() == pytest.approx(rewards.tolist())


# -- another library's learner -----------------------------------------------------------------------


def scores(model, env_id: str, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Plays fresh episodes: their returns, and their luck-free scores (shares of the optimum)."""
    envs = [Acts(gym.make(env_id)) for _ in range(episodes)]
    obs = np.stack([env.reset(seed=1_000_000 + i)[0] for i, env in enumerate(envs)])
    returns = np.zeros(episodes)
    for _ in range(envs[0].unwrapped.max_turns):
        actions, _ = model.predict(obs, deterministic=True)
        steps = [env.step(action) for env, action in zip(envs, actions)]
        obs, returns = np.stack([step[0] for step in steps]), returns + [step[1] for step in steps]
    return returns, np.array([step[-1]["score"] for step in steps])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 99 % t-interval of a mean."""
    half = stats.t.ppf(0.995, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


@pytest.mark.parametrize("seed", [0, 1])
def test_stable_baselines_ppo_learns_to_ask(seed):
    """From its start to the exact optimum, .7528 at difficulty 2.

    The score of an episode is the optimum less the regret, as a share: its mean over fresh episodes is the
    policy's expected return over the optimum, without the luck of the draw. Of the eight seeds that were tried,
    all began between .25 and .47 and ended between .995 and 1.
    """
    vector = make_vec_env(lambda: Acts(gym.make(ID)), n_envs=16, seed=seed)  # with SB3's Monitor around each
    ppo = PPO(
        "MlpPolicy", vector, seed=seed, device="cpu", policy_kwargs={"net_arch": [32]}, n_steps=24, batch_size=96,
        n_epochs=8, learning_rate=3e-3, gamma=1.0, gae_lambda=1.0, ent_coef=0.01,
    )  # fmt: skip
    before = interval(scores(ppo, ID, 300)[1])
    ppo.learn(10_000)
    returns, found = scores(ppo, ID, 1_000)
    after = interval(found)
    assert before[1] < 0.6 < 0.93 < after[0], (before, after)
    low, high = interval(returns)
    best = solved(2, 3).optimum
    assert low <= best, "no policy is better than the optimum"
    assert high >= 0.95 * best
    assert vector.env_method("get_wrapper_attr", "total_steps")  # Monitor counted, and nothing was in its way

"""The batched environment equals its lanes alone, in every autoreset mode."""

from __future__ import annotations

import pickle
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import CustomSpaceError
from gymnasium.vector import AutoresetMode

from convgym import agents
from convgym.errors import ConfigError, EnvError
from convgym.seeding import derive_seed
from convgym.spaces import Utterance
from convgym.vector import ConversationVectorEnv, batch_infos
from convgym.wrappers import TurnCost
from tests.convgym.play import Steps, bare, plain, play, script

LANES, EPISODES, SEED = 3, 3, 5


def lane_info(infos: dict, lane: int) -> dict:
    """Takes one lane's info out of Gymnasium's arrays and masks, as plain values."""
    own = {}
    for key, values in infos.items():
        if key.startswith("_") or not infos[f"_{key}"][lane]:
            continue
        value = lane_info(values, lane) if isinstance(values, dict) else values[lane]
        own[key] = value.item() if isinstance(value, np.generic) else value
    return own


class Lane:
    """A clerk on one lane who notes what it meets."""

    def __init__(self, env_id: str, lane: int) -> None:
        self.env = bare(env_id)
        self.seed = derive_seed(SEED, "lane", lane)
        self.episodes: list[Steps] = []
        self.expected: list[Steps] = []
        self.said: list[list[str]] = []
        for episode in range(EPISODES + 1):
            agent = agents.make("clerk", self.env, seed=episode)
            self.expected.append(play(self.env, agent, self.seed if episode == 0 else None))
            self.said.append([m.content for m in self.env.transcript() if m.role == "assistant"])

    def begin(self, obs: str, info: dict) -> None:
        self.episodes.append([(obs, info)])

    def speak(self) -> str:
        episode, turn = len(self.episodes) - 1, len(self.episodes[-1]) - 1
        texts = self.said[min(episode, EPISODES)]
        return texts[turn] if turn < len(texts) else "thrown away"

    def check(self) -> None:
        assert plain(self.episodes[:EPISODES]) == plain(self.expected[:EPISODES])


def step_all(vector: gym.vector.VectorEnv, lanes: list[Lane]) -> tuple:
    obs, rewards, terminated, truncated, infos = vector.step([lane.speak() for lane in lanes])
    assert rewards.dtype == np.float64 and terminated.dtype == truncated.dtype == np.bool_
    assert rewards.shape == terminated.shape == truncated.shape == (LANES,)
    return obs, rewards, terminated, truncated, [lane_info(infos, i) for i in range(LANES)]


def drive_disabled(vector: gym.vector.VectorEnv, lanes: list[Lane]) -> None:
    obs, rewards, terminated, truncated, infos = step_all(vector, lanes)
    for i, lane in enumerate(lanes):
        lane.episodes[-1].append((obs[i], float(rewards[i]), bool(terminated[i]), bool(truncated[i]), infos[i]))
    ended = terminated | truncated
    if ended.any():
        obs, infos = vector.reset(options={"reset_mask": ended})
        for i in np.flatnonzero(ended):
            lanes[i].begin(obs[i], lane_info(infos, i))


def drive_same_step(vector: gym.vector.VectorEnv, lanes: list[Lane]) -> None:
    obs, rewards, terminated, truncated, infos = step_all(vector, lanes)
    for i, lane in enumerate(lanes):
        ended = terminated[i] or truncated[i]
        last_obs = infos[i].pop("final_obs") if ended else obs[i]
        last_info = infos[i].pop("final_info") if ended else infos[i]
        lane.episodes[-1].append((last_obs, float(rewards[i]), bool(terminated[i]), bool(truncated[i]), last_info))
        if ended:
            lane.begin(obs[i], infos[i])


def drive_next_step(vector: gym.vector.VectorEnv, lanes: list[Lane]) -> None:
    over = ["end_reason" in lane.episodes[-1][-1][-1] for lane in lanes]
    obs, rewards, terminated, truncated, infos = step_all(vector, lanes)
    for i, lane in enumerate(lanes):
        if over[i]:
            assert rewards[i] == 0.0 and not terminated[i] and not truncated[i]
            lane.begin(obs[i], infos[i])
        else:
            lane.episodes[-1].append((obs[i], float(rewards[i]), bool(terminated[i]), bool(truncated[i]), infos[i]))


DRIVERS = {
    AutoresetMode.DISABLED: drive_disabled,
    AutoresetMode.SAME_STEP: drive_same_step,
    AutoresetMode.NEXT_STEP: drive_next_step,
}


@pytest.mark.parametrize("mode", DRIVERS)
def test_every_autoreset_mode_equals_single_envs(env_id, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vector = gym.make_vec(env_id, LANES, autoreset_mode=mode)
        assert isinstance(vector.unwrapped, ConversationVectorEnv)
        assert vector.metadata["autoreset_mode"] is mode
        lanes = [Lane(env_id, i) for i in range(LANES)]
        obs, infos = vector.reset(seed=SEED)
        for i, lane in enumerate(lanes):
            lane.begin(obs[i], lane_info(infos, i))
        while min(len(lane.episodes) for lane in lanes) <= EPISODES:
            DRIVERS[mode](vector, lanes)
        for lane in lanes:
            lane.check()
        vector.close()
        vector.close()


def test_lanes_can_be_stepped_alone(env_id):
    vector = gym.make_vec(env_id, LANES, autoreset_mode="Disabled", difficulty=3).unwrapped
    seeds = [11, 12, 13]
    scripts = [script("oracle", env_id, seed, difficulty=3) for seed in seeds]
    steps = [[vector.reset_lane(lane, seed=seed, options=None)] for lane, seed in enumerate(seeds)]
    for turn in range(max(map(len, scripts))):
        ready = [lane for lane in range(LANES) if turn < len(scripts[lane])][::-1]  # any order
        for lane, step in zip(ready, vector.step_lanes(ready, [scripts[lane][turn] for lane in ready])):
            steps[lane].append(step)
    for lane, seed in enumerate(seeds):
        env = bare(env_id, difficulty=3)
        assert plain(steps[lane]) == plain([env.reset(seed=seed), *(env.step(text) for text in scripts[lane])])


def test_step_lanes_needs_a_message_for_each(env_id):
    vector = gym.make_vec(env_id, LANES).unwrapped
    vector.reset(seed=0)
    with pytest.raises(ValueError, match="zip"):
        vector.step_lanes([0, 1], ["Hello."])


def test_lanes_take_wrapped_envs(env_id):
    vector = ConversationVectorEnv([lambda: TurnCost(gym.make(env_id), cost=0.5)] * 2)
    vector.reset(seed=0)
    _, rewards, *_, infos = vector.step(["Hello.", "Hello."])
    assert rewards.tolist() == [-0.5, -0.5] and lane_info(infos, 1)["reward_terms"]["turns"] == -0.5


def test_neighbouring_seeds_share_no_lane(env_id):
    vector = gym.make_vec(env_id, 8).unwrapped
    roots = set()
    for seed in range(8):
        vector.reset(seed=seed)
        roots |= {env.unwrapped._root for env in vector.envs}
    assert len(roots) == 64
    vector.reset(seed=list(range(8)))
    assert [env.unwrapped._root for env in vector.envs] == list(range(8))


def test_spaces_of_the_batch(env_id):
    vector = gym.make_vec(env_id, LANES)
    assert vector.num_envs == LANES and isinstance(vector.single_action_space, Utterance)
    obs, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(obs)
    assert vector.action_space.contains(vector.action_space.sample())


def test_settings_reach_every_lane(env_id):
    vector = gym.make_vec(env_id, LANES, split="val", difficulty=5).unwrapped
    assert {(env.unwrapped.split, env.unwrapped.difficulty) for env in vector.envs} == {("val", 5)}


@pytest.mark.parametrize(
    ("options", "seed", "hint"),
    [
        ({"reset_mask": np.zeros(LANES, bool)}, None, "reset_mask: expected 3 booleans"),
        ({"reset_mask": np.ones(2, bool)}, None, "reset_mask: expected 3 booleans"),
        (None, [1, 2], "seed: expected 3 seeds, one a lane, got 2"),
        ({"splitt": "val"}, None, "option: expected one of"),
    ],
)
def test_illegal_resets_are_named(options, seed, hint):
    vector = gym.make_vec("convgym/SlotFilling-v0", LANES, autoreset_mode="Disabled")
    with pytest.raises(ConfigError, match=hint):
        vector.reset(options=options, seed=seed)


def test_no_lanes_is_refused(env_id):
    with pytest.raises(ConfigError, match="at least 1 lane"):
        gym.make_vec(env_id, 0)


def test_an_ended_lane_has_to_be_reset_in_disabled_mode(env_id):
    vector = gym.make_vec(env_id, 1, autoreset_mode="Disabled", max_turns=1)
    vector.reset(seed=0)
    vector.step(["Hello."])
    with pytest.raises(EnvError, match="lane 0 has ended"):
        vector.step(["Hello."])


def test_a_refused_step_changes_no_lane():
    vector = gym.make_vec("convgym/TextBandit-v0", 2, autoreset_mode="Disabled").unwrapped
    vector.reset(seed=0)
    for _ in range(3):
        vector.step_lanes([1], ["red"])
    before = plain([env.unwrapped.snapshot()[2].turns for env in vector.envs])
    with pytest.raises(EnvError):
        vector.step(["red", "red"])
    assert plain([env.unwrapped.snapshot()[2].turns for env in vector.envs]) == before


@pytest.mark.parametrize("actions", [["red"], "red"])
def test_the_number_of_messages_is_checked(actions):
    vector = gym.make_vec("convgym/TextBandit-v0", 3).unwrapped
    vector.reset(seed=0)
    with pytest.raises(EnvError, match="3 messages"):
        vector.step(actions)


# -- Gymnasium's own vector envs ---------------------------------------------------------------------


def test_gymnasiums_sync_vector_works(env_id):
    vector = gym.make_vec(env_id, 2, vectorization_mode="sync")
    obs, _ = vector.reset(seed=[1, 2])
    assert obs == (bare(env_id).reset(seed=1)[0], bare(env_id).reset(seed=2)[0])
    assert vector.step(("Hello.", ""))[0][0] == bare_step(env_id, 1, "Hello.")


def bare_step(env_id: str, seed: int, text: str) -> str:
    env = bare(env_id)
    env.reset(seed=seed)
    return env.step(text)[0]


def test_processes_work_without_shared_memory():
    env_id = "convgym/SlotFilling-v0"
    vector = gym.vector.AsyncVectorEnv([partial(gym.make, env_id)] * 2, shared_memory=False)
    try:
        obs, infos = vector.reset(seed=[1, 2])
        assert obs == (bare(env_id).reset(seed=1)[0], bare(env_id).reset(seed=2)[0])
        texts = ["What day?", "é \ud800 \x00"]
        obs, *_, infos = vector.step(texts)
        assert obs == tuple(bare_step(env_id, seed, text) for seed, text in zip((1, 2), texts))
        assert lane_info(infos, 0)["messages"][0]["role"] == "user"
    finally:
        vector.close()


def test_shared_memory_is_refused_clearly(env_id):
    with pytest.raises(ValueError, match="shared_memory=False") as caught:
        gym.vector.AsyncVectorEnv([partial(gym.make, env_id)] * 2)
    assert isinstance(caught.value.__cause__, CustomSpaceError)
    assert "Utterances have no fixed size" in str(caught.value.__cause__)


def test_the_vector_spec_is_picklable(env_id):
    vector = gym.make_vec(env_id, 2, difficulty=4)
    spec = pickle.loads(pickle.dumps(vector.unwrapped.spec))
    assert gym.make_vec(spec).unwrapped.envs[1].unwrapped.difficulty == 4


def test_what_is_empty_is_not_absent():
    """A last observation may be an empty text, as where a remote user failed."""
    batched = batch_infos([{"final_obs": "", "final_info": {"messages": []}}, {}])
    assert batched["final_obs"].tolist() == ["", None] and batched["_final_obs"].tolist() == [True, False]
    assert batched["final_info"]["messages"].tolist() == [[], None]

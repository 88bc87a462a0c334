"""The collector: token episodes of real conversations, and what happens to the ones that go wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import convgym  # noqa: F401  (registers the environments)
from algos.policies.load import Policy
from algos.rollout.collect import Collected, Collector, EpisodeRequest, group_requests
from algos.rollout.engine import Engine, Turn
from algos.rollout.episodes import TokenEpisode
from convgym.errors import CapacityError, DivergedError
from convgym.seeding import derive_seed
from convgym.spaces import Utterance
from convgym.vector import ConversationVectorEnv

# What a seed makes the environment do; other seeds are well-behaved.
FAULTS = {901: "reset", 902: "step", 903: "nan", 904: "infrastructure", 905: "messages", 906: "huge opening"}


class Echo(gym.Env[str, str]):
    """Two to five turns; answers with a tool, a user or both; rewards turn k with k + 1."""

    observation_space = Utterance()
    action_space = Utterance()

    def __init__(self, long: bool = False) -> None:
        self.long = long
        self.heard: list[str] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.seed, self.heard = seed or 0, []
        self.fault = FAULTS.get(self.seed)
        if self.fault == "reset":
            raise RuntimeError("no scenario today")
        self.turns = 100 if self.long else 2 + self.seed % 4
        word = "order " * (2000 if self.fault == "huge opening" else 1 + self.seed % 5)
        name = (options or {}).get("name", "shop")
        messages = [
            {"role": "system", "content": f"You help customers of a {name}."},
            {"role": "user", "content": f"I want {word}{self.seed}"},
        ]
        return "", {"messages": messages}

    def state_key(self) -> int:
        return 100 * self.seed + len(self.heard) + 1

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.heard.append(action)
        k = len(self.heard)
        if self.fault == "step" and k == 2:
            raise ValueError("lost the database")
        messages = [
            {"role": "tool", "content": f"record {k}"},
            {"role": "user", "content": f"turn {k} please"},
        ]
        info: dict[str, Any] = {
            "messages": messages[k % 3 - 1 :] if k % 3 else messages,
            "reward_terms": {"pay": float(k)},
            "cost": 0.5,
            "understood": k % 2 == 1,
        }
        if self.fault == "messages":
            info["messages"] = [{"role": "developer", "content": "?"}]
        ended = k == self.turns
        if ended:
            info |= {"end_reason": "concluded", "success": self.seed % 2 == 0, "score": 0.25}
        if self.fault == "infrastructure" and ended:
            info["end_reason"] = "infrastructure"
        reward = float("nan") if self.fault == "nan" and k == 2 else float(k)
        return "", reward, ended and self.seed % 3 != 0, ended and self.seed % 3 == 0, info


class Spy(Engine):
    """The engine, with a record of what it sampled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turns: list[Turn] = []

    def advance(self) -> list[Turn]:
        turns = super().advance()
        self.turns += turns
        return turns


def vector(lanes: int, **settings: Any) -> ConversationVectorEnv:
    return ConversationVectorEnv([lambda: Echo(**settings)] * lanes)


def spied(policy: Policy, lanes: int, **settings: Any) -> tuple[Collector, Spy]:
    options: dict[str, Any] = {"max_turn_tokens": 8} | settings
    engine = Spy(policy.model, eos_ids=policy.eos_ids, lanes=lanes, **options)
    return Collector(vector(lanes), policy, engine=engine), engine


def requests(*seeds: int) -> list[EpisodeRequest]:
    return [EpisodeRequest(env_seed=seed, group=seed // 2, sample_seed=seed * 7 + 1) for seed in seeds]


@pytest.fixture(scope="module")
def talkative(tiny_policy: Policy) -> Policy:
    """A policy that ends about every other turn by itself."""
    model: Any = copy.deepcopy(tiny_policy.model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4)
        # The end of turn shares the direction of the final hidden state's mean: likelier, not certain.
        ids = torch.randint(6, 300, (8, 30), generator=torch.Generator().manual_seed(0))
        hidden = model.model(ids).last_hidden_state.mean((0, 1))
        end = tiny_policy.chat.end_id
        model.get_input_embeddings().weight[end] = hidden / hidden.norm() * 1.2
    policy = Policy(model, tiny_policy.tokenizer, tiny_policy.chat, "talkative", tiny_policy.eos_ids)
    return policy


@pytest.fixture(scope="module")
def collected(talkative: Policy) -> tuple[Collected, Spy, Collector]:
    collector, engine = spied(talkative, lanes=5)
    return collector.collect(requests(*range(17)), version=3), engine, collector


def test_every_request_becomes_an_episode_in_order(collected: tuple[Collected, Spy, Collector]) -> None:
    result, _, _ = collected
    assert result.failures == []
    assert [e.env_seed for e in result.episodes] == list(range(17))
    for episode in result.episodes:
        seed, turns = episode.env_seed, 2 + episode.env_seed % 4
        assert episode.rewards.tolist() == [k + 1.0 for k in range(turns)]
        assert episode.episode_return == sum(range(1, turns + 1))
        assert episode.state_keys.tolist() == [100 * seed + k + 1 for k in range(turns)]
        assert (episode.group, episode.sample_seed, episode.version) == (seed // 2, seed * 7 + 1, 3)
        assert (episode.terminated, episode.truncated) == (seed % 3 != 0, seed % 3 == 0)
        assert (episode.success, episode.score, episode.end_reason) == (seed % 2 == 0, 0.25, "concluded")
        assert episode.cost == 0.5 * turns
        assert episode.understood == pytest.approx(((turns + 1) // 2) / turns)
        assert episode.reward_terms == {"pay": episode.episode_return}
    assert set(result.seconds) == {"env", "engine", "chat"}
    assert all(value > 0 for value in result.seconds.values())


def test_sampled_ids_are_the_trained_ids(collected: tuple[Collected, Spy, Collector]) -> None:
    result, engine, _ = collected
    sampled = sorted((turn.ids.tolist(), turn.logp.tolist()) for turn in engine.turns)
    trained = []
    for episode in result.episodes:
        for k in range(len(episode.rewards)):
            at = np.flatnonzero(episode.turn == k)
            assert (np.diff(at) == 1).all()
            trained.append((episode.ids[at].tolist(), episode.logp[at].tolist()))
    assert sorted(trained) == sampled
    assert {turn.reason for turn in engine.turns} == {"eos", "cap"}


def test_the_rest_of_an_episode_is_what_the_template_writes(
    collected: tuple[Collected, Spy, Collector], talkative: Policy
) -> None:
    result, _, _ = collected
    chat = talkative.chat
    for episode in result.episodes:
        said = [m for m in episode.messages if m["role"] == "assistant"]
        assert [m["content"] for m in said] == chat.texts(
            [episode.ids[episode.turn == k] for k in range(len(episode.rewards))]
        )
        ids: list[int] = []
        news: list[Any] = []
        turns = [episode.ids[episode.turn == k].tolist() for k in range(len(said))]
        spoken = iter(turns)
        for message in episode.messages:
            if message["role"] == "assistant":
                ids += chat.delta(news, ids[-1] if ids else None) + next(spoken)
                news = []
            else:
                news.append(message)
        assert episode.ids.tolist() == ids
        assert episode.action[-1]
        assert episode.cut_turns == sum(turn[-1] not in talkative.eos_ids for turn in turns)


def test_logp_is_that_of_a_forward_over_the_episode(
    collected: tuple[Collected, Spy, Collector], talkative: Policy
) -> None:
    result, _, _ = collected
    model: Any = talkative.model
    for episode in result.episodes:
        ids = torch.from_numpy(episode.ids)
        with torch.inference_mode():
            logp = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(-1, ids[1:, None])[:, 0]
        expected = np.where(episode.action[1:], logp.numpy(), 0)
        np.testing.assert_allclose(episode.logp[1:], expected, atol=1e-4, rtol=0)
        assert episode.logp[0] == 0


def test_lanes_and_order_change_nothing(
    collected: tuple[Collected, Spy, Collector], talkative: Policy
) -> None:
    result, _, collector = collected
    again = collector.collect(requests(*reversed(range(17))), version=3)
    alone = spied(talkative, lanes=1)[0].collect(requests(*range(6)))
    for seed, episode in enumerate(result.episodes):
        assert again.episodes[16 - seed].ids.tolist() == episode.ids.tolist()
        if seed < 6:
            assert alone.episodes[seed].ids.tolist() == episode.ids.tolist()


def test_greedy_episodes_depend_on_the_scenario_only(talkative: Policy) -> None:
    collector, _ = spied(talkative, lanes=3)
    one, other = (
        collector.collect([EpisodeRequest(5, 0, seed) for seed in seeds], greedy=True).episodes
        for seeds in ((1, 2), (3, 4, 5))
    )
    assert len({tuple(e.ids.tolist()) for e in one + other}) == 1
    sampled = collector.collect([EpisodeRequest(5, 0, seed) for seed in range(4)]).episodes
    assert len({tuple(e.ids.tolist()) for e in sampled}) == 4


def test_failures_are_set_aside_with_their_reason(talkative: Policy) -> None:
    collector, engine = spied(talkative, lanes=3)
    seeds = [1, 901, 2, 902, 3, 903, 904, 4, 905, 906, 5]
    seen: list[TokenEpisode] = []
    result = collector.collect(requests(*seeds), on_episode=seen.append)
    assert [e.env_seed for e in result.episodes] == [1, 2, 3, 4, 5]
    assert sorted(e.env_seed for e in seen) == [1, 2, 3, 4, 5]
    errors = {failure.request.env_seed: failure.error for failure in result.failures}
    assert list(errors) == [901, 902, 903, 904, 905, 906]
    for seed, words in {
        901: "RuntimeError: no scenario today",
        902: "ValueError: lost the database",
        903: "finite numbers, got reward nan",
        904: "infrastructure",
        905: "no 'developer' message",
        906: "leave no room",
    }.items():
        assert words in errors[seed], errors[seed]
        assert "Traceback" in errors[seed]
    clean = spied(talkative, lanes=3)[0].collect(requests(1, 2, 3, 4, 5))
    assert [e.ids.tolist() for e in clean.episodes] == [e.ids.tolist() for e in result.episodes]
    assert engine.live == 0


def test_a_conversation_that_fills_the_context_is_truncated_and_counted(talkative: Policy) -> None:
    engine = Engine(talkative.model, eos_ids=talkative.eos_ids, lanes=2, capacity=120, max_turn_tokens=8)
    result = Collector(vector(2, long=True), talkative, engine=engine).collect(requests(1, 2, 3))
    assert result.failures == []
    for episode in result.episodes:
        assert episode.end_reason == "context_full"
        assert episode.truncated and not episode.terminated and not episode.success
        assert len(episode.ids) <= 120 and episode.action[-1]
        assert len(episode.rewards) == len(episode.state_keys) == episode.turn.max() + 1
    # A turn that the context cut in the middle is said all the same.
    tight = Engine(talkative.model, eos_ids=[], lanes=1, capacity=80, max_turn_tokens=200)
    [episode] = Collector(vector(1, long=True), talkative, engine=tight).collect(requests(1)).episodes
    assert (len(episode.ids), episode.cut_turns, episode.end_reason) == (80, 1, "context_full")


def test_an_interrupted_collection_leaves_nothing_behind(talkative: Policy) -> None:
    collector, engine = spied(talkative, lanes=3)

    def stop(episode: TokenEpisode) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collector.collect(requests(*range(9)), on_episode=stop)
    assert engine.live == 0
    after = collector.collect(requests(1, 2)).episodes
    assert [e.ids.tolist() for e in after] == [
        e.ids.tolist() for e in spied(talkative, lanes=3)[0].collect(requests(1, 2)).episodes
    ]


def test_weights_that_are_not_numbers_stop_the_collection(talkative: Policy) -> None:
    model: Any = copy.deepcopy(talkative.model)
    policy = Policy(model, talkative.tokenizer, talkative.chat, "broken", talkative.eos_ids)
    collector, engine = spied(policy, lanes=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(DivergedError):
        collector.collect(requests(1, 2, 3))
    assert engine.live == 0


def test_each_collection_samples_from_the_present_weights(talkative: Policy) -> None:
    model: Any = copy.deepcopy(talkative.model)
    policy = Policy(model, talkative.tokenizer, talkative.chat, "changing", talkative.eos_ids)
    collector, _ = spied(policy, lanes=2)
    before = collector.collect(requests(1, 2)).episodes
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7)
    after = collector.collect(requests(1, 2)).episodes
    fresh = spied(policy, lanes=2)[0].collect(requests(1, 2)).episodes
    assert [e.ids.tolist() for e in after] == [e.ids.tolist() for e in fresh]
    assert [e.ids.tolist() for e in after] != [e.ids.tolist() for e in before]


def test_groups_share_the_scenario_and_nothing_else() -> None:
    asked = group_requests(root_seed=5, first_group=10, n_groups=3, group_size=4)
    assert [r.group for r in asked] == [10] * 4 + [11] * 4 + [12] * 4
    assert len({r.env_seed for r in asked}) == 3
    assert len({r.sample_seed for r in asked}) == 12
    assert asked[5].env_seed == derive_seed(5, "env", 11)
    assert asked[5].sample_seed == derive_seed(5, "sample", 11, 1)
    # A run that goes on, or takes larger groups, meets the same conversations.
    assert group_requests(5, 11, 1, 2) == asked[4:6]
    others = {r.env_seed for r in group_requests(6, 10, 50, 1)}
    assert not others & {r.env_seed for r in group_requests(5, 10, 50, 1)}


def test_options_reach_the_environment(talkative: Policy) -> None:
    collector, _ = spied(talkative, lanes=1)
    [episode] = collector.collect([EpisodeRequest(1, 0, 2, options={"name": "bank"})]).episodes
    assert "customers of a bank" in episode.messages[0]["content"]


def test_an_environment_that_speaks_plain_text_is_heard_as_a_user(talkative: Policy) -> None:
    class Plain(Echo):
        state_key = None  # another project's environment has none

        def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
            super().reset(**kwargs)
            return "May I ask?", {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            _, reward, terminated, truncated, _ = super().step(action)
            return "Go on.", reward, terminated, truncated, {}

    collector = Collector(ConversationVectorEnv([Plain] * 2), talkative, max_turn_tokens=8)
    [episode] = collector.collect(requests(1)).episodes
    assert [m["content"] for m in episode.messages if m["role"] == "user"] == [
        "May I ask?",
        "Go on.",
        "Go on.",
    ]
    assert (episode.end_reason, episode.understood, episode.score) == ("terminated", 1.0, 0.0)
    assert (episode.state_keys == 0).all()


@pytest.fixture(scope="module")
def shop() -> Iterator[ConversationVectorEnv]:
    envs = gym.make_vec("convgym/CustomerService-v0", 4)
    assert isinstance(envs, ConversationVectorEnv)
    yield envs
    envs.close()


def test_a_real_environment_is_played_and_played_again(
    shop: ConversationVectorEnv, talkative: Policy
) -> None:
    collector = Collector(shop, talkative, max_turn_tokens=8)
    asked = group_requests(0, 0, n_groups=2, group_size=3)
    result, again = collector.collect(asked), collector.collect(asked)
    assert result.failures == []
    assert [e.ids.tolist() for e in result.episodes] == [e.ids.tolist() for e in again.episodes]
    assert [e.messages for e in result.episodes] == [e.messages for e in again.episodes]
    openings = [e.messages[:2] for e in result.episodes]
    assert openings[0] == openings[1] == openings[2] != openings[3]
    assert len({tuple(e.ids.tolist()) for e in result.episodes}) == 6
    for episode in result.episodes:
        assert episode.terminated != episode.truncated
        assert episode.end_reason
        assert sum(episode.reward_terms.values()) == pytest.approx(episode.episode_return)


def test_a_context_larger_than_the_models_is_refused(shop: ConversationVectorEnv, talkative: Policy) -> None:
    with pytest.raises(CapacityError, match="max_context to at most 512"):
        Collector(shop, talkative, max_context=513)

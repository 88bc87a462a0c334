"""This project's contestant: the rollout engine, the learner, and both together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import algos
from algos.learner.learner import Learner, LearnerConfig
from algos.learner.scores import score
from algos.policies.load import Policy, load_policy
from algos.rollout.collect import Collector, EpisodeRequest, group_requests
from algos.rollout.engine import Engine
from algos.rollout.episodes import TokenEpisode
from benchmarks.peers.serve import Play, serve, timed
from benchmarks.suites import CUSTOMER_SERVICE, GRPO, PPO, REINFORCE, SLOT_FILLING
from benchmarks.throughput import hardware, profile
from benchmarks.throughput.work import ScriptedUser
from convgym.vector import ConversationVectorEnv

Job = Mapping[str, Any]


def prepare(job: Job) -> Play:
    """Loads what a job needs; ``TASKS`` names the kinds of jobs."""
    torch.set_num_threads(job["threads"])
    return TASKS[job["task"]](job)


def decode(job: Job) -> Play:
    """Samples after prompts: ``folder``, ``prompts``, ``new``; asks say how many ``lanes``.

    ``device``, ``dtype`` and ``limits`` (whether answers say what the memory's bandwidth is, and whether CUDA graphs
    were replayed or why not) are optional.
    """
    policy, prompts, new = _load(job), job["prompts"], job["new"]
    if job.get("dtype") == "bf16":
        policy.model.bfloat16()
    limits = hardware.limits(policy.model.device, job.get("dtype", "fp32")) if job.get("limits") else {}
    engines: dict[tuple[int, int], Engine] = {}

    def make(lanes: int, count: int) -> None:
        capacity = len(prompts[0]) + count + 1
        engines[lanes, count] = Engine(
            policy.model, eos_ids=(), lanes=lanes, capacity=capacity, max_turn_tokens=count, lean=job.get("lean")
        )

    def sample(lanes: int, count: int) -> None:
        engine = engines[lanes, count]
        engine.refresh()  # as before every rollout
        for lane, ids in enumerate(prompts[:lanes]):
            engine.start(lane, ids, sample_seed=lane)
        while engine.advance():
            pass
        for lane in range(lanes):
            engine.release(lane)

    def play(ask: Mapping[str, Any]) -> dict[str, Any]:
        lanes = min(ask["lanes"], len(prompts))
        if (lanes, new) not in engines:
            if policy.model.device.type != "cpu":
                engines.clear()  # each holds weights and cache of its own, and a GPU has little room
            for count in (1, new):
                make(lanes, count)
                sample(lanes, count)  # the first time is warm-up
        _, first = timed(lambda: sample(lanes, 1))
        _, whole = timed(lambda: sample(lanes, new))
        facts = {**limits, "graphs": engines[lanes, new].graphs} if limits else {}
        return {**whole, **facts, "first_cpu": first["cpu"], "first_wall": first["wall"], "tokens": lanes * new}

    return play


def turns(job: Job) -> Play:
    """Conversations of several turns: ``folder``, ``conversations``, ``lanes``; asks give ``new`` and ``ends``."""
    policy, talks = load_policy(job["folder"]), job["conversations"]
    capacity = max(len(talk["opening"]) + sum(map(len, talk["replies"])) for talk in talks)

    engines: dict[tuple[int, tuple[int, ...]], Engine] = {}

    def converse(new: int, ends: Sequence[int], talks: Sequence[Any]) -> int:
        engine = engines.get((new, tuple(ends)))
        if engine is None:
            room = capacity + (1 + len(talks[0]["replies"])) * new + 1
            engine = Engine(policy.model, eos_ids=ends, lanes=job["lanes"], capacity=room, max_turn_tokens=new)
            engines[new, tuple(ends)] = engine
        engine.refresh()  # as before every rollout
        waiting, replies, said = list(range(len(talks)))[::-1], dict[int, list[list[int]]](), 0
        while True:
            while waiting and engine.live < job["lanes"]:
                lane = waiting.pop()
                replies[lane] = talks[lane]["replies"][::-1]
                engine.start(lane, talks[lane]["opening"], sample_seed=lane)
            ended = engine.advance()
            if not ended:
                return said
            for turn in ended:
                said += len(turn.ids)
                if replies[turn.lane]:
                    engine.append(turn.lane, replies[turn.lane].pop())
                else:
                    engine.release(turn.lane)

    def play(ask: Mapping[str, Any]) -> dict[str, float]:
        said, took = timed(lambda: converse(ask["new"], ask["ends"], talks))
        return {**took, "tokens": said, "episodes": len(talks)}

    converse(2, (), talks[:2])
    return play


def learn(job: Job) -> Play:
    """A GRPO update on given episodes: ``folder``, ``episodes``, ``group``; an ask for a ``profile`` takes it apart.

    ``device``, ``dtype``, ``micro_tokens`` and ``limits`` (whether answers say what products can reach) are optional.
    """
    policy = _load(job)
    limits = hardware.limits(policy.model.device, job.get("dtype", "fp32")) if job.get("limits") else {}
    learner = Learner(policy, algos.make("grpo"), _learner_config(job, 1e-6))
    episodes = [_episode(policy, i // job["group"], episode) for i, episode in enumerate(job["episodes"])]

    def update() -> None:
        learner.update([dataclasses.replace(episode, version=learner.step) for episode in episodes])

    def play(ask: Mapping[str, Any]) -> dict[str, Any]:
        if ask.get("profile"):
            return profile.of_update(update)
        _, took = timed(update)
        tokens = sum(len(e.ids) for e in episodes)
        return {**took, **limits, "tokens": tokens, "episodes": len(episodes), "micro_tokens": learner.micro_tokens}

    update()
    return play


def train(job: Job) -> Play:
    """Rollout and GRPO update on scripted users: ``folder``, ``scripts``, ``instructions``, ``group``, ``new``."""
    policy = dataclasses.replace(_load(job), eos_ids=frozenset())  # turns have a given length
    scripts, instructions = job["scripts"], job["instructions"]
    envs = ConversationVectorEnv([lambda: ScriptedUser(scripts, instructions)] * len(scripts), "Disabled")
    collector = Collector(envs, policy, max_turn_tokens=job["new"])
    learner = Learner(policy, algos.make("grpo"), _learner_config(job, job["learning_rate"]))

    def play(ask: Mapping[str, Any]) -> dict[str, float]:
        requests = [
            EpisodeRequest(i // job["group"], i // job["group"], learner.step * len(scripts) + i, {"script": i})
            for i in range(len(scripts))
        ]
        collected, rollout = timed(lambda: collector.collect(requests, version=learner.step))
        metrics, update = timed(lambda: learner.update(collected.episodes))
        return {
            "cpu": rollout["cpu"] + update["cpu"],
            "wall": rollout["wall"] + update["wall"],
            # The learner leaves out groups whose returns are equal: a step that had some would be cheaper.
            "informative": metrics["informative_groups"],
            "generation_cpu": rollout["cpu"],
            "generation_wall": rollout["wall"],
            "tokens": sum(int(episode.action.sum()) for episode in collected.episodes),
            "context": sum(len(episode.ids) for episode in collected.episodes),
            "episodes": len(collected.episodes),
        }

    play({})
    return play


def service(job: Job) -> Play:
    """An iteration of the quick suite: ``model``, ``episodes``; asks name ``env`` and ``algorithm``."""
    envs = {spec.short: spec for spec in (CUSTOMER_SERVICE, SLOT_FILLING)}
    entries = {entry.name: entry for entry in (GRPO, PPO, REINFORCE)}
    made: dict[tuple[str, str], Callable[[], dict[str, float]]] = {}

    def begin(env: str, algorithm: str) -> Callable[[], dict[str, float]]:
        spec, entry, policy = envs[env], entries[algorithm], load_policy(job["model"])
        lanes = ConversationVectorEnv([lambda: gym.make(spec.id, **spec.kwargs)] * job["episodes"], "Disabled")
        collector = Collector(lanes, policy)
        config = LearnerConfig(learning_rate=entry.learning_rate, device="cpu", **entry.settings)
        learner = Learner(policy, algos.make(entry.algo, **entry.algo_fields), config)

        def iterate() -> dict[str, float]:
            requests = group_requests(0, learner.step * 8, job["episodes"] // 8, 8)
            collected, rollout = timed(lambda: collector.collect(requests, version=learner.step))
            metrics, update = timed(lambda: learner.update(collected.episodes))
            phases = {f"seconds_{phase}": seconds for phase, seconds in collected.seconds.items()}
            return {
                "cpu": rollout["cpu"] + update["cpu"],
                "wall": rollout["wall"] + update["wall"],
                "rollout_cpu": rollout["cpu"],
                "update_cpu": update["cpu"],
                "seconds_rollout": rollout["wall"],
                **phases,
                "seconds_observe": metrics["seconds_observe"],
                "seconds_optimise": metrics["seconds_optimise"],
                "tokens": sum(len(e.ids) for e in collected.episodes),
                "sampled": sum(int(e.action.sum()) for e in collected.episodes),
                "episodes": len(collected.episodes),
            }

        iterate()  # the first one is warm-up
        return iterate

    def play(ask: Mapping[str, Any]) -> dict[str, float]:
        key = ask["env"], ask["algorithm"]
        made[key] = made.get(key) or begin(*key)
        return made[key]()

    return play


def _load(job: Job) -> Policy:
    return load_policy(job["folder"], device=job.get("device", "cpu"))


def _learner_config(job: Job, learning_rate: float) -> LearnerConfig:
    return LearnerConfig(
        learning_rate=learning_rate,
        device="cpu" if job.get("device", "cpu") == "cpu" else "auto",
        precision=job.get("dtype", "fp32"),
        micro_tokens=job.get("micro_tokens", LearnerConfig.micro_tokens),
    )


def _episode(policy: Policy, group: int, episode: Mapping[str, Any]) -> TokenEpisode:
    ids, action = np.array(episode["ids"]), np.array(episode["action"], np.bool_)
    begins = action & ~np.concatenate([[False], action[:-1]])
    turn = np.where(action, begins.cumsum() - 1, -1)
    with torch.no_grad():
        row = (torch.from_numpy(x)[None].to(policy.model.device) for x in (ids, action))
        logp = score(policy.model, *row).logp[0].cpu().numpy()
    rewards = np.zeros(int(begins.sum()), np.float32)
    rewards[-1] = episode["reward"]
    return TokenEpisode(
        ids, logp, action, turn, rewards, np.zeros(len(rewards), np.int64), group=group, env_seed=group, sample_seed=0
    )


TASKS: dict[str, Callable[[Job], Play]] = {
    "decode": decode,
    "turns": turns,
    "learn": learn,
    "train": train,
    "service": service,
}

if __name__ == "__main__":
    serve(prepare, "convgym", "torch")

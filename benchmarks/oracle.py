"""The scripted oracle's success: the upper end of "gap closed", measured and not assumed."""

from __future__ import annotations

import gymnasium as gym

import convgym  # noqa: F401  (registers the environments)
from benchmarks.suites import EnvSpec
from convgym import agents
from convgym.seeding import derive_seed

EPISODES = 256


def oracle_success(spec: EnvSpec, *, split: str = "val", episodes: int = EPISODES) -> float:
    """Share of held-out conversations that the oracle, who sees the goal, brings to success.

    Args:
        spec: The environment, with the keywords that agents are trained with.
        split: Split that evaluations draw from.
        episodes: Conversations, from fixed seeds.
    """
    env = gym.make(spec.id, disable_env_checker=True, **{**spec.kwargs, "split": split, "reveal": True})
    agent = agents.make("oracle", env)
    successes = 0
    for i in range(episodes):
        obs, info = env.reset(seed=derive_seed(0, "oracle", i))
        agent.reset(obs, info)
        over = False
        while not over:
            obs, _, terminated, truncated, info = env.step(agent.act(obs, info))
            over = terminated or truncated
        successes += bool(info["success"])
    env.close()
    return successes / episodes

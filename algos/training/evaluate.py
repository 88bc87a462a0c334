"""Evaluating what a run has learnt, on any number of held-out conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from algos.learner.checkpoint import fill_tensors, newest, tensors_of
from algos.policies.load import Policy, load_policy
from algos.rollout.collect import Collector
from algos.training.config import RunConfig
from algos.training.envs import make_envs
from algos.training.run import eval_requests, no_progress_bars, sample, summary
from convgym.core import SPLITS, expect
from convgym.errors import ConfigError, EnvError


def trained_policy(folder: Path) -> Policy:
    """The policy of a run: what it exported at its end, or else its last checkpoint.

    Raises:
        ConfigError: If the run has neither.
    """
    if (folder / "policy" / "config.json").exists():
        return load_policy(folder / "policy")
    config, found = RunConfig.load(folder), newest(folder / "checkpoints")
    if found is None:
        raise ConfigError(f"Expected a policy or a checkpoint in {str(folder)!r}, found none; train first.")
    policy = load_policy(config.model, init=config.init)
    fill_tensors(tensors_of(policy.model), found.part("model"), str(found.path))
    return policy


def evaluate(
    folder: Path, *, episodes: int = 256, split: str | None = None, greedy: bool = False
) -> dict[str, Any]:
    """Has held-out conversations with the policy of a run; the first ones are those of the run's own
    evaluations.

    Args:
        folder: Folder of the run.
        episodes: Number of conversations.
        split: Split to draw from; by default the one that the run evaluates on.
        greedy: Whether to take the likeliest token each time.

    Returns:
        Means over the conversations, ``episodes`` (how many there were), and one of them under ``sample``.

    Raises:
        ConfigError: If the folder holds no run or no policy.
        EnvError: If all conversations broke.
    """
    config = RunConfig.load(folder)
    expect("split", split or config.eval_split, SPLITS)
    if episodes < 1:
        raise ConfigError(f"episodes: expected at least 1, got {episodes}.")
    no_progress_bars()
    envs = make_envs(config.env, min(config.lanes, episodes), config.env_kwargs)
    collector = Collector(
        envs,
        trained_policy(folder),
        temperature=config.temperature,
        max_turn_tokens=config.max_turn_tokens,
        max_context=config.max_context,
    )
    collected = collector.collect(
        eval_requests(config.seed, episodes, split or config.eval_split), greedy=greedy
    )
    envs.close()
    if not collected.episodes:
        raise EnvError(
            f"Expected {episodes} conversations, but all broke; the first:\n{collected.failures[0].error}"
        )
    count = len(collected.episodes)
    return {"episodes": count, **summary(collected.episodes), "sample": sample(collected.episodes[0])}

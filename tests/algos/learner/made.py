"""Conversations as a policy would have sampled them, made without an environment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import algos
from algos.base import Algorithm
from algos.learner.learner import Learner, LearnerConfig
from algos.learner.scores import score
from algos.policies.load import Policy, make_policy
from algos.rollout.episodes import TokenEpisode

UNBOUND = 1e9  # no clipping


def fresh(policy: Policy) -> Policy:
    """An independent copy, to be trained."""
    return make_policy(copy.deepcopy(policy.model), policy.tokenizer, name=policy.name)


def conversation(
    policy: Policy, rng: np.random.Generator, group: int, *, temperature: float = 1.0
) -> TokenEpisode:
    """Random words of 1 to 4 turns, with the log-probabilities that this policy gives them."""
    vocabulary, n_turns = len(policy.tokenizer), int(rng.integers(1, 5))
    ids: list[int] = []
    turns: list[int] = []
    for turn in range(n_turns):
        heard, said = rng.integers(2, 12, 2)
        ids += rng.integers(6, vocabulary, heard + said).tolist()
        turns += [-1] * heard + [turn] * said
    turn_index = np.array(turns)
    action = turn_index >= 0
    with torch.no_grad():
        row = torch.tensor(ids)[None], torch.from_numpy(action)[None]
        logp = score(policy.model, *row, temperature=temperature).logp[0].numpy()
    return TokenEpisode(
        ids=np.array(ids),
        logp=logp,
        action=action,
        turn=turn_index,
        rewards=(rng.integers(0, 4, n_turns) / 3).astype(np.float32),
        state_keys=np.zeros(n_turns, np.int64),
        group=group,
        env_seed=0,
        sample_seed=0,
        terminated=bool(rng.integers(0, 2)),
    )


def conversations(
    policy: Policy, n: int = 8, *, seed: int = 0, group_size: int = 4, **changes: Any
) -> list[TokenEpisode]:
    """``n`` of them in groups."""
    rng = np.random.default_rng(seed)
    return [conversation(policy, rng, index // group_size, **changes) for index in range(n)]


def learner_of(policy: Policy, algorithm: str | Algorithm, **settings: Any) -> Learner:
    """A learner over a copy of the policy."""
    made = algos.make(algorithm) if isinstance(algorithm, str) else algorithm
    return Learner(fresh(policy), made, LearnerConfig(**settings))


def gradients(learner: Learner, episodes: Sequence[TokenEpisode]) -> dict[str, Tensor]:
    """The gradient of an update's first optimiser step, as it reaches the optimiser."""
    seen: list[dict[str, Tensor]] = []
    step: Callable[..., Any] = learner.adam.step

    def record(closure: None = None) -> None:
        seen.append({name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None})
        step(closure)

    learner.adam.step = record  # type: ignore[method-assign]
    learner.update(episodes)
    return seen[0]


def weights(learner: Learner) -> dict[str, Tensor]:
    """A copy of all trained weights."""
    return {name: p.detach().clone() for name, p in learner.parameters.items()}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Equal up to rounding, which grows with the numbers that are summed; and not because both are zero."""
    assert ours.keys() == theirs.keys()
    assert any(x.abs().max() > 100 * tolerance for x in ours.values())
    for name, x in ours.items():
        assert (x - theirs[name]).abs().max() <= tolerance * max(1.0, float(x.abs().max())), name

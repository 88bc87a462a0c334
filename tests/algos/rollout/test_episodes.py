"""Token episodes, batches and buckets."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from algos.rollout.episodes import TokenEpisode, buckets, collate
from convgym.errors import ConfigError


def episode(
    turns: list[tuple[int, int]], group: int = 0, seed: int = 0, terminated: bool = True
) -> TokenEpisode:
    """An episode whose turn k has so many observed, then so many sampled tokens."""
    rng = np.random.default_rng(seed)
    turn = np.concatenate([np.repeat([-1, k], sizes) for k, sizes in enumerate(turns)]).astype(np.int64)
    action = turn >= 0
    return TokenEpisode(
        ids=rng.integers(1, 100, len(turn)),
        logp=np.where(action, -rng.random(len(turn)), 0).astype(np.float32),
        action=action,
        turn=turn,
        rewards=rng.normal(size=len(turns)).astype(np.float32),
        state_keys=rng.integers(0, 2**62, len(turns)),
        group=group,
        env_seed=1,
        sample_seed=2,
        version=seed,
        terminated=terminated,
        truncated=not terminated,
    )


episodes = st.lists(
    st.builds(
        episode,
        st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4),
        st.integers(0, 9),
        st.integers(0, 99),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(episodes, st.integers(0, 7))
def test_a_batch_holds_every_episode_and_nothing_else(rows: list[TokenEpisode], pad_id: int) -> None:
    batch = collate(rows, pad_id)
    assert batch.tokens.shape == (len(rows), max(len(row.ids) for row in rows))
    assert batch.reward.shape == (len(rows), max(len(row.rewards) for row in rows))
    for i, row in enumerate(rows):
        length, turns = len(row.ids), len(row.rewards)
        columns: dict[str, tuple[NDArray[Any], float]] = {
            "tokens": (row.ids, pad_id),
            "action": (row.action, False),
            "turn": (row.turn, -1),
            "behaviour_logp": (row.logp, 0.0),
        }
        for name, (values, padding) in columns.items():
            column = getattr(batch, name)[i]
            np.testing.assert_array_equal(column[:length].numpy(), values)
            assert (column[length:] == padding).all(), name
        per_turn: dict[str, NDArray[Any]] = {"reward": row.rewards, "state_key": row.state_keys}
        for name, values in per_turn.items():
            np.testing.assert_array_equal(getattr(batch, name)[i, :turns].numpy(), values)
            assert (getattr(batch, name)[i, turns:] == 0).all()
        assert batch.n_turns[i] == turns
        assert [batch.group[i].item(), batch.version[i].item()] == [row.group, row.version]
        assert batch.terminated[i] == row.terminated
    assert batch.tokens.dtype == batch.turn.dtype == batch.state_key.dtype == torch.int64
    assert batch.behaviour_logp.dtype == batch.reward.dtype == torch.float32
    assert batch.old_logp is batch.ref_logp is batch.value is batch.bootstrap is None


def test_collate_needs_an_episode() -> None:
    with pytest.raises(ValueError, match="at least one"):
        collate([])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_buckets_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    parts = buckets(lengths, budget)
    sizes = np.array(lengths)
    assert sorted(np.concatenate(parts).tolist() if parts else []) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * sizes[part].max() <= budget
    # Sorted by length, longest first; and no part could have taken the next part's first row.
    order = [sizes[i] for part in parts for i in part]
    assert order == sorted(order, reverse=True)
    for part, following in pairwise(parts):
        assert (len(part) + 1) * sizes[part].max() > budget, (part, following)


def test_buckets_need_a_budget() -> None:
    with pytest.raises(ValueError, match="token_budget"):
        buckets([3], 0)


def test_an_episode_adds_up_and_refuses_what_contradicts_itself() -> None:
    good = episode([(3, 2), (1, 4)])
    assert good.episode_return == pytest.approx(float(good.rewards[0]) + float(good.rewards[1]))
    signed = np.where(good.action, 1, -1)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("one length", {"logp": good.logp[:-1]}),
        ("turn exactly where action is true", {"turn": np.zeros_like(good.turn)}),
        ("rewards and state_keys of one length", {"rewards": good.rewards[:1]}),
        ("one reward for each turn", {"rewards": good.rewards[:1], "state_keys": good.state_keys[:1]}),
        ("first token", {"action": np.ones_like(good.action), "turn": np.zeros_like(good.turn)}),
        ("action is int64, expected bool.*mask > 0", {"action": signed}),
        ("action is float64, expected bool", {"action": good.action.astype(float)}),
    ]
    for message, changes in wrong:
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(good, **changes)

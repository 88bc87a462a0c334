"""Schedules and parameter groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algos.learner.optimiser import Schedule, learning_rate_factor, parameter_groups
from algos.policies.critic import new_critic
from algos.policies.load import Policy

schedules = st.sampled_from(["constant", "linear", "cosine"])
shares = st.floats(0.0, 0.99)


@given(st.integers(1, 200), schedules, shares)
def test_every_update_of_the_plan_moves_and_none_exceeds_the_peak(
    updates: int, schedule: Schedule, warmup: float
) -> None:
    factors = [learning_rate_factor(update, updates, schedule, warmup) for update in range(updates)]
    assert all(0 < factor <= 1 for factor in factors)
    rising = round(warmup * updates)
    assert factors[:rising] == sorted(factors[:rising])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    if rising < updates:
        assert factors[rising] == 1.0  # the peak comes right after the warm-up


@given(st.integers(1, 200), st.sampled_from(["linear", "cosine"]), shares)
def test_a_decaying_schedule_ends_at_zero_just_after_the_plan(
    updates: int, schedule: Schedule, warmup: float
) -> None:
    assert learning_rate_factor(updates, updates, schedule, warmup) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate_factor(updates + 5, updates, schedule, warmup) == pytest.approx(0.0, abs=1e-12)


def test_known_values() -> None:
    assert [learning_rate_factor(u, 4, "linear") for u in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert learning_rate_factor(2, 4, "cosine") == pytest.approx(0.5)
    assert [learning_rate_factor(u, 10, "constant", 0.3) for u in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_norms_biases_and_embeddings_do_not_decay(tiny_policy: Policy) -> None:
    groups = parameter_groups({"model": tiny_policy.model, "critic": new_critic(tiny_policy.model)}, 0.1)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay["model.model.layers.0.mlp.up_proj.weight"] == 0.1
    assert decay["critic.head.inner.weight"] == 0.1
    assert decay["critic.head.inner.bias"] == 0.0
    assert decay["model.model.norm.weight"] == 0.0
    assert decay["model.model.embed_tokens.weight"] == 0.0
    assert "model.lm_head.weight" not in decay  # tied to the embedding


def test_every_parameter_is_in_one_group(tiny_policy: Policy) -> None:
    modules = {"model": tiny_policy.model, "critic": new_critic(tiny_policy.model)}
    grouped = [id(p) for group in parameter_groups(modules, 0.1) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for module in modules.values() for p in module.parameters()}

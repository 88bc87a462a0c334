"""The learner: its gradient is one number for one batch, however it is cut; and nothing harms the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn.functional import pad

import algos
from algos.base import Algorithm, Batch, Minibatch, Scores
from algos.learner import learner as learner_module
from algos.learner.learner import Learner, LearnerConfig
from algos.learner.scores import score
from algos.maths.reductions import loss_weights
from algos.policies.load import Policy
from algos.reinforce import Reinforce
from algos.rollout.episodes import TokenEpisode, collate
from convgym.errors import CapacityError, ConfigError, DivergedError, EnvError
from tests.algos.learner.made import (
    UNBOUND,
    assert_close,
    conversations,
    fresh,
    gradients,
    learner_of,
    weights,
)

ZOO: dict[str, Algorithm] = {
    "reinforce": algos.make("reinforce"),
    "grpo": algos.make("grpo"),
    "grpo with KL and entropy": algos.make("grpo", kl={"beta": 0.1}, entropy=0.01),
    "rloo": algos.make("rloo"),
    "dr_grpo": algos.make("dr_grpo"),
    "ppo": algos.make("ppo", minibatches=1, epochs=2),
}
each_algorithm = pytest.mark.parametrize("algorithm", ZOO.values(), ids=ZOO.keys())


# -- one normaliser ----------------------------------------------------------------------------------------


@each_algorithm
def test_gradient_is_the_same_for_any_micro_batch(tiny_policy: Policy, algorithm: Algorithm) -> None:
    episodes = conversations(tiny_policy)
    whole = gradients(learner_of(tiny_policy, algorithm, max_grad_norm=UNBOUND, micro_tokens=10**6), episodes)
    for budget in (1, 60, 200):
        cut = learner_of(tiny_policy, algorithm, max_grad_norm=UNBOUND, micro_tokens=budget)
        assert_close(whole, gradients(cut, episodes))


@each_algorithm
def test_gradient_is_the_same_for_any_row_order(tiny_policy: Policy, algorithm: Algorithm) -> None:
    episodes = conversations(tiny_policy)
    straight = gradients(learner_of(tiny_policy, algorithm, max_grad_norm=UNBOUND), episodes)
    mixed = [episodes[i] for i in np.random.default_rng(1).permutation(len(episodes))]
    assert_close(straight, gradients(learner_of(tiny_policy, algorithm, max_grad_norm=UNBOUND), mixed))


@each_algorithm
def test_gradient_is_the_same_for_any_padding(
    tiny_policy: Policy, algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = conversations(tiny_policy)
    tight = gradients(learner_of(tiny_policy, algorithm, max_grad_norm=UNBOUND), episodes)

    def padded(rows: Sequence[TokenEpisode], pad_id: int) -> Batch:
        batch, wide = collate(rows, pad_id), (0, 37)
        return replace(
            batch,
            tokens=pad(batch.tokens, wide, value=pad_id + 9),
            action=pad(batch.action, wide),
            turn=pad(batch.turn, wide, value=-1),
            behaviour_logp=pad(batch.behaviour_logp, wide),
        )

    monkeypatch.setattr(learner_module, "collate", padded)
    monkeypatch.setattr(Batch, "trimmed", lambda self: self)  # the padding really goes through the model
    assert_close(tight, gradients(learner_of(tiny_policy, algorithm, max_grad_norm=UNBOUND), episodes))


@pytest.mark.parametrize("reduce", ["token", "seq", "const", "seq_sum", "prompt", "turn"])
def test_gradient_is_that_of_the_weighted_loss(tiny_policy: Policy, reduce: str) -> None:
    """The bargain with an algorithm, by hand: its own reduction, over the rows that it keeps."""
    algorithm = algos.make("grpo", reduce=reduce, mask_truncated=True)
    episodes = conversations(tiny_policy)
    batch = collate(episodes)
    credit = algorithm.credit(batch)
    assert credit.keep is not None and 0 < int(credit.keep.sum()) < batch.size
    policy = fresh(tiny_policy)
    scores = score(policy.model, batch.tokens, batch.action)
    whole = Minibatch.of(replace(batch, old_logp=scores.logp.detach()), credit)
    loss = (loss_weights(batch, credit.keep, algorithm) * algorithm.loss(scores, whole)[0]).sum()
    named = dict(policy.model.named_parameters())
    by_hand = {f"model.{name}": grad for name, grad in zip(named, torch.autograd.grad(loss, list(named.values())))}
    learnt = gradients(learner_of(tiny_policy, algorithm, max_grad_norm=UNBOUND, micro_tokens=100), episodes)
    assert_close({name: by_hand[name] for name in learnt}, learnt, 1e-5)


@pytest.mark.parametrize("name", ["reinforce", "grpo", "ppo"])
def test_rows_without_gradient_are_left_out_and_change_nothing(
    tiny_policy: Policy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = conversations(tiny_policy, 12)
    episodes[4:8] = all_succeed(episodes[4:8])  # a group without variance
    lean = gradients(learner_of(tiny_policy, name, max_grad_norm=UNBOUND), episodes)
    everything = lambda part, weights, algorithm: torch.arange(part.size)  # noqa: E731
    monkeypatch.setattr(learner_module, "_live", everything)
    assert_close(lean, gradients(learner_of(tiny_policy, name, max_grad_norm=UNBOUND), episodes))


def test_dead_groups_never_enter_the_model(tiny_policy: Policy) -> None:
    episodes = conversations(tiny_policy)
    dead = [replace(e, rewards=np.zeros_like(e.rewards)) for e in episodes]
    learner = learner_of(tiny_policy, "grpo")
    before = weights(learner)
    metrics = learner.update(dead)
    assert metrics["informative_groups"] == 0.0
    assert metrics["grad_norm"] == 0.0
    assert all(torch.equal(before[name], x) for name, x in weights(learner).items())
    assert learner.update(episodes)["informative_groups"] > 0.0


# -- what the algorithm is told ----------------------------------------------------------------------------


def test_weights_move_and_stay_float32(tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, "ppo")
    before = weights(learner)
    learner.update(conversations(tiny_policy))
    for name, after in weights(learner).items():
        assert after.dtype == torch.float32
        assert not torch.equal(before[name], after), f"{name} did not move"


def test_a_positive_advantage_raises_the_probability(tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, "grpo", learning_rate=1e-3)
    episodes = conversations(tiny_policy, 8)
    best = max(range(4), key=lambda i: episodes[i].episode_return)
    row = collate([episodes[best]])
    learner.update(episodes)
    after = score(learner.model, row.tokens, row.action).logp[row.action].mean()
    assert after > row.behaviour_logp[row.action].mean()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_ratio_starts_at_one(tiny_policy: Policy, temperature: float) -> None:
    episodes = conversations(tiny_policy, temperature=temperature)
    metrics = learner_of(tiny_policy, "ppo", temperature=temperature).update(episodes)
    assert metrics["ratio_first"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["mismatch"] < 1e-5


def test_old_log_probabilities_are_scored_again_if_an_older_policy_sampled(tiny_policy: Policy) -> None:
    seen: list[Batch] = []

    @dataclass(frozen=True, kw_only=True)
    class Watching(type(algos.make("ppo"))):  # type: ignore[misc]
        def credit(self, batch: Batch) -> Any:
            seen.append(batch)
            return super().credit(batch)

    episodes = conversations(tiny_policy)
    learner = learner_of(tiny_policy, Watching(), learning_rate=1e-3)
    learner.update(episodes)  # version 0 sampled, and version 0 learns
    assert seen[0].old_logp is not None
    assert torch.equal(seen[0].old_logp, seen[0].behaviour_logp)
    fresh_scores = score(learner.model, seen[0].tokens, seen[0].action).logp.detach()
    learner.update(episodes)  # version 0 sampled, and version 1 learns
    assert seen[1].old_logp is not None
    torch.testing.assert_close(seen[1].old_logp, fresh_scores, rtol=0, atol=1e-5)
    assert (seen[1].old_logp - seen[1].behaviour_logp).abs().max() > 1e-3


def test_values_are_read_before_the_token_and_bootstrap_after_the_last(tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, "ppo", micro_tokens=100)
    assert learner.critic is not None
    torch.nn.init.normal_(learner.critic.head.outer.weight)
    batch = learner._observe(collate(conversations(tiny_policy)), None)
    assert batch.value is not None and batch.bootstrap is not None
    for row in range(batch.size):
        at = batch.action[row].nonzero().squeeze(1)
        hidden = learner.model.model(input_ids=batch.tokens[row : row + 1]).last_hidden_state[0]
        expected = learner.critic(hidden)
        torch.testing.assert_close(batch.value[row, at], expected[at - 1], rtol=0, atol=1e-5)
        torch.testing.assert_close(batch.bootstrap[row], expected[at[-1]], rtol=0, atol=1e-5)
    assert not batch.value[~batch.action].any()


def test_the_reference_stays_where_the_policy_was(tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, ZOO["grpo with KL and entropy"], learning_rate=1e-2)
    batch = collate(conversations(tiny_policy))
    learner.update(conversations(tiny_policy))
    ref_logp = learner._observe(batch, None).ref_logp
    assert ref_logp is not None
    start = score(tiny_policy.model, batch.tokens, batch.action).logp.detach()
    torch.testing.assert_close(ref_logp, start, rtol=0, atol=1e-5)
    now = score(learner.model, batch.tokens, batch.action).logp.detach()
    assert (now - start).abs().max() > 1e-2


def test_running_baselines_pass_from_update_to_update(tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, Reinforce(baseline="ema", decay=0.5))
    first, second = conversations(tiny_policy, seed=1), conversations(tiny_policy, seed=2)
    means = [float(np.mean([e.episode_return for e in episodes])) for episodes in (first, second)]
    learner.update(first)
    learner.update(second)
    assert list(learner.statistics.values()) == [pytest.approx(0.5 * means[0] + 0.5 * means[1], abs=1e-6)]


def test_greedy_returns_reach_the_algorithm_or_are_asked_for(tiny_policy: Policy) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Remax(Reinforce):
        @property
        def needs(self) -> Any:
            return frozenset({"greedy"})

        def credit(self, batch: Batch) -> Any:
            assert batch.greedy_return is not None
            assert batch.greedy_return.tolist() == [float(group) for group in batch.group]
            return super().credit(batch)

    learner = learner_of(tiny_policy, Remax())
    learner.update(conversations(tiny_policy), {0: 0.0, 1: 1.0})
    with pytest.raises(ConfigError, match="greedy_returns"):
        learner.update(conversations(tiny_policy))


# -- optimisation ------------------------------------------------------------------------------------------


def test_minibatches_take_every_row_once_an_epoch_and_differ_by_seed_and_step(tiny_policy: Policy) -> None:
    def order(seed: int, step: int) -> list[list[int]]:
        learner = learner_of(tiny_policy, algos.make("ppo", epochs=2, minibatches=3), seed=seed)
        learner.step = step
        return [rows.tolist() for rows in learner._minibatches(8)]

    parts = order(0, 0)
    assert [len(part) for part in parts] == [3, 3, 2] * 2
    for epoch in (parts[:3], parts[3:]):
        assert sorted(row for part in epoch for row in part) == list(range(8))
    assert parts[:3] != parts[3:]
    assert order(0, 0) == parts
    assert order(1, 0) != parts != order(0, 1)


def test_the_learning_rate_follows_the_schedule(tiny_policy: Policy) -> None:
    settings = {
        "learning_rate": 0.4,
        "critic_learning_rate": 4.0,
        "updates": 4,
        "schedule": "linear",
        "warmup": 0.5,
    }
    learner = learner_of(tiny_policy, algos.make("ppo", epochs=1, minibatches=1), **settings)
    rates = []
    for step in range(4):
        learner.step = step
        rates.append(learner._set_learning_rate())
        by_module = {group["module"]: group["lr"] for group in learner.adam.param_groups}
        assert by_module["critic"] == pytest.approx(10 * by_module["model"])
    assert rates == pytest.approx([0.4 / 3, 0.8 / 3, 0.4, 0.2])


def test_a_long_step_halves_the_learning_rate(tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, "grpo", learning_rate=1e-2, kl_limit=1e-6)
    rates = [learner.update(conversations(tiny_policy, seed=seed))["lr"] for seed in range(3)]
    assert rates == pytest.approx([1e-2, 5e-3, 2.5e-3])


def test_gradients_are_clipped_to_the_norm(tiny_policy: Policy) -> None:
    episodes = conversations(tiny_policy)
    free = gradients(learner_of(tiny_policy, "rloo", max_grad_norm=UNBOUND), episodes)
    norm = math.sqrt(sum(float((x**2).sum()) for x in free.values()))
    bound = gradients(learner_of(tiny_policy, "rloo", max_grad_norm=norm / 4), episodes)
    assert_close({name: x / 4 for name, x in free.items()}, bound, 1e-5 * norm)


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradient(tiny_policy: Policy) -> None:
    episodes = conversations(tiny_policy)

    def counted(on: bool) -> tuple[dict[str, Tensor], int]:
        learner = learner_of(tiny_policy, "ppo", max_grad_norm=UNBOUND, gradient_checkpointing=on)
        passes: list[None] = []
        learner.model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: passes.append(None))
        found = gradients(learner, episodes)
        assert not any(module.training for module in learner.model.modules())
        assert not learner.model.model.embed_tokens._forward_hooks
        return found, len(passes)

    (plain, once), (recomputed, again) = counted(False), counted(True)
    assert_close(plain, recomputed)
    assert again > once


def all_succeed(episodes: Sequence[TokenEpisode]) -> list[TokenEpisode]:
    """The same conversations, each with a reward of 1 at its end."""
    return [replace(e, rewards=np.eye(len(e.rewards), dtype=np.float32)[-1]) for e in episodes]


@pytest.mark.parametrize("trunk", ["shared", "detached", "own"])
def test_the_critic_learns_a_constant_return(tiny_policy: Policy, trunk: str) -> None:
    episodes = [
        replace(e, rewards=np.eye(len(e.rewards), dtype=np.float32)[-1]) for e in conversations(tiny_policy)
    ]
    algorithm = algos.make("ppo", gamma_turn=1.0, lam=1.0, value_clip=None, epochs=4, minibatches=1)
    learner = learner_of(tiny_policy, algorithm, critic=trunk, critic_learning_rate=1e-2, learning_rate=1e-5)
    losses = [learner.update(episodes)["value_loss"] for _ in range(15)]
    assert losses[0] > 0.2
    assert losses[-1] < losses[0] / 10


def test_a_detached_critic_leaves_the_policy_alone(tiny_policy: Policy) -> None:
    episodes = [
        replace(e, rewards=np.eye(len(e.rewards), dtype=np.float32)[-1]) for e in conversations(tiny_policy)
    ]

    @dataclass(frozen=True, kw_only=True)
    class OnlyValue(type(algos.make("ppo"))):  # type: ignore[misc]
        def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
            assert scores.value is not None and batch.target is not None
            return (scores.value - batch.target) ** 2, {}

    for trunk, moves in (("detached", False), ("shared", True)):
        learner = learner_of(tiny_policy, OnlyValue(minibatches=1), critic=trunk)
        before = weights(learner)
        learner.update(episodes)
        moved = [not torch.equal(before[n], x) for n, x in weights(learner).items() if n.startswith("model.")]
        assert any(moved) == moves


# -- faults ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Poisoned(Reinforce):
    """REINFORCE whose loss is not a number whenever a return of exactly 7 is in the batch."""

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(scores, batch)
        return loss * (math.nan if (batch.reward == 7).any() else 1.0), metrics


def poisoned(episodes: Sequence[TokenEpisode]) -> list[TokenEpisode]:
    return [replace(e, rewards=np.full_like(e.rewards, 7 if i == 0 else 0)) for i, e in enumerate(episodes)]


def test_nan_is_skipped_and_counted_and_three_in_a_row_stop(tiny_policy: Policy) -> None:
    good = conversations(tiny_policy)
    learner = learner_of(tiny_policy, Poisoned())
    learner.update(good)
    before = weights(learner)
    assert learner.update(poisoned(good))["skipped_steps"] == 1.0
    assert learner.update(poisoned(good))["skipped_steps"] == 2.0
    assert all(torch.equal(before[name], x) for name, x in weights(learner).items())
    assert learner.update(good)["skipped_steps"] == 2.0  # a good one in between starts the count anew
    assert any(not torch.equal(before[name], x) for name, x in weights(learner).items())
    learner.update(poisoned(good))
    learner.update(poisoned(good))
    before = weights(learner)
    with pytest.raises(DivergedError, match="3 times in a row"):
        learner.update(poisoned(good))
    assert all(torch.equal(before[name], x) for name, x in weights(learner).items())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_episode_with_a_senseless_reward_is_set_aside(tiny_policy: Policy, value: float) -> None:
    episodes = conversations(tiny_policy)
    broken = [*episodes, replace(episodes[0], rewards=np.full_like(episodes[0].rewards, value))]
    clean, other = learner_of(tiny_policy, "grpo"), learner_of(tiny_policy, "grpo")
    assert clean.update(episodes)["set_aside"] == 0.0
    assert other.update(broken)["set_aside"] == 1.0
    theirs = weights(other)
    assert all(torch.equal(x, theirs[name]) for name, x in weights(clean).items())
    with pytest.raises(EnvError, match="finite rewards"):
        other.update(broken[-1:])


def test_memory_that_runs_out_halves_the_micro_batch_and_keeps_the_gradient(tiny_policy: Policy) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Hungry(Reinforce):
        """REINFORCE on a device that holds two rows."""

        def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
            if batch.size > 2:
                raise torch.OutOfMemoryError("out of memory")
            return super().loss(scores, batch)

    episodes = conversations(tiny_policy)
    roomy = learner_of(tiny_policy, "reinforce", max_grad_norm=UNBOUND)
    tight = learner_of(tiny_policy, Hungry(), max_grad_norm=UNBOUND)
    assert_close(gradients(roomy, episodes), gradients(tight, episodes))
    assert tight.micro_tokens < tight.config.micro_tokens


def test_a_row_too_large_for_the_memory_is_an_error(tiny_policy: Policy) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Starved(Reinforce):
        def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(CapacityError, match="gradient_checkpointing"):
        learner_of(tiny_policy, Starved(), micro_tokens=8).update(conversations(tiny_policy))


def test_other_errors_are_not_taken_for_memory(tiny_policy: Policy) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Reinforce):
        def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
            raise RuntimeError("shapes cannot be broadcast")

    with pytest.raises(RuntimeError, match="broadcast"):
        learner_of(tiny_policy, Wrong()).update(conversations(tiny_policy))


# -- models ------------------------------------------------------------------------------------------------


def test_another_family_with_dropout_learns_without_it(tiny_policy: Policy) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from algos.policies.load import make_policy

    config = GPT2Config(
        vocab_size=len(tiny_policy.tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128
    )
    assert config.resid_pdrop > 0
    policy = make_policy(GPT2LMHeadModel(config).train(), tiny_policy.tokenizer)
    learner = Learner(policy, algos.make("ppo"), LearnerConfig())
    metrics = learner.update(conversations(policy))
    assert metrics["ratio_first"] == pytest.approx(1.0, abs=1e-5)


def test_a_family_that_caps_its_logits_is_refused(tiny_policy: Policy) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from algos.policies.load import make_policy
    from convgym.errors import ModelError

    config = Gemma2Config(
        vocab_size=len(tiny_policy.tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.01,
    )
    policy = make_policy(Gemma2ForCausalLM(config), tiny_policy.tokenizer)
    with pytest.raises(ModelError, match="Gemma2ForCausalLM"):
        Learner(policy, algos.make("grpo"), LearnerConfig())


def test_bf16_keeps_float32_weights_and_small_steps_count(tiny_policy: Policy) -> None:
    """Pure bf16 weights would round a step of 5e-6 away; ours are float32 and move."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        learner = learner_of(tiny_policy, "grpo", precision="bf16", learning_rate=5e-6)
        before = weights(learner)
        metrics = learner.update(conversations(tiny_policy))
        assert metrics["mismatch"] > 1e-5  # the matrix products really were bf16
        moved = torch.cat([(before[name] != x).flatten() for name, x in weights(learner).items()])
        assert moved.float().mean() > 0.9
        with pytest.raises(ConfigError, match="new process"):
            learner_of(tiny_policy, "grpo", precision="fp32")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_the_policy_is_trained_in_place(tiny_policy: Policy) -> None:
    policy = fresh(tiny_policy)
    learner = Learner(policy, algos.make("reinforce"), LearnerConfig())
    before = next(policy.model.parameters()).detach().clone()
    learner.update(conversations(policy))
    assert not torch.equal(before, next(policy.model.parameters()))
    assert not policy.model.training

"""The critic's training, and what decides which tokens weigh how much: warm-up, entropy, mismatch, nothing to learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import algos
from algos.base import Algorithm, Batch, Credit, Minibatch, Scores
from algos.learner.checkpoint import load, save
from algos.learner.learner import Learner
from algos.learner.scores import score
from algos.maths.losses import truncated_importance
from algos.maths.reductions import loss_weights, surest_last
from algos.policies.load import Policy
from algos.ppo import PPO
from algos.reinforce import Reinforce
from algos.rollout.episodes import TokenEpisode, collate
from convgym.errors import ConfigError
from tests.algos.batches import Row, batch_of
from tests.algos.learner.made import (
    UNBOUND,
    assert_close,
    conversations,
    fresh,
    gradients,
    learner_of,
    weights,
)

CRITICS = ("ppo", "ppo_turn", "ppo_bilevel", "vapo")


def few_steps(name: str = "ppo", **fields: Any) -> Algorithm:
    return algos.make(name, **{"epochs": 2, "minibatches": 1, **fields})


def moved(before: dict[str, Tensor], learner: Learner, part: str) -> list[bool]:
    """Of each tensor of a part (``model.``, ``critic.``): whether a single bit of it changed."""
    return [not torch.equal(before[name], x) for name, x in weights(learner).items() if name.startswith(part)]


def through_a_checkpoint(learner: Learner, other: Learner, folder: Path) -> Learner:
    tensors, state = learner.snapshot()
    other.restore(load(save(folder, learner.step, tensors, {"learner": state})))
    return other


def adam_steps(learner: Learner, part: str) -> set[float]:
    """How many steps Adam has counted for the parameters of a part."""
    members = [p for name, p in learner.parameters.items() if name.startswith(part)]
    return {float(learner.adam.state[p]["step"]) if p in learner.adam.state else 0.0 for p in members}


# -- the critic --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", ["shared", "detached", "own"])
def test_in_the_warm_up_only_the_critic_learns(tiny_policy: Policy, trunk: str) -> None:
    learner = learner_of(tiny_policy, few_steps(), critic=trunk, critic_warmup=3)
    start = weights(learner)
    for seed in range(3):
        before = weights(learner)
        metrics = learner.update(conversations(tiny_policy, seed=seed))
        assert metrics["lr"] == 0.0 and metrics["kl"] < 1e-9 and metrics["ratio_first"] == pytest.approx(1, abs=1e-5)
        assert any(moved(before, learner, "critic.head"))
        assert not any(moved(start, learner, "model."))
    assert adam_steps(learner, "model.") == {0.0} and adam_steps(learner, "critic.head") == {6.0}
    assert learner.update(conversations(tiny_policy, seed=3))["lr"] > 0
    assert all(moved(start, learner, "model."))
    assert adam_steps(learner, "model.") == {2.0} and adam_steps(learner, "critic.head") == {8.0}


def test_after_the_warm_up_the_policy_begins_without_momentum(tiny_policy: Policy) -> None:
    """Its first step is that of a fresh optimiser: the length of each step of Adam's first is the learning rate."""
    algorithm = few_steps(epochs=1)
    learner = learner_of(tiny_policy, algorithm, critic_warmup=2, learning_rate=1e-3)
    start = weights(learner)
    for seed in range(2):
        learner.update(conversations(tiny_policy, seed=seed))
    found = gradients(learner, conversations(tiny_policy, seed=2))
    for name, grad in found.items():
        if name.startswith("model."):
            step = weights(learner)[name] - start[name]
            clear = grad.abs() > 1e-5  # where Adam's epsilon of 1e-8 is nothing
            torch.testing.assert_close(step[clear], -1e-3 * grad[clear].sign(), rtol=0, atol=2e-5)
            assert clear.any()


def test_a_warm_up_goes_on_from_a_checkpoint_bit_by_bit(tiny_policy: Policy, tmp_path: Path) -> None:
    def made() -> Learner:
        return learner_of(tiny_policy, few_steps("vapo"), critic_warmup=2)

    def run(learner: Learner, seeds: Sequence[int]) -> Learner:
        for seed in seeds:
            learner.update(conversations(tiny_policy, seed=seed))
        return learner

    straight = run(made(), range(4))
    cut = run(through_a_checkpoint(run(made(), [0]), made(), tmp_path), [1])
    cut = run(through_a_checkpoint(cut, made(), tmp_path), [2, 3])
    theirs = weights(cut)
    assert all(torch.equal(x, theirs[name]) for name, x in weights(straight).items())


def test_without_a_critic_nothing_warms_up(tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, "reinforce", critic_warmup=3)
    before = weights(learner)
    learner.update(conversations(tiny_policy))
    assert any(moved(before, learner, "model."))


@dataclass(frozen=True, kw_only=True)
class OnlyValue(PPO):
    """PPO without its policy."""

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.value is not None and batch.target is not None
        error = (scores.value - batch.target).square()
        return error, {"value_loss": error.detach()}


def test_a_trunk_of_its_own_learns_and_leaves_the_policy_alone(tiny_policy: Policy) -> None:
    learner = learner_of(tiny_policy, OnlyValue(minibatches=1), critic="own", critic_learning_rate=3e-3)
    before = weights(learner)
    episodes = conversations(tiny_policy)
    losses = [learner.update(episodes)["value_loss"] for _ in range(4)]
    assert not any(moved(before, learner, "model."))
    assert all(moved(before, learner, "critic.head")) and any(moved(before, learner, "critic.trunk"))
    assert losses[-1] < losses[0]
    found = gradients(learner, episodes)
    assert all((grad == 0).all() for name, grad in found.items() if name.startswith("model."))
    assert any((grad != 0).any() for name, grad in found.items() if name.startswith("critic.trunk"))


@pytest.mark.parametrize("name", CRITICS)
def test_every_critic_of_the_family_learns_a_constant_return(tiny_policy: Policy, name: str) -> None:
    episodes = [replace(e, rewards=np.eye(len(e.rewards), dtype=np.float32)[-1]) for e in conversations(tiny_policy)]
    learner = learner_of(
        tiny_policy,
        few_steps(name, epochs=4, gamma_turn=1.0, value_clip=None, **({} if name == "vapo" else {"lam": 1.0})),
        critic="own",
        critic_learning_rate=1e-2,
        learning_rate=1e-5,
    )
    losses = [learner.update(episodes)["value_loss"] for _ in range(8)]
    assert losses[-1] < losses[0] / 4


# -- tokens at which the policy is unsure ------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40, unique=True), st.integers(1, 100))
def test_the_share_of_tokens_is_the_one_asked_for(numbers: list[int], percent: int) -> None:
    share, count = percent / 100, len(numbers)
    entropy = torch.tensor([numbers], dtype=torch.float64)
    marked = surest_last(entropy, torch.ones_like(entropy, dtype=torch.bool), None, share)
    assert max(1, math.floor(share * count)) <= int(marked.sum()) <= math.ceil(share * count)
    assert (entropy[marked].min() > entropy[~marked]).all()


def test_ties_are_all_in_and_only_kept_action_tokens_are_asked() -> None:
    entropy = torch.tensor([[9.0, 1.0, 2.0, 2.0], [9.0, 8.0, 8.0, 8.0], [9.0, 0.5, 2.0, 0.1]])
    action = torch.tensor([[False, True, True, True]] * 3)
    keep = torch.tensor([True, False, True])
    marked = surest_last(entropy, action, keep, 0.2)  # 2 of 6 tokens at most, but three share the place
    assert marked.tolist() == [[False, False, True, True], [False] * 4, [False, False, True, False]]
    assert surest_last(entropy, action, keep, 1e-9).any()  # at least one
    assert torch.equal(surest_last(entropy, action, keep, 1.0), action & keep[:, None])
    assert not surest_last(entropy, action, torch.zeros(3, dtype=torch.bool), 0.5).any()


@pytest.mark.parametrize("reduce", ["token", "seq", "const", "seq_sum", "prompt", "turn"])
def test_the_normaliser_counts_only_tokens_that_train(reduce: str) -> None:
    """Two rows of 3 and 2 tokens, of which the first, first and last train: 2 in row 0 (turns 0 and 1), 1 in row 1."""
    batch = batch_of([Row(((1, 2), (1, 1)), (0.0, 1.0)), Row(((1, 2),), (1.0,), group=1, seed=1)])
    entropy = torch.tensor([[0.0, 5.0, 1.0, 0.0, 4.0], [0.0, 1.0, 3.0, 0.0, 0.0]])
    algorithm = algos.make("grpo", reduce=reduce, top_entropy=0.6)
    found = loss_weights(replace(batch, old_entropy=entropy), None, algorithm)
    row, single = {
        "token": (1 / 3, 1 / 3),
        "seq": (1 / 4, 1 / 2),
        "const": (1 / 4, 1 / 4),
        "seq_sum": (1 / 2, 1 / 2),
        "prompt": (1 / 4, 1 / 2),
        "turn": (1 / 3, 1 / 3),
    }[reduce]
    expected = torch.tensor([[0, row, 0, 0, row], [0, 0, single, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def by_hand(policy: Policy, algorithm: Algorithm, batch: Batch, factor: Any = None) -> dict[str, Tensor]:
    """Gradient of the whole batch in one piece, each token's loss times a factor of its own."""
    copy = fresh(policy)
    scores = score(copy.model, batch.tokens, batch.action)
    known = replace(batch, old_logp=scores.logp.detach(), old_entropy=scores.entropy.detach())
    credit = algorithm.credit(known)
    w = loss_weights(known, credit.keep, algorithm)
    w = w if factor is None else w * factor(scores.logp.detach())
    loss = (w * algorithm.loss(scores, Minibatch.of(known, credit))[0]).sum()
    named = dict(copy.model.named_parameters())
    return {f"model.{name}": grad for name, grad in zip(named, torch.autograd.grad(loss, list(named.values())))}


def named_alike(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: theirs[name] for name in ours}


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_learner_trains_at_unsure_tokens_alone(tiny_policy: Policy, share: float) -> None:
    algorithm = algos.make("grpo", top_entropy=share, reduce="token")
    episodes = conversations(tiny_policy)
    expected = by_hand(tiny_policy, algorithm, collate(episodes))
    everywhere = by_hand(tiny_policy, algos.make("grpo", reduce="token"), collate(episodes))
    for budget in (100, 10**6):
        learner = learner_of(tiny_policy, algorithm, max_grad_norm=UNBOUND, micro_tokens=budget)
        found = gradients(learner, episodes)
        assert_close(named_alike(expected, found), found, 1e-5)
    assert any((everywhere[name] - x).abs().max() > 1e-2 for name, x in found.items())


@pytest.mark.parametrize("name", [*CRITICS, "grpo"])
def test_a_critic_learns_at_every_token_so_it_refuses_a_share(name: str) -> None:
    fields = {"assignment": "gae"} if name == "grpo" else {}
    with pytest.raises(ConfigError, match=r"top_entropy.*1 with a critic"):
        algos.make(name, top_entropy=0.5, **fields)
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match="top_entropy"):
            algos.make("grpo", top_entropy=share)


# -- a sampler that is not the learner ---------------------------------------------------------------------


def misquoted(episodes: Sequence[TokenEpisode], spread: float = 0.6) -> list[TokenEpisode]:
    """The same conversations from a sampler whose log-probabilities are off."""
    rng = np.random.default_rng(5)
    return [
        replace(e, logp=(e.logp + e.action * rng.normal(0, spread, len(e.logp))).astype(np.float32)) for e in episodes
    ]


def test_weights_come_after_an_update_that_disagreed_and_go_after_one_that_agreed(tiny_policy: Policy) -> None:
    honest = conversations(tiny_policy)
    off = misquoted(honest)
    learner = learner_of(tiny_policy, "reinforce", learning_rate=0.0, mismatch_limit=0.1)
    batch = collate(off)
    apart = (score(tiny_policy.model, batch.tokens, batch.action).logp.detach() - batch.behaviour_logp)[batch.action]
    first, second, third, fourth = (learner.update(episodes) for episodes in (off, off, honest, honest))
    assert first["mismatch"] == pytest.approx(float(apart.abs().mean()), rel=1e-4) and first["mismatch"] > 0.3
    assert "importance_weight" not in first
    assert second["importance_weight"] == pytest.approx(float(apart.exp().clamp(max=2).mean()), rel=1e-4)
    assert third["importance_weight"] == pytest.approx(1, abs=1e-4) and third["mismatch"] < 1e-5
    assert "importance_weight" not in fourth


def test_demonstrations_have_no_sampler_to_correct_for(tiny_policy: Policy) -> None:
    """Nobody sampled a demonstration: its ``logp`` is 0, and a ratio to it would be the probability of the token."""
    shown = [replace(e, logp=np.zeros_like(e.logp)) for e in conversations(tiny_policy)]
    learner = learner_of(tiny_policy, "bc", learning_rate=0.0)
    first, second = learner.update(shown), learner.update(shown)
    assert first["mismatch"] > learner.config.mismatch_limit
    assert "importance_weight" not in second
    assert second["loss"] == first["loss"]


@pytest.mark.parametrize("cap", [1.0, 2.0])
@pytest.mark.parametrize("name", ["reinforce", "grpo"])
def test_each_tokens_loss_is_weighted_by_its_truncated_ratio(tiny_policy: Policy, name: str, cap: float) -> None:
    off = misquoted(conversations(tiny_policy))
    batch, algorithm = collate(off), algos.make(name)

    def factor(logp: Tensor) -> Tensor:
        ratio = (logp - batch.behaviour_logp).exp()
        assert (ratio > cap).any() and (ratio < 1).any()
        return ratio.clamp(max=cap)

    learner = learner_of(
        tiny_policy, name, learning_rate=0.0, max_grad_norm=UNBOUND, importance_cap=cap, micro_tokens=100
    )
    plain = gradients(learner, off)  # the update that measures is not corrected yet
    assert_close(named_alike(by_hand(tiny_policy, algorithm, batch), plain), plain, 1e-5)
    found = gradients(learner, off)
    assert_close(named_alike(by_hand(tiny_policy, algorithm, batch, factor), found), found, 1e-5)
    assert any((plain[key] - x).abs().max() > 1e-2 for key, x in found.items())


def test_truncated_importance_by_hand() -> None:
    logp = torch.tensor([0.0, -1.0, -3.0], requires_grad=True)
    found = truncated_importance(logp, torch.tensor([-1.0, -1.0, -1.0]), 2.0)
    assert found.tolist() == pytest.approx([2.0, 1.0, math.exp(-2)])  # e is cut to 2
    assert not found.requires_grad


def test_what_was_measured_survives_a_checkpoint(tiny_policy: Policy, tmp_path: Path) -> None:
    off = misquoted(conversations(tiny_policy))
    learner = learner_of(tiny_policy, "grpo")
    measured = learner.update(off)["mismatch"]
    other = through_a_checkpoint(learner, learner_of(tiny_policy, "grpo"), tmp_path)
    assert other.mismatch == learner.mismatch == measured > learner.config.mismatch_limit
    assert "importance_weight" in other.update(off)
    assert "importance_weight" in learner.update(off)
    theirs = weights(other)
    assert all(torch.equal(x, theirs[name]) for name, x in weights(learner).items())


def test_a_sampler_that_disagreed_is_not_taken_at_its_word(tiny_policy: Policy) -> None:
    """With several steps the old policy is scored anew: the sampler's numbers would hide the mismatch in the ratio."""
    off = misquoted(conversations(tiny_policy))
    learner = learner_of(tiny_policy, few_steps(), learning_rate=0.0)
    batch = collate(off)
    trusting = learner._observe(batch, None).old_logp
    assert trusting is not None and torch.equal(trusting, batch.behaviour_logp)
    learner.update(off)
    again = replace(batch, version=batch.version + 1)  # the present policy sampled again
    scored = learner._observe(again, None).old_logp
    assert scored is not None
    fresh_scores = score(tiny_policy.model, batch.tokens, batch.action).logp.detach()
    torch.testing.assert_close(scored, fresh_scores, rtol=0, atol=1e-5)


# -- nothing to learn --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Picky(Reinforce):
    """REINFORCE that keeps no conversation without a reward of 1."""

    def credit(self, batch: Batch) -> Credit:
        return super().credit(batch)._replace(keep=(batch.reward == 1).any(1))


DEAD: dict[str, Algorithm] = {
    "all groups dead": algos.make("grpo", drop_dead=True, kl={"beta": 0.1}, entropy=0.01),
    "all filtered": Picky(entropy=0.01),
    "all truncated": algos.make("grpo", mask_truncated=True, kl={"beta": 0.1}, minibatches=2, epochs=2),
    "unsure tokens of nothing": algos.make("grpo", drop_dead=True, top_entropy=0.2),
}


@pytest.mark.parametrize("algorithm", DEAD.values(), ids=DEAD.keys())
def test_where_nothing_is_live_momentum_moves_nothing(tiny_policy: Policy, algorithm: Algorithm) -> None:
    episodes = conversations(tiny_policy)
    learner = learner_of(tiny_policy, algorithm, learning_rate=1e-3, weight_decay=0.1)
    learner.update([replace(e, rewards=np.ones_like(e.rewards) * (i % 2)) for i, e in enumerate(episodes)])
    before, steps = weights(learner), adam_steps(learner, "model.")
    assert steps != {0.0}  # there is momentum, and a decay, that a step would follow
    dead = [replace(e, rewards=np.zeros_like(e.rewards), terminated=False) for e in episodes]
    metrics = learner.update(dead)
    assert not any(moved(before, learner, "model.")) and adam_steps(learner, "model.") == steps
    assert metrics["kept_rows"] == 0.0 and metrics["grad_norm"] == 0.0 and metrics["loss"] == 0.0
    assert all(math.isfinite(x) for x in metrics.values())
    assert learner.step == 2  # the update is over all the same
    learner.update([replace(e, rewards=np.ones_like(e.rewards) * (i % 2)) for i, e in enumerate(episodes)])
    assert any(moved(before, learner, "model."))

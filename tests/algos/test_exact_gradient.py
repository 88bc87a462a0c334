"""The expected update against the true policy gradient, by enumeration of every batch that can be sampled.

The dialogue: two turns of one token out of three, the first of which ends the conversation at once. Seven
trajectories of two lengths, rewards on both turns.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import algos
from algos.base import KL, Algorithm, Batch, Credit, Scores
from algos.reinforce import Reinforce
from algos.remax import ReMax
from tests.algos.batches import judged

REWARD = {  # what a turn brings depends on what came before it, never on what follows
    (0,): (1.0,),
    (1, 0): (0.5, -1.0),
    (1, 1): (0.5, 3.0),
    (1, 2): (0.5, 0.0),
    (2, 0): (-0.25, 1.0),
    (2, 1): (-0.25, 0.5),
    (2, 2): (-0.25, 0.5),
}
PLANS = list(REWARD)


def policy() -> Tensor:
    """Logits [4,3]: of the first token, and of the second after each first one."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()


def steps(plan: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(0 if k == 0 else 1 + plan[0], token) for k, token in enumerate(plan)]


def logp_of(logits: Tensor, plan: tuple[int, ...]) -> Tensor:
    """[4]: observation, token, observation, token; 0 off action."""
    table = logits.log_softmax(1)
    zero = torch.zeros((), dtype=torch.float64)
    chosen = [table[s, a] for s, a in steps(plan)]
    return torch.stack([x for k in range(2) for x in (zero, chosen[k] if k < len(chosen) else zero)])


def batch_of(plans: tuple[tuple[int, ...], ...], logp: Tensor, reference: Tensor | None) -> Batch:
    """One group that holds these conversations."""
    rows, size = len(plans), torch.tensor([len(plan) for plan in plans])
    turn = torch.tensor([[-1, 0, -1, 1 if len(plan) > 1 else -1] for plan in plans])
    rewards = [(*REWARD[plan], 0.0)[:2] for plan in plans]
    return Batch(
        tokens=torch.zeros(rows, 4, dtype=torch.int64),
        action=turn >= 0,
        turn=turn,
        reward=torch.tensor(rewards, dtype=torch.float64),
        n_turns=size,
        group=torch.zeros(rows, dtype=torch.int64),
        terminated=torch.ones(rows, dtype=torch.bool),
        state_key=torch.zeros(rows, 2, dtype=torch.int64),
        version=torch.zeros(rows, dtype=torch.int64),
        behaviour_logp=logp,
        old_logp=logp,
        ref_logp=None if reference is None else torch.stack([logp_of(reference, p).detach() for p in plans]),
    )


def expected_ascent(algorithm: Algorithm, size: int, reference: Tensor | None = None) -> Tensor:
    """Sum over all groups of ``size`` episodes: their probability times the update's direction."""
    logits = policy()
    logps = {plan: logp_of(logits, plan) for plan in PLANS}
    total = torch.zeros((), dtype=torch.float64)
    for plans in itertools.combinations_with_replacement(PLANS, size):
        orders = math.factorial(size) / math.prod(math.factorial(n) for n in Counter(plans).values())
        logp = torch.stack([logps[plan] for plan in plans])
        _, data, weights = judged(algorithm, batch_of(plans, logp.detach(), reference))
        loss, _ = algorithm.loss(Scores(logp, torch.zeros_like(logp)), data)
        chance = orders * logp.detach().sum().exp()
        total = total - chance * (weights * loss)[data.action].sum()
    return torch.autograd.grad(total, logits)[0]


def true_gradient(gamma: float = 1.0, beta: float = 0.0, reference: Tensor | None = None) -> Tensor:
    """Gradient of the expected return, less ``beta`` times the divergence of whole conversations."""
    logits = policy()
    value = torch.zeros((), dtype=torch.float64)
    for plan in PLANS:
        logp = logp_of(logits, plan).sum()
        gain = torch.tensor(sum(r * gamma**k for k, r in enumerate(REWARD[plan])), dtype=torch.float64)
        if reference is not None:
            gain = gain - beta * (logp - logp_of(reference, plan).sum())
        value = value + logp.exp() * gain
    return torch.autograd.grad(value, logits)[0]


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_reinforce_is_unbiased() -> None:
    same(expected_ascent(algos.make("reinforce", baseline="none", reduce="seq_sum"), 1), true_gradient())
    same(expected_ascent(algos.make("reinforce", baseline="none", reduce="seq_sum"), 2), true_gradient())


class Remembering(Reinforce):
    """REINFORCE in the middle of a run: its running baseline is 0.7."""

    def credit(self, batch: Batch) -> Credit:
        return super().credit(dataclasses.replace(batch, state={"return_ema": 0.7}))


def test_a_running_baseline_leaves_reinforce_unbiased() -> None:
    same(expected_ascent(Remembering(baseline="ema", reduce="seq_sum"), 2), true_gradient())


class WithGreedy(ReMax):
    """ReMax given the return of the likeliest conversation, which it subtracts from every row."""

    def credit(self, batch: Batch) -> Credit:
        logits = policy().detach()
        first = int(logits[0].argmax())
        plan = (first,) if first == 0 else (first, int(logits[1 + first].argmax()))
        greedy = torch.full((batch.size,), sum(REWARD[plan]), dtype=torch.float64)
        return super().credit(dataclasses.replace(batch, greedy_return=greedy))


@pytest.mark.parametrize("size", [1, 2])
def test_the_greedy_baseline_leaves_remax_unbiased(size: int) -> None:
    same(expected_ascent(WithGreedy(reduce="seq_sum"), size), true_gradient())


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_reinforce_pp_follows_the_discounted_return_from_each_token_on(gamma: float) -> None:
    """Discounted from the token on, and not from the beginning: the first turn's gradient is the true one, the
    second's is not shrunk by the discount; whitening divides, and is switched off."""
    algorithm = algos.make("reinforce_pp", whiten=False, gamma_turn=gamma, reduce="seq_sum")
    found, truth = expected_ascent(algorithm, 2), true_gradient(gamma)
    same(found[0], truth[0])
    same(gamma * found[1:], truth[1:])


@pytest.mark.parametrize("centre", [0.0, 0.5])
def test_topr_is_unbiased_while_on_policy(centre: float) -> None:
    same(expected_ascent(algos.make("topr", centre=centre, reduce="seq_sum"), 2), true_gradient())


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_raft_climbs_the_probability_of_success(threshold: float) -> None:
    logits = policy()
    good = [plan for plan in PLANS if sum(REWARD[plan]) > threshold]
    chance = torch.stack([logp_of(logits, plan).sum() for plan in good]).exp().sum()
    truth = torch.autograd.grad(chance, logits)[0]
    same(expected_ascent(algos.make("raft", threshold=threshold, reduce="seq_sum"), 1), truth)


@pytest.mark.parametrize("size", [2, 3])
def test_rloo_is_unbiased(size: int) -> None:
    same(expected_ascent(algos.make("rloo"), size), true_gradient())


@pytest.mark.parametrize("name", ["dr_grpo", "reinforce"])
def test_centring_by_the_own_group_shrinks_the_gradient_by_a_known_factor(name: str) -> None:
    same(expected_ascent(algos.make(name, reduce="seq_sum"), 3), 2 / 3 * true_gradient())


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_discounted_returns_follow_the_discounted_objective(gamma: float) -> None:
    same(expected_ascent(algos.make("rloo", gamma_turn=gamma), 2), true_gradient(gamma))


def test_each_turn_by_what_follows_it_is_unbiased() -> None:
    process = algos.make("grpo", baseline="none", scale="none", assignment="process", reduce="seq_sum")
    same(expected_ascent(process, 1), true_gradient())


@pytest.mark.parametrize(("name", "fields"), [("reinforce", {"baseline": "none"}), ("rloo", {})])
def test_k1_in_the_reward_follows_the_divergence_of_whole_conversations(name: str, fields: dict[str, Any]) -> None:
    reference = policy().detach().flip(0)
    algorithm = algos.make(name, kl=KL(0.3, "reward_k1"), reduce="seq_sum", **fields)
    same(expected_ascent(algorithm, 2, reference), true_gradient(1.0, 0.3, reference))


@pytest.mark.parametrize(
    "fields",
    [{"reduce": "seq_sum"}, {"scale": "none", "reduce": "seq"}, {"scale": "none", "reduce": "token"}],
)
def test_dividing_by_deviations_or_sampled_lengths_is_biased_as_is_well_known(fields: dict[str, Any]) -> None:
    found, truth = expected_ascent(algos.make("grpo", **fields), 2), true_gradient()
    scale = (found * truth).sum() / truth.square().sum()
    assert scale > 0
    assert (found - scale * truth).norm() > 0.01 * scale * truth.norm()

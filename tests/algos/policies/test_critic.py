"""The value head starts at zero and reads what it should."""

from __future__ import annotations

import pytest
import torch

from algos.learner.scores import score
from algos.policies.critic import Trunk, ValueHead, decoder, new_critic
from algos.policies.load import Policy

TOKENS = torch.tensor([[8, 9, 10, 11]])
ACTION = torch.tensor([[False, True, True, True]])


@pytest.mark.parametrize("trunk", ["shared", "detached", "own"])
def test_an_untrained_critic_says_exactly_zero(tiny_policy: Policy, trunk: Trunk) -> None:
    critic = new_critic(tiny_policy.model, trunk=trunk, seed=3)
    values = score(tiny_policy.model, TOKENS, ACTION, critic=critic).value
    assert values is not None and values.shape == TOKENS.shape
    assert not values.any()


def test_the_head_is_linear_relu_dropout_linear() -> None:
    head = ValueHead(6, width=5)
    torch.nn.init.normal_(head.outer.weight)
    hidden = torch.randn(3, 2, 6)
    inner = torch.relu(hidden @ head.inner.weight.T + head.inner.bias)
    by_hand = inner @ head.outer.weight[0] + head.outer.bias
    torch.testing.assert_close(head.eval()(hidden), by_hand)
    torch.manual_seed(0)
    assert not torch.equal(head.train()(hidden), by_hand)  # dropout is there, in training mode only


def test_shared_passes_gradient_to_the_trunk_and_the_others_do_not(tiny_policy: Policy) -> None:
    for trunk, reaches in (("shared", True), ("detached", False), ("own", False)):
        tiny_policy.model.zero_grad(set_to_none=True)
        critic = new_critic(tiny_policy.model, trunk=trunk)  # type: ignore[arg-type]
        torch.nn.init.normal_(critic.head.outer.weight)
        values = score(tiny_policy.model, TOKENS, ACTION, critic=critic).value
        assert values is not None and (values[ACTION] != 0).all()
        values.sum().backward()
        assert any(p.grad is not None for p in tiny_policy.model.parameters()) == reaches
    tiny_policy.model.zero_grad(set_to_none=True)


def test_a_trunk_of_its_own_is_a_copy(tiny_policy: Policy) -> None:
    critic = new_critic(tiny_policy.model, trunk="own")
    assert critic.trunk is not None
    own, theirs = list(critic.trunk.parameters()), list(decoder(tiny_policy.model).parameters())
    assert all(torch.equal(a, b) and a is not b for a, b in zip(own, theirs, strict=True))


def test_the_seed_decides_and_the_global_generator_is_left_alone(tiny_policy: Policy) -> None:
    state = torch.get_rng_state()
    one, same, other = (new_critic(tiny_policy.model, seed=seed).head.inner.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())

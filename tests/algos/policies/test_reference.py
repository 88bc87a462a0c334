"""The reference is a copy that never moves."""

from __future__ import annotations

import copy

import torch

from algos.policies.load import Policy
from algos.policies.reference import frozen_copy


def test_a_frozen_copy_stays_when_the_policy_moves(tiny_policy: Policy) -> None:
    model = copy.deepcopy(tiny_policy.model).train()
    reference = frozen_copy(model)
    tokens = torch.tensor([[8, 9, 10]])
    before = reference(input_ids=tokens).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(reference(input_ids=tokens).logits, before)
    assert not torch.equal(model(input_ids=tokens).logits, before)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not any(module.training for module in reference.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())

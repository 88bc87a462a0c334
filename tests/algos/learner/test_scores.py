"""Scores at the action positions are those of the whole model."""

from __future__ import annotations

import pytest
import torch

from algos.learner import scores as scores_module
from algos.learner.scores import linear_head, score
from algos.policies.critic import new_critic
from algos.policies.load import Policy
from algos.rollout.episodes import collate
from tests.algos.learner.made import conversations, fresh


def batch_of(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    batch = collate(conversations(policy))
    return batch.tokens, batch.action


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_selected_log_probabilities_and_entropy_are_those_of_the_full_logits(
    tiny_policy: Policy, temperature: float
) -> None:
    tokens, action = batch_of(tiny_policy)
    scores = score(tiny_policy.model, tokens, action, temperature=temperature)
    every = torch.log_softmax(tiny_policy.model(input_ids=tokens).logits / temperature, -1)  # [B,T,V]
    logp = every[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    entropy = -(every.exp() * every).sum(-1)[:, :-1]
    acts = action[:, 1:]
    torch.testing.assert_close(scores.logp[:, 1:][acts], logp[acts], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.entropy[:, 1:][acts], entropy[acts], rtol=0, atol=1e-5)
    assert not scores.logp[~action].any() and not scores.entropy[~action].any()
    assert scores.value is None


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_chunks_change_neither_scores_nor_gradients(
    tiny_policy: Policy, entropy_grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, action = batch_of(tiny_policy)

    def scored() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = fresh(tiny_policy).model
        scores = score(model, tokens, action, entropy_grad=entropy_grad)
        weight = torch.linspace(-1, 1, scores.logp.numel()).view_as(scores.logp)
        total = (weight * (scores.logp + scores.entropy)).sum()
        grads = torch.autograd.grad(total, list(model.parameters()))
        return torch.stack([scores.logp, scores.entropy]).detach(), list(grads)

    whole, whole_grads = scored()
    monkeypatch.setattr(scores_module, "CHUNK_ELEMENTS", 3 * len(tiny_policy.tokenizer))
    chunked, chunked_grads = scored()
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)
    for ours, theirs in zip(chunked_grads, whole_grads):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_entropy_carries_a_gradient_only_if_asked(tiny_policy: Policy) -> None:
    tokens, action = batch_of(tiny_policy)
    assert score(tiny_policy.model, tokens, action, entropy_grad=True).entropy.requires_grad
    assert not score(tiny_policy.model, tokens, action).entropy.requires_grad


def test_the_future_does_not_reach_a_score(tiny_policy: Policy) -> None:
    """Changing what follows an action token changes no score up to it, the critic's included."""
    tokens, action = batch_of(tiny_policy)
    critic = new_critic(tiny_policy.model)
    torch.nn.init.normal_(critic.head.outer.weight)
    column = int(action.any(0).nonzero()[3])
    changed = tokens.clone()
    changed[:, column + 1 :] = 11
    before = score(tiny_policy.model, tokens, action, critic=critic)
    after = score(tiny_policy.model, changed, action, critic=critic)
    for ours, theirs in zip(before, after):
        assert ours is not None and theirs is not None
        assert torch.equal(ours[:, : column + 1], theirs[:, : column + 1])
        assert not torch.equal(ours, theirs)


def test_a_plain_llama_has_a_linear_head(tiny_policy: Policy) -> None:
    assert linear_head(tiny_policy.model)

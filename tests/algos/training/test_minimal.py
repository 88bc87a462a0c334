"""The one-page REINFORCE: its gradient is the learner's, and it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from algos.policies.load import Policy, load_policy
from algos.reinforce import Reinforce
from algos.rollout.episodes import TokenEpisode
from algos.training.minimal import reinforce_loss, train
from tests.algos.learner.made import UNBOUND, assert_close, conversations, fresh, gradients, learner_of
from tests.algos.training.made import LETTERS


def plain_gradients(policy: Policy, episodes: list[TokenEpisode], temperature: float) -> dict[str, torch.Tensor]:
    model = fresh(policy).model
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(reinforce_loss(model, episodes, temperature), list(named.values()))
    return {f"model.{name}": grad for name, grad in zip(named, grads)}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.8, 1.0])
def test_its_gradient_is_the_learners(tiny_policy: Policy, seed: int, temperature: float) -> None:
    """Two implementations that share nothing but the model: whole logits one by one, against the batched one."""
    episodes = conversations(tiny_policy, 6, seed=seed, temperature=temperature)
    plain = plain_gradients(tiny_policy, episodes, temperature)
    learner = learner_of(tiny_policy, Reinforce(), max_grad_norm=UNBOUND, temperature=temperature, micro_tokens=100)
    learnt = gradients(learner, episodes)
    assert_close({name: plain[name] for name in learnt}, learnt, 1e-6)


def test_it_learns(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = train(load_policy(model_folder), LETTERS, updates=20, episodes=32, learning_rate=1e-2, max_turn_tokens=6)
    assert sum(history[-3:]) / 3 > sum(history[:3]) / 3 + 0.2
    assert capsys.readouterr().out.count("update") == 20

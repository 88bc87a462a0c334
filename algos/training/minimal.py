"""REINFORCE on conversations, end to end on one page: collect, judge, differentiate, step.

This is the tutorial, and the learner's oracle: its gradient is computed in the plainest way there is, one
conversation at a time through the whole model, and the learner's must equal it (a test). Try it:

    python -m algos.training.minimal --env convgym/TextBandit-v0
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from algos.policies.load import Policy, load_policy
from algos.rollout.collect import Collector, group_requests
from algos.rollout.episodes import TokenEpisode
from algos.training.envs import make_envs


def reinforce_loss(model: nn.Module, episodes: Sequence[TokenEpisode], temperature: float = 1.0) -> Tensor:
    """``-(1/N) sum_i (G_i - b) sum_t log pi(a_t | s_t)``, whose gradient is the policy gradient.

    N counts the agent's tokens in all conversations, G_i is the return of conversation i, b the mean return.
    Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement
        learning".

    Args:
        model: Causal language model: token ids ``[1,T]`` to ``.logits`` ``[1,T,V]``.
        episodes: Conversations that the model sampled.
        temperature: What the logits were divided by when it did.
    """
    baseline = sum(episode.episode_return for episode in episodes) / len(episodes)
    n_tokens = sum(int(episode.action.sum()) for episode in episodes)
    loss = torch.zeros(())
    for episode in episodes:
        ids = torch.from_numpy(episode.ids)  # [T] the whole conversation: instructions, user, agent, tools
        agents = torch.from_numpy(episode.action)  # [T] true where the agent chose the token
        logits = model(input_ids=ids[None]).logits[0] / temperature  # [T,V]
        # The logits at t are about token t + 1, so the first token has none and the last logits have no
        # token.
        logp = torch.log_softmax(logits[:-1], -1).gather(1, ids[1:, None])[:, 0]  # [T-1]
        advantage = episode.episode_return - baseline
        loss = loss - advantage * logp[agents[1:]].sum() / n_tokens
    return loss


def train(
    policy: Policy,
    env: str,
    *,
    updates: int = 20,
    episodes: int = 64,
    learning_rate: float = 5e-4,
    max_turn_tokens: int = 64,
    seed: int = 0,
) -> list[float]:
    """Trains the policy in place.

    Args:
        policy: What to train.
        env: Environment id.
        updates: Gradient steps.
        episodes: Conversations for each of them.
        learning_rate: AdamW's.
        max_turn_tokens: Most tokens that the agent may say in one turn.
        seed: Decides scenarios, users and samples.

    Returns:
        Mean return of the conversations of each update.
    """
    envs = make_envs(env, episodes, {})
    collector = Collector(envs, policy, max_turn_tokens=max_turn_tokens)
    optimiser = torch.optim.AdamW(policy.model.parameters(), lr=learning_rate, weight_decay=0.0)
    history = []
    for step in range(updates):
        # 1. Talk: a new scenario for each conversation.
        requests = group_requests(seed, first_group=step * episodes, n_groups=episodes, group_size=1)
        collected = collector.collect(requests).episodes
        # 2. Make what went better than average likelier, and what went worse less likely.
        reinforce_loss(policy.model, collected).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        # 3. See how it goes.
        history.append(sum(episode.episode_return for episode in collected) / len(collected))
        success = sum(episode.success for episode in collected) / len(collected)
        print(f"update {step + 1:3d}  return {history[-1]:6.3f}  success {success:4.0%}")
    envs.close()
    return history


def main(env: str = "convgym/TextBandit-v0", model: str = "nano", updates: int = 20, seed: int = 0) -> None:
    """Train with REINFORCE, without the learner.

    Args:
        env: Environment id.
        model: Embedded checkpoint or folder.
        updates: Gradient steps.
        seed: Decides scenarios, users and samples.
    """
    torch.set_num_threads(1)
    train(load_policy(model), env, updates=updates, seed=seed)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)

"""stateset-agents on its own benchmark work: a rollout and one training step of its multi-turn GRPO trainer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.serve import Play, serve, timed


def prepare(job: Mapping[str, Any]) -> Play:
    """Loads the model and the trainer; plays one rollout and one training step a round."""
    os.environ["WANDB_MODE"] = "disabled"
    import torch
    from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
    from stateset_agents.core.environment import ConversationEnvironment
    from stateset_agents.core.reward import create_customer_service_reward
    from stateset_agents.training.config import TrainingConfig
    from stateset_agents.training.trainer import MultiTurnGRPOTrainer

    loop = asyncio.new_event_loop()
    turns, episodes, new = job["turns"], job["episodes"], job["new"]
    agent = MultiTurnAgent(
        AgentConfig(
            model_name=job["folder"], max_new_tokens=new, torch_dtype="float32", temperature=1.0, top_p=1.0,
            top_k=0, repetition_penalty=1.0,
        )
    )  # fmt: skip
    loop.run_until_complete(agent.initialize())
    scenarios = [{"id": "late", "topic": "refund", "user_turns": list(job["user"][:turns])}]
    config = TrainingConfig(
        num_episodes=1, num_generations=episodes, gradient_accumulation_steps=1, beta=0.0, use_reference_model=False,
        entropy_coef=0.0, bf16=False, learning_rate=5e-6, lr_scheduler_type="constant", report_to="none",
        batched_rollouts=True, generation_batch_size=episodes, seed=0,
    )  # fmt: skip
    environment = ConversationEnvironment(scenarios=scenarios, max_turns=turns)
    trainer = MultiTurnGRPOTrainer(agent, environment, create_customer_service_reward(), config)
    loop.run_until_complete(trainer.initialize())
    torch.set_num_threads(job["threads"])

    def play(ask: Mapping[str, Any]) -> dict[str, float]:
        groups, rollout = timed(lambda: loop.run_until_complete(trainer.generate_trajectories(scenarios, episodes)))
        _, update = timed(lambda: loop.run_until_complete(trainer.training_step(groups)))
        sampled = sum(
            len(turn.metadata["token_ids"])
            for trajectory in groups[0].trajectories
            for turn in trajectory.turns
            if turn.role == "assistant"
        )
        return {
            "cpu": rollout["cpu"] + update["cpu"],
            "wall": rollout["wall"] + update["wall"],
            "generation_cpu": rollout["cpu"],
            "tokens": sampled,
            "episodes": episodes,
        }

    play({})
    return play


if __name__ == "__main__":
    serve(prepare, "stateset-agents", "transformers", "torch")

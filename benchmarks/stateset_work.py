"""The benchmark work of stateset-agents, done by this one: ``python -m benchmarks.stateset_work``.

One scripted scenario, 8 conversations x 3 agent turns x exactly 32 sampled tokens, a randomly initialised Llama of
about 3.3M parameters (4 layers x 256, 4 heads, no sharing of key-value heads) in float32 on one thread: a rollout
and one GRPO update. CPU seconds are comparable with a measurement of that package on the same kind of machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import resource
import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

import algos
from algos.learner.learner import Learner, LearnerConfig
from algos.policies.embedded import Shape, new_model, train_tokenizer
from algos.policies.load import Policy, make_policy
from algos.rollout.collect import Collector, group_requests
from algos.rollout.episodes import TokenEpisode
from benchmarks.throughput.work import ScriptedUser
from convgym.vector import ConversationVectorEnv

SHAPE = Shape(layers=4, hidden=256, heads=4, kv_heads=4, mlp=688, vocab=512, context=2048)
USER = (
    "My order 1234 is two weeks late. Where is it?",
    "It never arrived. I want a refund.",
    "How long will that take?",
    "Can I talk to a manager?",
    "Will you email me?",
    "Okay, thanks.",
)
SENTENCES = (
    "i am sorry about the delay",
    "i understand and i am happy to help",
    "please check your email for the tracking link",
    "thank you for your patience",
    "your refund has been processed",
    "can you share your order number",
    "the package is in transit",
    "where is my package",
    "it never arrived",
    "the payment failed twice",
)


@dataclass(frozen=True)
class Options:
    """Measures a rollout and an update on the benchmark work of stateset-agents."""

    episodes: int = 8
    """Conversations in the group."""
    turns: int = 3
    """Agent turns."""
    tokens: int = 32
    """Tokens a turn, exactly."""
    repeat: int = 5
    """Measured repetitions, after one that is not counted; the median is reported."""


def make_benchmark_policy() -> Policy:
    """The model of the work, which never ends a turn of its own accord."""
    texts = [f"{a}. {b}." for a, b in itertools.product(SENTENCES, SENTENCES)] + list(USER)
    tokenizer = train_tokenizer(texts, SHAPE.vocab)
    policy = make_policy(new_model(SHAPE, tokenizer), tokenizer, name="stateset-work")
    return dataclasses.replace(policy, eos_ids=frozenset())


def measure(options: Options) -> dict[str, float]:
    """Medians over repetitions: CPU seconds of a rollout and of an update, and what they did."""
    policy = make_benchmark_policy()
    envs = ConversationVectorEnv([lambda: ScriptedUser([USER[: options.turns]])] * options.episodes)
    collector = Collector(envs, policy, max_turn_tokens=options.tokens)
    learner = Learner(policy, algos.make("grpo"), LearnerConfig(learning_rate=5e-6, device="cpu"))
    rollout, update, episodes = [], [], list[TokenEpisode]()
    for repetition in range(options.repeat + 1):
        start = time.process_time()
        episodes = collector.collect(group_requests(0, repetition, 1, options.episodes), version=learner.step).episodes
        sampled = time.process_time()
        learner.update(episodes)
        rollout.append(sampled - start)
        update.append(time.process_time() - sampled)
    tokens = sum(int(episode.action.sum()) for episode in episodes)
    assert tokens == options.episodes * options.turns * options.tokens, tokens
    return {
        "parameters": float(sum(p.numel() for p in policy.model.parameters())),
        "sampled_tokens": float(tokens),
        "context_tokens": float(sum(len(episode.ids) for episode in episodes) - tokens),
        "rollout_cpu_seconds": float(np.median(rollout[1:])),
        "update_cpu_seconds": float(np.median(update[1:])),
        "tokens_per_cpu_second": tokens / float(np.median(rollout[1:])),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Command line."""
    options = tyro.cli(Options)
    torch.set_num_threads(1)
    found = measure(options)
    table = Table(
        "measure", "value", title=f"{options.episodes} episodes x {options.turns} turns x {options.tokens} tokens"
    )
    for name, value in found.items():
        table.add_row(name, f"{value:,.4g}")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

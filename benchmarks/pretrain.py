"""Makes the embedded checkpoints again from seeds: ``python -m benchmarks.pretrain nano``.

Scripted clerks of mixed skill play the environments; a tokenizer is learned from what was said; three models
that differ in their initialisation imitate the clerks' messages, through the same learner and chat bridge
that reinforcement learning uses. The checkpoints ship with the package, because benchmark results must be
comparable between machines; this command reproduces them and says how far the reproduction is from what
ships.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

import algos
from algos.learner.learner import Learner, LearnerConfig
from algos.policies.embedded import new_model, save_policy, train_tokenizer
from algos.policies.load import EMBEDDED, Policy, load_policy, make_policy
from algos.rollout.chat import Chat
from algos.rollout.collect import Collector, group_requests
from algos.rollout.episodes import TokenEpisode
from convgym import ENVIRONMENTS, agents
from convgym.seeding import derive_seed
from convgym.vector import ConversationVectorEnv

ROOT = 20261122  # seed of everything here

Dialogue = list[dict[str, str]]


@dataclass(frozen=True)
class Stage:
    """A schedule from its warm-up to its end, with an optimiser of its own.

    Attributes:
        epochs: Passes over the corpus.
        learning_rate: Peak of the cosine schedule.
        opening: Passes over the dialogues of ``OPENING`` alone before the passes over all of them.
    """

    epochs: int
    learning_rate: float
    opening: int = 0


@dataclass(frozen=True)
class Recipe:
    """What a checkpoint is made from.

    Attributes:
        envs: ``{id: (keywords, dialogues, share of dialogues by the oracle)}``; the others are a clerk's.
        vocab: Size of the vocabulary.
        stages: How it learns. The checkpoint is stored after each of them, and the next begins with what was stored.
        batch: Dialogues an optimiser step.
        micro_tokens: Most tokens in a micro-batch; the fastest on one core.
        precision: Of the learner's matrix products; bf16 where the model is large enough to gain by it.
        seeds: Of the initialisations; checkpoint ``NAME-k`` comes from the k-th.
        half: Whether the weights are stored in float16, which halves the package; they are loaded as float32.
    """

    envs: Mapping[str, tuple[Mapping[str, Any], int, float]]
    vocab: int
    stages: tuple[Stage, ...]
    batch: int
    micro_tokens: int = 1024
    precision: Literal["fp32", "bf16"] = "fp32"
    seeds: tuple[int, ...] = (0,)
    half: bool = False


MICRO = {
    f"convgym/{name}-v0": ({"difficulty": 2}, 600, 0.0)
    for name in ("TextBandit", "AskOrAct", "DelayedConsent", "Haggle")
}
"""The micro environments, which every checkpoint knows."""

OPENING = {"convgym/CustomerService-v0", "convgym/SlotFilling-v0", *MICRO}
"""Short dialogues full of names to repeat: copying emerges on them within two million tokens, on all twelve
families at once it had not after seven."""

RECIPES: dict[str, Recipe] = {
    "nano": Recipe(
        envs={
            "convgym/CustomerService-v0": ({"difficulty": 2}, 8_000, 0.0),
            "convgym/SlotFilling-v0": ({"difficulty": 2}, 6_000, 0.0),
            **MICRO,
        },
        vocab=512,
        stages=(Stage(6, 4e-3),),  # after 4 epochs, one initialisation of three did not copy item names yet
        batch=32,
        seeds=(1, 2, 3),  # from 0 copying came a pass later: success of .10 at the start is too little for the suite
    ),
    "mini": Recipe(
        envs={env_id: ({"difficulty": 2}, 2_000, 0.0) for env_id in ENVIRONMENTS if env_id not in MICRO} | MICRO,
        vocab=1024,
        stages=(Stage(2, 2e-3, opening=3), Stage(1, 1.5e-3)),  # after the first it repeats words, but not every name
        batch=16,
        micro_tokens=512,
        precision="bf16",
        half=True,
    ),
}


def play(env_id: str, keywords: Mapping[str, Any], count: int, oracle_share: float) -> Iterator[Dialogue]:
    """Lets scripted agents play ``count`` conversations and yields their transcripts."""
    env = gym.make(env_id, **keywords)
    cast = {name: agents.make(name, env, seed=ROOT) for name in ("clerk", "oracle")}
    for i in range(count):
        agent = cast["oracle" if (i + 0.5) * oracle_share % 1.0 > 1.0 - oracle_share else "clerk"]
        obs, info = env.reset(seed=derive_seed(ROOT, "pretrain", env_id, i))
        agent.reset(obs, info)
        done = False
        while not done:
            obs, _, terminated, truncated, info = env.step(agent.act(obs, info))
            done = terminated or truncated
        yield [message.to_dict() for message in env.unwrapped.transcript()]  # type: ignore[attr-defined]


def make_corpus(recipe: Recipe) -> list[tuple[str, Dialogue]]:
    """Plays every environment of a recipe; returns its id with each dialogue."""
    return [
        (env_id, dialogue)
        for env_id, (keywords, count, share) in recipe.envs.items()
        for dialogue in track(play(env_id, keywords, count, share), env_id, count)
    ]


def corpus_hash(corpus: Sequence[Dialogue]) -> str:
    """SHA-256 of a corpus, to tell whether two machines learned from the same words."""
    digest = hashlib.sha256()
    for dialogue in corpus:
        digest.update(json.dumps(dialogue, ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()


def as_episode(chat: Chat, dialogue: Dialogue) -> TokenEpisode:
    """A transcript as a token episode whose action tokens are the agent's words and ends of turn."""
    ids, action, turn = chat.demonstration(dialogue)
    turns = int(turn.max()) + 1
    return TokenEpisode(
        ids=ids, logp=np.zeros(len(ids), np.float32), action=action, turn=turn,
        rewards=np.zeros(turns, np.float32), state_keys=np.zeros(turns, np.int64), group=0, env_seed=0, sample_seed=0,
    )  # fmt: skip


def passes(recipe: Recipe, stage: int, envs: Sequence[str], seed: int) -> Iterator[list[list[int]]]:
    """Yields the batches of each pass of a stage, as indices of dialogues.

    Args:
        recipe: How many passes, and how large a batch is.
        stage: Number of the stage.
        envs: Environment of each dialogue.
        seed: Of the order.
    """
    opening, now = np.flatnonzero([env_id in OPENING for env_id in envs]), recipe.stages[stage]
    before = sum(each.opening + each.epochs for each in recipe.stages[:stage])
    for number in range(now.opening + now.epochs):
        pool = opening if number < now.opening else np.arange(len(envs))
        order = np.random.default_rng(derive_seed(ROOT, "order", seed, before + number)).permutation(pool)
        yield order[: len(order) // recipe.batch * recipe.batch].reshape(-1, recipe.batch).tolist()


def clone(
    policy: Policy, episodes: Sequence[TokenEpisode], plan: Sequence[list[list[int]]], config: LearnerConfig,
    console: Console,
) -> list[float]:  # fmt: skip
    """Trains a policy in place by behaviour cloning; returns the loss of each pass (nats per action token)."""
    if config.precision == "bf16" and config.device == "cpu":  # the fused kernel is slow in bf16 there
        policy.model.set_attn_implementation("eager")
    learner = Learner(policy, algos.make("bc"), config)
    losses = []
    for number, batches in enumerate(plan, 1):
        found = [
            learner.update([episodes[i] for i in batch])["loss"]
            for batch in track(batches, f"pass {number}/{len(plan)}", console=console, transient=True)
        ]
        losses.append(float(np.mean(found)))
        console.print(f"pass {number}: loss {losses[-1]:.4f}, {np.mean(found[-100:]):.4f} at its end")
    return losses


def store(policy: Policy, folder: Path, half: bool) -> Path:
    """Writes a checkpoint; the policy is then what a reader of the folder gets."""
    policy.model.set_attn_implementation("sdpa")
    if half:
        policy.model.half()  # type: ignore[no-untyped-call]
    save_policy(policy, folder)
    policy.model.float()  # type: ignore[no-untyped-call]
    return folder


def start_success(policy: Policy, recipe: Recipe, episodes: int = 256) -> dict[str, dict[str, float]]:
    """Measures a policy on the validation split of every environment, sampled at temperature 1."""
    found = {}
    for env_id, (keywords, _, _) in recipe.envs.items():
        make = [lambda env_id=env_id, keywords=keywords: gym.make(env_id, split="val", **keywords)] * 64
        collected = Collector(ConversationVectorEnv(make), policy).collect(group_requests(ROOT, 0, episodes, 1))
        runs = collected.episodes
        found[env_id] = {
            "success": float(np.mean([run.success for run in runs])),
            "return": float(np.mean([run.episode_return for run in runs])),
            "turns": float(np.mean([len(run.rewards) for run in runs])),
            "understood": float(np.mean([run.understood for run in runs])),
        }
    return found


@dataclass(frozen=True)
class Options:
    """Remakes embedded checkpoints."""

    name: tyro.conf.Positional[str] = "nano"
    """Which one: nano or mini."""
    out: Path = EMBEDDED
    """Folder to write NAME-INIT into."""
    inits: tuple[int, ...] | None = None
    """Which of them; all if left out."""
    begin: int = 0
    """Stage to begin with; the checkpoint after the stage before stands in the output folder."""
    threads: int = 1
    """Torch threads; more are slower at this size."""


def main() -> None:
    """Command line."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    console = Console()
    recipe = RECIPES[options.name]
    start = time.process_time()
    envs, corpus = zip(*make_corpus(recipe), strict=True)
    fingerprint = corpus_hash(corpus)
    tokenizer = train_tokenizer((m["content"] for dialogue in corpus for m in dialogue), recipe.vocab)
    chat = Chat(tokenizer)
    episodes = [as_episode(chat, dialogue) for dialogue in track(corpus, "tokens")]
    lengths = [len(episode.ids) for episode in episodes]
    console.print(
        f"{len(corpus)} dialogues, {sum(lengths):,} tokens ({np.mean(lengths):.0f} each, at most {max(lengths)}), "
        f"vocabulary {len(tokenizer)}, corpus {fingerprint[:12]}"
    )
    table = Table("init", "environment", "success", "return", "turns", "understood", title=f"start of {options.name}")
    for init in range(len(recipe.seeds)) if options.inits is None else options.inits:
        seed, folder = recipe.seeds[init], options.out / f"{options.name}-{init}"
        policy = make_policy(new_model(options.name, tokenizer, seed=seed), tokenizer, name=options.name)
        losses: list[float] = []
        if options.begin:
            policy = load_policy(folder)
            losses = json.loads((folder / "pretrain.json").read_text())["losses"]
        for number, stage in list(enumerate(recipe.stages))[options.begin :]:
            plan = list(passes(recipe, number, envs, seed))
            config = LearnerConfig(
                learning_rate=stage.learning_rate, updates=sum(map(len, plan)), schedule="cosine", warmup=0.05,
                weight_decay=0.01, micro_tokens=recipe.micro_tokens, precision=recipe.precision, device="cpu",
                seed=seed,
            )  # fmt: skip
            console.print(f"initialisation {init}, stage {number + 1}/{len(recipe.stages)}")
            losses += clone(policy, episodes, plan, config, console)
            store(policy, folder, recipe.half)
            record = {"corpus": fingerprint, "losses": losses, "torch": torch.__version__}
            (folder / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n")
        measured = start_success(policy, recipe)
        (folder / "pretrain.json").write_text(json.dumps(record | {"start": measured}, indent=1) + "\n")
        for env_id, row in measured.items():
            table.add_row(
                str(init),
                env_id,
                *(f"{row[key]:.3f}" for key in ("success", "return", "turns", "understood")),
            )
    console.print(table)
    console.print(f"{time.process_time() - start:.0f} CPU-seconds on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

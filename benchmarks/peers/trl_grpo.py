"""TRL's ``GRPOTrainer``: its training half on given tokens, and whole steps through its ``rollout_func``.

One optimiser step over the whole batch, no KL term, no gradient checkpointing; float32 weights, and products in
bfloat16 if the job says so. Task ``learn`` hands the trainer episodes that are already sampled; task ``train`` has
four-turn conversations by ``generate`` on the whole history, as its multi-turn example does. ``at_once`` says how many
episodes are in a micro-batch: all of them, unless memory forbids it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.peers.hf import Generator
from benchmarks.peers.serve import Link, synchronise

Rollout = Callable[[Sequence[Any], Any], dict[str, Any]]


def main() -> None:
    """Trains one step a round, for as long as it is asked to."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    link = Link()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = link.job
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["folder"], padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rollout = given(job["episodes"]) if job["task"] == "learn" else conversing(job)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(job, model, tokenizer, rollout, link, scratch)
        torch.set_num_threads(job["threads"])  # the trainer sets its own
        trainer.train()


def make_trainer(job: Mapping[str, Any], model: Any, tokenizer: Any, rollout: Rollout, link: Link, out: str) -> Any:
    """A trainer whose steps wait to be asked for."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    episodes, group = len(job["episodes"]), job["group"]
    at_once = min(episodes, job.get("at_once", episodes))
    rewards = [episode["reward"] for episode in job["episodes"]]
    generation = {"cpu": 0.0, "wall": 0.0}

    class Rounds(TrainerCallback):  # type: ignore[misc]
        """A step is a round; the first one is the warm-up."""

        asks: Iterator[Any] = link.asks()

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step and next(self.asks, None) is None:
                raise SystemExit
            generation.update(cpu=0.0, wall=0.0)
            synchronise()
            self.start = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            synchronise()
            wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
            if state.global_step == 1:
                link.ready("trl", "transformers", "torch")
                return
            halves = {f"generation_{key}": value for key, value in generation.items()}
            link.answer({"cpu": cpu, "wall": wall, **halves, "episodes": episodes})

    def reward(completions: Sequence[Any], **_: Any) -> list[float]:
        return rewards[: len(completions)]

    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(
            output_dir=out, use_cpu=job.get("device", "cpu") == "cpu", bf16=job.get("dtype") == "bf16",
            per_device_train_batch_size=at_once, gradient_accumulation_steps=episodes // at_once, num_generations=group,
            max_completion_length=4096, max_steps=10_000, learning_rate=1e-6, report_to=[], save_strategy="no",
            logging_strategy="no", temperature=1.0, top_k=0, beta=0.0, gradient_checkpointing=False,
            disable_tqdm=True, dataloader_num_workers=0, shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(episodes // group)] * 64),
        reward_funcs=reward,
        processing_class=tokenizer,
        callbacks=[Rounds()],
        rollout_func=rollout,
    )  # fmt: skip
    make = trainer._generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        synchronise()
        wall, cpu = time.perf_counter(), time.process_time()
        made = make(*args, **kwargs)
        synchronise()
        generation["wall"] += time.perf_counter() - wall
        generation["cpu"] += time.process_time() - cpu
        return made

    trainer._generate = generate
    return trainer


def given(episodes: Sequence[Mapping[str, Any]]) -> Rollout:
    """A rollout that has been had already."""

    def rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        return _rows([(episode["ids"], episode["action"]) for episode in episodes])

    return rollout


def conversing(job: Mapping[str, Any]) -> Rollout:
    """Conversations in which every turn feeds the whole history again."""

    def rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        conversations, model = job["episodes"], trainer.model
        training = model.training
        generator = Generator(model.eval())
        histories = [list(c["opening"]) for c in conversations]
        actions = [[0] * len(history) for history in histories]
        for turn in range(1 + len(conversations[0]["replies"])):
            if turn:
                for history, action, conversation in zip(histories, actions, conversations):
                    reply = conversation["replies"][turn - 1]
                    history += reply
                    action += [0] * len(reply)
            for history, action, said in zip(histories, actions, generator.generate(histories, job["new"])):
                history += said
                action += [1] * len(said)
        model.train(training)
        return _rows(list(zip(histories, actions)))

    return rollout


def _rows(episodes: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """What ``rollout_func`` returns: prompts end where the first sampled token stands."""
    starts = [action.index(1) for _, action in episodes]
    completions = [ids[start:] for start, (ids, _) in zip(starts, episodes)]
    return {
        "prompt_ids": [ids[:start] for start, (ids, _) in zip(starts, episodes)],
        "completion_ids": completions,
        "logprobs": [[0.0] * len(ids) for ids in completions],
        "env_mask": [action[start:] for start, (_, action) in zip(starts, episodes)],
    }


if __name__ == "__main__":
    main()

"""``generate`` of transformers: decoding, and conversations whose whole history is fed again on every turn.

That loop is what a user writes by hand around ``generate``, and what the common trainers do: all conversations of a
batch take their turn together, histories are padded on the left, nothing is kept between turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.serve import Play, serve, timed


def prepare(job: Mapping[str, Any]) -> Play:
    """Loads the model; see ``benchmarks.throughput`` for what a job holds."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[job.get("dtype", "fp32")]
    model: Any = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=dtype)
    generator = Generator(model.eval().to(job.get("device", "cpu")))
    if job["task"] == "turns":
        generator.converse(job["conversations"][:2], {"new": 2, "ends": []})
        return lambda ask: _converse(generator, job, ask)
    generator.generate(job["prompts"][:2], 2)
    if job.get("warm"):  # kernels are loaded and chosen for each shape when it is first met
        for lanes in job["warm"]:
            generator.generate(job["prompts"][:lanes], 2)
    return lambda ask: _decode(generator, job, ask)


def _decode(generator: Generator, job: Mapping[str, Any], ask: Mapping[str, Any]) -> dict[str, float]:
    prompts = job["prompts"][: ask["lanes"]]
    _, first = timed(lambda: generator.generate(prompts, 1))
    _, whole = timed(lambda: generator.generate(prompts, job["new"]))
    return {**whole, "first_cpu": first["cpu"], "first_wall": first["wall"], "tokens": len(prompts) * job["new"]}


def _converse(generator: Generator, job: Mapping[str, Any], ask: Mapping[str, Any]) -> dict[str, float]:
    lanes, conversations = job["lanes"], job["conversations"]
    batches = [conversations[i : i + lanes] for i in range(0, len(conversations), lanes)]
    said, took = timed(lambda: sum(generator.converse(batch, ask) for batch in batches))
    return {**took, "tokens": said, "episodes": len(conversations)}


class Generator:
    """Samples with ``generate`` at temperature 1 from the whole distribution.

    Args:
        model: Any causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        # Nothing of the model's own habits: they would be other work than the others do.
        config = model.generation_config
        config.eos_token_id, config.pad_token_id, config.top_k, config.top_p = None, 0, 0, 1.0

    def generate(self, histories: Sequence[Sequence[int]], new: int, ends: Sequence[int] = ()) -> list[list[int]]:
        """Samples ``new`` tokens after each history, fewer where one of ``ends`` is sampled."""
        import torch

        width = max(map(len, histories))
        ids = torch.tensor([[0] * (width - len(h)) + list(h) for h in histories], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in histories], device=self.model.device)
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                max_new_tokens=new,
                eos_token_id=list(ends) or None,
                pad_token_id=0,
            )
        return [_until(row, ends) for row in made[:, width:].tolist()]

    def converse(self, conversations: Sequence[Mapping[str, Any]], ask: Mapping[str, Any]) -> int:
        """Has conversations turn by turn; returns the number of sampled tokens."""
        histories, said = [list(c["opening"]) for c in conversations], 0
        for turn in range(1 + len(conversations[0]["replies"])):
            if turn:
                for history, conversation in zip(histories, conversations):
                    history += conversation["replies"][turn - 1]
            for history, sampled in zip(histories, self.generate(histories, ask["new"], ask["ends"])):
                history += sampled
                said += len(sampled)
        return said


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    for at, token in enumerate(ids):
        if token in ends:
            return ids[: at + 1]
    return ids


if __name__ == "__main__":
    serve(prepare, "transformers", "torch")

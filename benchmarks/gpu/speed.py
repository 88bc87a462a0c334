"""The contests on one GPU: decoding, updates, and whole training steps, by wall seconds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from algos.learner.flops import Size
from algos.policies.embedded import Shape
from algos.policies.load import make_policy
from benchmarks.gpu.results import Piece
from benchmarks.throughput import decode, learner, models, training
from benchmarks.throughput.contest import Conditions, Contestant, compete
from benchmarks.throughput.models import Model, skeleton
from benchmarks.throughput.work import prompts

SMOLLM2, LLAMA_1B, TINY = "smollm2-135m", "llama-1b", "tiny"
BYTES = {"fp32": 4, "bf16": 2}
ENGINES = {"fp32": "engine, fp32", "bf16": "engine, bf16"}
GENERATES = {"fp32": "HF generate, fp32", "bf16": "HF generate, bf16"}
WALL = "wall"


@dataclass(frozen=True)
class Scale:
    """How much work the contests do.

    Attributes:
        models: Of decoding, updates and training steps.
        lanes: Of decoding.
        prompt: Tokens before the first sampled one.
        new: Sampled tokens of decoding.
        updates: ``(episodes, micro_tokens)`` of each update.
        step: Episodes and sampled tokens a turn of a whole training step.
        at_once: Episodes of one of TRL's micro-batches, where memory does not hold more.
        rounds: How often everybody does everything.
        needs: Seconds that a contest should find left.
        device: ``"cuda"`` or ``"cpu"``.
    """

    models: tuple[str, ...]
    lanes: tuple[int, ...]
    prompt: int
    new: int
    updates: tuple[tuple[int, int], ...]
    step: tuple[int, int]
    at_once: int
    rounds: int
    needs: float
    device: str


GPU = Scale(
    (SMOLLM2, LLAMA_1B), lanes=(1, 8, 64, 256), prompt=128, new=64, updates=((64, 8192), (256, 8192)),
    step=(64, 32), at_once=32, rounds=2, needs=180, device="cuda",
)  # fmt: skip
DRY = Scale(
    (TINY,), lanes=(1, 4), prompt=8, new=4, updates=((8, 256),), step=(8, 4), at_once=8, rounds=1, needs=0,
    device="cpu",
)


def pieces(stage: str, scale: Scale, work: Path, pythons: tuple[str, ...]) -> list[Piece]:
    """What a stage, ``"decode"``, ``"learner"`` or ``"end_to_end"``, is made of."""
    how = Conditions(scale.rounds, pythons, alone=scale.device != "cpu")
    made: Callable[[str], Model] = functools.cache(lambda name: make(name, work, scale.device))
    if stage == "decode":
        return [
            Piece(stage, name, scale.needs, functools.partial(_decode, made, name, scale, how))
            for name in scale.models
        ]
    if stage == "learner":
        return [
            Piece(
                stage, f"{name}, {rows} episodes, micro-batches of {micro}", scale.needs,
                functools.partial(_learner, made, name, scale, how, rows, micro),
            )
            for name in scale.models for rows, micro in scale.updates
        ]  # fmt: skip
    return [  # in words, which a model of random weights and a vocabulary without a tokenizer has not
        Piece(stage, name, scale.needs, functools.partial(_end_to_end, made, name, scale, how))
        for name in scale.models if name != LLAMA_1B
    ]  # fmt: skip


def make(name: str, work: Path, device: str) -> Model:
    """A model in a folder.

    Args:
        name: ``SMOLLM2`` (pretrained), ``LLAMA_1B`` (16 layers x 2,048, 32 heads, 8 of keys and values, MLP 8,192,
            vocabulary 128,256 with tied embeddings: the shape of Llama 3.2 1B, random weights) or ``TINY`` (random).
        work: Where folders are written.
        device: Where random weights are drawn.
    """
    if name == SMOLLM2:
        return models.make("smollm2", work)
    tiny = models.random_policy(Shape(layers=2, hidden=32, heads=4, kv_heads=2, mlp=64, vocab=512, context=2048))
    if name == TINY:
        return models.save(TINY, tiny, work, "random weights")
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tiny.tokenizer.eos_token_id, pad_token_id=tiny.tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.device(device):
        torch.manual_seed(0)
        large: Any = LlamaForCausalLM(config)
    halved = make_policy(large.bfloat16().cpu(), tiny.tokenizer, name=name)  # half the disk; read as the job says
    return models.save(name, halved, work, "random weights, shape of Llama 3.2 1B")


def step_bytes(size: Size, cache: int, lanes: int, columns: float, itemsize: int) -> float:
    """Bytes that a decoding step must read: all weights once, and the keys and values of the live columns.

    Args:
        size: Of the model.
        cache: Numbers that the cache holds for a token.
        lanes: Conversations.
        columns: Tokens of each that are in the cache.
        itemsize: Bytes of a number, in weights and cache alike.
    """
    return itemsize * (size.matrices + size.head + lanes * columns * cache)


def _decode(made: Callable[[str], Model], name: str, scale: Scale, how: Conditions) -> dict[str, Any]:
    model = made(name)
    size, cache = skeleton(model.folder)
    rows = prompts(512, max(scale.lanes), scale.prompt)  # ids that every vocabulary here has
    job = {"task": "decode", "folder": str(model.folder), "prompts": rows, "new": scale.new, "device": scale.device}
    contestants = []
    for dtype in BYTES:
        ours = {**job, "dtype": dtype, "limits": True}
        theirs = {**job, "dtype": dtype, "warm": list(scale.lanes)}
        contestants.append(Contestant(ENGINES[dtype], "benchmarks.throughput.ours", ours))
        contestants.append(Contestant(GENERATES[dtype], "benchmarks.peers.hf", theirs))
    found = compete(contestants, {str(n): {"lanes": n} for n in scale.lanes}, how)
    columns = scale.prompt + scale.new / 2  # the mean over the steps
    read = {d: {str(n): step_bytes(size, cache, n, columns, b) for n in scale.lanes} for d, b in BYTES.items()}
    return {
        **_described(model, how), "prompt": scale.prompt, "new": scale.new, "lanes": list(scale.lanes),
        "step_bytes": read, "contestants": found,
    }  # fmt: skip


def _learner(
    made: Callable[[str], Model], name: str, scale: Scale, how: Conditions, rows: int, micro: int
) -> dict[str, Any]:
    settings = {**_settings(scale), "limits": True, "micro_tokens": micro}
    found = learner.measure(made(name), 512, how, rows=rows, profiled=False, settings=settings)
    return {**found, "dtype": "bf16", "micro_tokens": micro}


def _end_to_end(made: Callable[[str], Model], name: str, scale: Scale, how: Conditions) -> dict[str, Any]:
    rows, new = scale.step
    settings = {**_settings(scale), "micro_tokens": 8192}
    found = training.measure_trl(made(name), how, rows=rows, new=new, settings=settings)
    return {**found, "dtype": "bf16"}


def _settings(scale: Scale) -> dict[str, Any]:
    return {"device": scale.device, "dtype": "bf16", "at_once": scale.at_once}


def _described(model: Model, how: Conditions) -> dict[str, Any]:
    return {"parameters": model.parameters, "note": model.note, "threads": how.threads, "rounds": how.rounds}


def over(part: dict[str, Any], names: Sequence[str], others: Sequence[str], lanes: int) -> float | None:
    """Tokens a second of the fastest of some contestants over those of the fastest of others."""
    best = []
    for group in (names, others):
        rates = [decode.rate(part, name, lanes, WALL) for name in group]
        best.append(max((rate for rate in rates if rate is not None), default=None))
    return None if best[0] is None or not best[1] else best[0] / best[1]

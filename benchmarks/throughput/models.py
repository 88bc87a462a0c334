"""The models that contestants load: shipped checkpoints, random ones of a given shape, a pretrained one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from algos.learner.flops import Size, size_of
from algos.policies.embedded import SHAPES, Shape, new_model, save_policy, train_tokenizer
from algos.policies.load import Policy, load_policy, make_policy
from benchmarks.throughput.work import sentence
from convgym.errors import ModelError, UnknownNameError

REFERENCE = Shape(layers=4, hidden=192, heads=6, kv_heads=3, mlp=512, vocab=1536, context=2048)
NAMES = ("nano", "micro", "mini", "reference", "smollm2")


@dataclass(frozen=True)
class Model:
    """A model in a folder.

    Attributes:
        name: One of ``NAMES``, or a name of the caller's.
        folder: An ordinary Hugging Face folder.
        parameters: How many it has.
        note: What it is, for tables.
    """

    name: str
    folder: Path
    parameters: int
    note: str


def make(name: str, scratch: Path) -> Model:
    """Makes a model, or finds it.

    Args:
        name: ``nano`` and ``mini`` are the shipped checkpoints, ``micro`` and ``reference`` have random weights (for
            speed any do), ``smollm2`` is SmolLM2-135M-Instruct from the package index.
        scratch: Where folders are written.

    Raises:
        ModelError: If the checkpoint is not there.
        UnknownNameError: If the name is none of ``NAMES``.
    """
    if name not in NAMES:
        raise UnknownNameError.of("model", name, NAMES)
    if name == "smollm2":
        from algos.policies.gguf import convert_smollm2

        return _described(name, convert_smollm2(), load_policy("smollm2-135m"), "SmolLM2-135M-Instruct")
    if name in ("micro", "reference"):
        return save(name, random_policy(SHAPES["micro"] if name == "micro" else REFERENCE), scratch, "random weights")
    return save(name, load_policy(name), scratch, "shipped checkpoint")


def save(name: str, policy: Policy, scratch: Path, note: str = "") -> Model:
    """Writes a policy into a folder that every contestant can load."""
    policy.tokenizer.model_max_length = policy.model.config.max_position_embeddings
    return _described(name, save_policy(policy, scratch / name), policy, note)


def skeleton(folder: Path) -> tuple[Size, int]:
    """What takes part in a model's products, and how many numbers its cache holds for a token. Reads no weights."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        size = size_of(AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size, 2 * config.num_hidden_layers * config.num_key_value_heads * width


def random_policy(shape: Shape) -> Policy:
    """A policy of random weights, whose tokenizer knows the made-up words of ``work.py``."""
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer([sentence(rng, 40) for _ in range(300)], shape.vocab)
    if len(tokenizer) != shape.vocab:
        raise ModelError(f"expected a vocabulary of {shape.vocab}, got {len(tokenizer)}; give it more words")
    return make_policy(new_model(shape, tokenizer), tokenizer, name="random")


def _described(name: str, folder: Path, policy: Policy, note: str) -> Model:
    return Model(name, folder, sum(p.numel() for p in policy.model.parameters()), note)

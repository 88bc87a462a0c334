"""Floating-point operations that a model needs for a training step, and what share of a device they are.

    F = 6 (N sum_i T_i + V D sum_i A_i) + 6 L H E sum_i T_i (T_i + 1)

with N weights in the matrices of the layers, V x D weights of the head, L layers of H heads of width E, and rows of T
tokens, A of them scored. A product takes two operations a weight and token forward, and twice as many backward;
attention takes ``4 H E`` operations forward for each pair of a token and one that it sees.

Source: Chowdhery et al. 2022, "PaLM" (arXiv 2204.02311), appendix B, whose ``6 N + 12 L H Q T`` a token counts all
pairs of tokens, and the head at every one. Here a token sees itself and what stands before it, and the head is counted
where the loss needs it: half the attention and part of the head. What is computed twice (gradient checkpointing) or
without a gradient is no work of the model's. Rows are counted one by one, although the learner computes what they have
in common once: the figure says how fast training goes, and is more than the device really did.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from algos.policies.critic import decoder


@dataclass(frozen=True)
class Size:
    """What of a causal language model takes part in products.

    Attributes:
        matrices: N, weights in the matrices of the layers; embeddings are looked up, not multiplied.
        head: V D, weights of the language-model head.
        attention: L H E, layers times heads times width of a head.
    """

    matrices: int
    head: int
    attention: int


@dataclass(frozen=True)
class Device:
    """What a data sheet promises, without sparsity.

    Attributes:
        bf16: Products in bfloat16 or float16 with float32 sums, in 10^12 operations a second.
        fp32: The same in float32, without TF32.
        bandwidth: Of the memory, in 10^12 bytes a second.
    """

    bf16: float
    fp32: float
    bandwidth: float


DEVICES: dict[str, Device] = {  # the first name that a device's own name contains
    "H100 PCIe": Device(756, 51, 2.0),
    "H100 NVL": Device(835, 60, 3.9),
    "H100": Device(989, 67, 3.35),
    "H200 NVL": Device(835, 60, 4.8),
    "H200": Device(989, 67, 4.8),
    "A100-SXM4-80GB": Device(312, 19.5, 2.039),
    "A100 80GB PCIe": Device(312, 19.5, 1.935),
    "A100": Device(312, 19.5, 1.555),
    "L40S": Device(362, 91.6, 0.864),
    "L4": Device(121, 30.3, 0.3),
}


def size_of(model: Any) -> Size:
    """Counts a model of transformers; every matrix of its layers is taken to act on every token (no experts)."""
    trunk, config = decoder(model), model.config.get_text_config()
    looked_up = {id(m.weight) for m in trunk.modules() if isinstance(m, nn.Embedding)}
    matrices = sum(p.numel() for p in trunk.parameters() if p.ndim == 2 and id(p) not in looked_up)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head = model.get_output_embeddings().weight.numel()
    return Size(matrices, head, config.num_hidden_layers * config.num_attention_heads * width)


def training_flops(size: Size, lengths: Iterable[int], scored: int) -> float:
    """Operations of one forward and backward pass; see the module for the formula.

    Args:
        size: Of the model.
        lengths: Tokens of each row, T.
        scored: Tokens of all rows whose log-probability the loss needs, the sum of A.
    """
    rows = [int(n) for n in lengths]
    pairs = sum(n * (n + 1) for n in rows)
    return 6.0 * (size.matrices * sum(rows) + size.head * scored + size.attention * pairs)


def known_device(name: str) -> Device | None:
    """The data sheet of a device by the name that its driver gives, e.g. ``"NVIDIA H100 80GB HBM3"``."""
    return next((sheet for part, sheet in DEVICES.items() if part in name), None)


def peak(device: torch.device, precision: str) -> float | None:
    """Operations a second that the data sheet promises; ``None`` for a device that is not known.

    Args:
        device: Where the model is.
        precision: Of the products: ``"bf16"``, ``"fp16"`` or ``"fp32"``.
    """
    sheet = known_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if sheet is None else 1e12 * (sheet.fp32 if precision == "fp32" else sheet.bf16)


def utilisation(flops: float, seconds: float, limit: float | None) -> dict[str, float]:
    """``model_tflops``, achieved, and ``mfu``, its share of ``limit`` operations a second where that is known."""
    rate = flops / seconds
    return {"model_tflops": rate / 1e12} | ({} if limit is None else {"mfu": rate / limit})

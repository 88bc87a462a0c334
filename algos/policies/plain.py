"""Whether a module is what its class says, and nothing more: then its work may be done without calling it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

LINEAR = frozenset({"Linear"})
NORMS = frozenset({"LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
MLPS = frozenset({"LlamaMLP", "Qwen2MLP", "Qwen3MLP"})
ATTENTIONS = frozenset({"LlamaAttention", "Qwen2Attention", "Qwen3Attention"})
LAYERS = frozenset({"LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
DECODERS = frozenset({"LlamaModel", "Qwen2Model", "Qwen3Model"})
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(module: Any, classes: Collection[str]) -> bool:
    """Whether a module is of one of these classes of torch or transformers, without hooks or a ``forward`` of its own.

    Subclasses (adapters, quantised layers) and classes of the same name from elsewhere are something else.
    """
    kind = type(module)
    known = kind.__name__ in classes and kind.__module__.startswith(("torch.nn.", "transformers."))
    return known and "forward" not in vars(module) and not any(getattr(module, hooks) for hooks in _HOOKS)


def is_llama_shaped(decoder: Any) -> bool:
    """Whether a decoder is: norm, attention to all earlier tokens with rotary positions, norm, MLP; layer by layer.

    Nothing is said about what the layers are made of: projections, norms and the MLP may be anything.
    """
    kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    return (
        is_plain(decoder, DECODERS)
        and kinds == {"full_attention"}
        and all(is_plain(layer, LAYERS) and is_plain(layer.self_attn, ATTENTIONS) for layer in decoder.layers)
    )

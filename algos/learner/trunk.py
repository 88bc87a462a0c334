"""Hidden states at some places of some rows: the model's trunk, as little of it as they need.

For models shaped like Llama the rows are merged into a tree first (``algos.learner.prefixes``), so that what a group
has in common is computed once and nothing is padded outside of attention; and the last layer answers, after its keys
and values, at the wanted places only. Every other model runs as it is.

Axes: b rows, T tokens, U nodes of the tree, A wanted places, W distinct ones; H query heads, N key-value heads of
width E; D hidden size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from algos.learner.prefixes import PrefixTree, prefix_tree

SHAPED = ("LlamaModel", "Qwen2Model", "Qwen3Model")
"""Decoders whose layers are: norm, attention over all earlier tokens with rotary positions, norm, MLP."""


def on_tree(decoder: Any) -> bool:
    """Whether this decoder is computed on a tree of its rows."""
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Who asked for another implementation (eager, for bf16 on a CPU) gets it.
    return type(decoder).__name__ in SHAPED and kinds == {"full_attention"} and config._attn_implementation == "sdpa"


def hidden_before(decoder: Any, tokens: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """What the model knew when it chose the tokens at these places.

    Args:
        decoder: The part of a causal language model below its head, in evaluation mode.
        tokens: ``[b,T]``, padded on the right.
        row: ``[A]``.
        column: ``[A]``, at least 1.

    Returns:
        ``[A,D]`` last hidden states at the columns before.
    """
    if not on_tree(decoder) or not len(row):
        hidden: Tensor = decoder(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden[row, column - 1]
    lengths = column.new_zeros(len(tokens)).scatter_reduce(0, row, column, "amax")
    tree = prefix_tree(tokens[:, : int(lengths.max())], lengths)
    wanted, place = torch.unique(tree.node[row, column - 1], return_inverse=True)  # [W], [A]
    return F.embedding(place, _states(decoder, tree, wanted))


def _states(decoder: Any, tree: PrefixTree, wanted: Tensor) -> Tensor:
    """Last hidden states of the wanted nodes, ``[W,D]``."""
    x = decoder.embed_tokens(tree.tokens)  # [U,D]
    rotation = decoder.rotary_emb(x, tree.position[None])  # cosine and sine, [1,U,E] each
    *layers, last = decoder.layers
    everything = torch.arange(len(x), device=x.device)
    for layer in layers:
        x = _layer(layer, x, rotation, tree, everything)
    return cast(Tensor, decoder.norm(_layer(last, x, rotation, tree, wanted)))


def _layer(layer: Any, *state: Any) -> Tensor:
    # The switch of `algos.learner.scores.recomputing`, read as transformers' own layers read it.
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        return cast(Tensor, checkpoint(_answer, layer, *state, use_reentrant=False))
    return _answer(layer, *state)


def _answer(layer: Any, x: Tensor, rotation: tuple[Tensor, Tensor], tree: PrefixTree, wanted: Tensor) -> Tensor:
    """One layer, ``[U,D]`` to ``[W,D]``: all nodes are heard, the wanted ones answer."""
    heard = _attend(layer.self_attn, layer.input_layernorm(x), rotation, tree)
    if len(wanted) < len(x):
        x, heard = F.embedding(wanted, x), F.embedding(wanted, heard)
    x = x + layer.self_attn.o_proj(heard)
    return cast(Tensor, x + layer.mlp(layer.post_attention_layernorm(x)))


def _attend(attention: Any, x: Tensor, rotation: tuple[Tensor, Tensor], tree: PrefixTree) -> Tensor:
    """What each node hears of the nodes on its path, ``[U,HE]``."""
    E = attention.head_dim
    query, key, value = (getattr(attention, f"{name}_proj")(x).view(1, len(x), -1, E) for name in "qkv")
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = apply_rotary_pos_emb(query, key, *rotation, unsqueeze_dim=2)
    H, N = query.shape[2], key.shape[2]
    every = torch.cat([query, key, value], 2).view(len(x), -1)  # [U,(H+2N)E]
    heard = []
    for block in tree.blocks:  # [b',T']
        # Gathered with F.embedding: the backward pass of indexing is many times slower on a CPU.
        rows = F.embedding(block, every).view(*block.shape, -1, E).transpose(1, 2)  # [b',H+2N,T',E]
        query, key, value = torch.split(rows, [H, N, N], 1)
        # Right padding is seen by nobody who counts, so plain causal attention will do.
        said = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=attention.scaling, enable_gqa=N != H
        )
        heard.append(said.transpose(1, 2).reshape(-1, H * E))
    return F.embedding(tree.first, torch.cat(heard))

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
from transformers.models.llama.modeling_llama import rotate_half

from algos.learner.prefixes import Block, PrefixTree, attention_blocks, prefix_tree
from algos.policies.products import linear, rounded

SHAPED = ("LlamaModel", "Qwen2Model", "Qwen3Model")
"""Decoders whose layers are: norm, attention over all earlier tokens with rotary positions, norm, MLP."""
PLAIN = ("LlamaMLP", "Qwen2MLP", "Qwen3MLP")
"""``down(act(gate(x)) * up(x))``."""
SHORT = 512  # longest row whose attention weights are kept on a CPU


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
    """Last hidden states of the wanted nodes, ``[W',D]``: what is behind the first W is of no meaning.

    U and W are filled up to round numbers by nodes that nobody hears, see ``algos.policies.products.rounded``.
    """
    spare = rounded(len(tree.tokens)) - len(tree.tokens)
    x = decoder.embed_tokens(F.pad(tree.tokens, (0, spare)))  # [U',D]
    rotation = decoder.rotary_emb(x, F.pad(tree.position, (0, spare))[None])  # cosine and sine, [1,U',E] each
    causal = x.device.type != "cpu" or tree.node.shape[1] > SHORT
    everybody = torch.arange(len(tree.tokens), device=x.device)
    *layers, last = decoder.layers
    if layers:
        blocks, where = attention_blocks(tree, everybody, causal=causal)
        for layer in layers:
            x = _layer(layer, x, rotation, blocks, F.pad(where, (0, spare)), None)
    blocks, where = attention_blocks(tree, wanted, causal=causal)
    spare = rounded(len(wanted)) - len(wanted)
    asking, where = F.pad(wanted, (0, spare)), F.pad(where, (0, spare))
    return cast(Tensor, decoder.norm(_layer(last, x, rotation, blocks, where, asking)))


def _layer(layer: Any, *state: Any) -> Tensor:
    # The switch of `algos.learner.scores.recomputing`, read as transformers' own layers read it.
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        return cast(Tensor, checkpoint(_answer, layer, *state, use_reentrant=False))
    return _answer(layer, *state)


def _answer(
    layer: Any,
    x: Tensor,
    rotation: tuple[Tensor, Tensor],
    blocks: list[Block],
    where: Tensor,
    asking: Tensor | None,
) -> Tensor:
    """One layer, ``[U,D]`` to ``[W,D]``: all nodes are heard, and those answer that are asked."""
    attention, heads = layer.self_attn, layer.self_attn.head_dim
    normed = layer.input_layernorm(x)
    key, value = (linear(part, normed).view(1, len(x), -1, heads) for part in (attention.k_proj, attention.v_proj))
    turned = rotation
    if asking is not None:
        x, normed = F.embedding(asking, x), F.embedding(asking, normed)
        turned = rotation[0][:, asking], rotation[1][:, asking]
    query = linear(attention.q_proj, normed).view(1, len(x), -1, heads)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = _turn(query, turned), _turn(key, rotation)
    heard = _attend(query[0], torch.cat([key, value], -1)[0], blocks, attention.scaling)
    x = x + linear(attention.o_proj, F.embedding(where, heard))
    mlp, normed = layer.mlp, layer.post_attention_layernorm(x)
    if type(mlp).__name__ not in PLAIN:
        return cast(Tensor, x + mlp(normed))
    return x + linear(mlp.down_proj, mlp.act_fn(linear(mlp.gate_proj, normed)) * linear(mlp.up_proj, normed))


def _turn(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates ``[1,n,heads,E]`` by the angles of its places."""
    cosine, sine = (part[:, :, None] for part in rotation)
    return x * cosine + rotate_half(x) * sine  # type: ignore[no-untyped-call, no-any-return]


def _attend(query: Tensor, pair: Tensor, blocks: list[Block], scale: float) -> Tensor:
    """What the queries ``[W,H,E]`` hear of the keys and values ``[U,N,2E]``: ``[places of all blocks,HE]``."""
    H, N, E = query.shape[1], pair.shape[1], query.shape[2]
    heard = []
    for block in blocks:
        (b, S), T = block.queries.shape, block.keys.shape[1]
        # Gathered with F.embedding: the backward pass of indexing is many times slower on a CPU.
        q = F.embedding(block.queries, query.flatten(1)).view(b, S, H, E).transpose(1, 2)  # [b,H,S,E]
        k, v = F.embedding(block.keys, pair.flatten(1)).view(b, T, N, 2 * E).transpose(1, 2).chunk(2, -1)
        if block.bias is None:
            said = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=N != H)
        else:
            said = _masked(q, k, v, block.bias, scale)
        heard.append(said.transpose(1, 2).reshape(b * S, H * E))
    return torch.cat(heard)


def _masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention in plain products, ``[b,H,S,E]``: on a CPU faster than the fused kernel, and keeps its weights."""
    (b, H, S, E), (N, T) = q.shape, k.shape[1:3]
    q, k, v = q.reshape(b * N, -1, E), k.reshape(b * N, T, E), v.reshape(b * N, T, E)
    agreement = torch.bmm(q * scale, k.transpose(1, 2)).view(b, H, S, T).add_(bias[:, None])
    weights = torch.softmax(agreement, -1).view(b * N, -1, T)
    return torch.bmm(weights, v).view(b, H, S, E)

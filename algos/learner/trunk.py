"""Hidden states at some places of some rows: the model's trunk, as little of it as they need.

For models shaped like Llama the rows are merged into a tree first (``algos.learner.prefixes``), so that what a group
has in common is computed once and nothing is padded outside of attention; and the last layer answers, after its keys
and values, at the wanted places only. Every other model runs as it is.

Axes: b rows, T tokens, U nodes of the tree, A wanted places, W distinct ones; H query heads, N key-value heads of
width E; D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from algos.learner.pieces import gated, rms_norm, rotate
from algos.learner.prefixes import Block, PrefixTree, attention_blocks, prefix_tree
from algos.policies.plain import MLPS, NORMS, is_llama_shaped, is_plain
from algos.policies.products import linear, rounded

SHORT = 512  # longest row whose attention weights are kept on a CPU


def on_tree(decoder: Any) -> bool:
    """Whether this decoder is computed on a tree of its rows: its layers are known, and do what they are known for."""
    # Who asked for another implementation of attention (eager, for bf16 on a CPU) gets it.
    return is_llama_shaped(decoder) and decoder.config._attn_implementation == "sdpa"


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
    cosine, sine = decoder.rotary_emb(x, F.pad(tree.position, (0, spare))[None])  # [1,U',E] each, two equal halves
    half = cosine.shape[-1] // 2
    angles = cosine[0, :, None, :half], sine[0, :, None, :half]  # [U',1,E/2]
    attention = decoder.layers[0].self_attn
    heads = attention.q_proj.out_features // attention.head_dim, attention.k_proj.out_features // attention.head_dim
    causal = x.device.type != "cpu" or tree.node.shape[1] > SHORT
    *layers, last = decoder.layers
    if layers:
        everybody = torch.arange(len(tree.tokens), device=x.device)
        view = _views(*attention_blocks(tree, everybody, causal=causal), heads, len(x))
        for layer in layers:
            x = _layer(layer, x, angles, view, None)
    view = _views(*attention_blocks(tree, wanted, causal=causal), heads, rounded(len(wanted)))
    return _norm(decoder.norm, _layer(last, x, angles, view, F.pad(wanted, (0, rounded(len(wanted)) - len(wanted)))))


class _View(NamedTuple):
    """One block of attention: indices of heads, seen as rows of E numbers.

    Attributes:
        queries: ``[b,H,S]`` into ``[W H]``.
        keys: ``[b,N,T]`` into ``[U N]``, for keys and values; ``[b,H,T]`` where heads are not grouped.
        bias: ``[b,1,S,T]`` or ``None``, see ``algos.learner.prefixes.Block``.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor | None


def _views(
    blocks: Sequence[Block], where: Tensor, heads: tuple[int, int], size: int
) -> tuple[list[_View], Tensor]:
    """Spreads blocks over H query and N key heads.

    Returns:
        The views; and where each head of each node asks, ``[size,H]`` into all views' ``[b,H,S]``, flattened, one
        after the other.
    """
    H, N = heads
    query_head, key_head = (torch.arange(n, device=where.device)[:, None] for n in heads)
    if where.device.type != "cpu":  # the fused kernels of other devices do not all know groups of heads
        key_head = key_head.repeat_interleave(H // N, 0)
    views, places, begin = [], [], 0
    for queries, keys, bias in blocks:
        asks = queries[:, None] * H + query_head  # [b,H,S]
        views.append(_View(asks, keys[:, None] * N + key_head, None if bias is None else bias[:, None]))
        here = torch.arange(begin, begin + asks.numel(), device=where.device).view_as(asks)
        places.append(here.transpose(1, 2).flatten(0, 1))  # [bS,H]
        begin += asks.numel()
    return views, F.pad(torch.cat(places)[where], (0, 0, 0, size - len(where)))


def _layer(layer: Any, *state: Any) -> Tensor:
    # The switch of `algos.learner.scores.recomputing`, read as transformers' own layers read it.
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        return cast(Tensor, checkpoint(_answer, layer, *state, use_reentrant=False))
    return _answer(layer, *state)


def _answer(
    layer: Any, x: Tensor, angles: tuple[Tensor, Tensor], view: tuple[list[_View], Tensor], asking: Tensor | None
) -> Tensor:
    """One layer, ``[U,D]`` to ``[W,D]``: all nodes are heard, and those answer that are asked."""
    attention, E = layer.self_attn, layer.self_attn.head_dim
    normed = _norm(layer.input_layernorm, x)
    key, value = (linear(part, normed).view(len(x), -1, E) for part in (attention.k_proj, attention.v_proj))
    turned = angles
    if asking is not None:
        x, normed = F.embedding(asking, x), F.embedding(asking, normed)
        turned = angles[0][asking], angles[1][asking]
    query = linear(attention.q_proj, normed).view(len(x), -1, E)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = rotate(query, *(part * attention.scaling for part in turned)), rotate(key, *angles)
    x = x + linear(attention.o_proj, _attend(query, key, value, *view))
    mlp, normed = layer.mlp, _norm(layer.post_attention_layernorm, x)
    if not is_plain(mlp, MLPS) or mlp.config.hidden_act != "silu":
        return cast(Tensor, x + mlp(normed))
    return x + gated(linear(mlp.gate_proj, normed), linear(mlp.up_proj, normed), mlp.down_proj)


def _attend(query: Tensor, key: Tensor, value: Tensor, views: list[_View], places: Tensor) -> Tensor:
    """What the queries ``[W,H,E]`` hear of keys and values ``[U,N,E]``: ``[W,HE]``."""
    H, E = query.shape[1:]
    query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    heard = []
    for view in views:
        # Gathered with F.embedding, head by head: nothing is transposed, and the backward pass is many times faster on
        # a CPU than that of indexing.
        q, k, v = F.embedding(view.queries, query), F.embedding(view.keys, key), F.embedding(view.keys, value)
        if view.bias is None:
            said = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=k.shape[1] != H)
        else:
            said = _masked(q, k, v, view.bias)
        heard.append(said.reshape(-1, E))
    return F.embedding(places, torch.cat(heard)).flatten(1)


def _masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention in plain products, ``[b,H,S,E]``: on a CPU faster than the fused kernel, and keeps its weights."""
    (b, H, S, E), (N, T) = q.shape, k.shape[1:3]
    q, k, v = q.view(b * N, -1, E), k.view(b * N, T, E), v.view(b * N, T, E)
    agreement = torch.bmm(q, k.transpose(1, 2)).view(b, H, S, T).add_(bias)
    weights = torch.softmax(agreement, -1).view(b * N, -1, T)
    return torch.bmm(weights, v).view(b, H, S, E)


def _norm(module: Any, x: Tensor) -> Tensor:
    """``module(x)``, faster where it is known to be a root-mean-square norm in float32."""
    if is_plain(module, NORMS) and x.dtype == torch.float32:
        return rms_norm(x, module.weight, module.variance_epsilon)
    return cast(Tensor, module(x))


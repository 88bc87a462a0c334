"""Rows that begin alike, as a tree: each distinct beginning is one path, and is computed once.

The episodes of a group share their instructions and their opening; what a causal model makes of a token depends on
the tokens before it only, so that their hidden states are the same numbers, and their gradients add up. A node of the
tree is a place in a row together with everything before it. Nothing is padded in the tree.

Axes: b rows, T tokens; U nodes of the tree, U <= b T; W nodes that ask what their path says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PADDED = 4  # most places that attention pads to, for each token of the budget
WASTE = 1.2  # rows attend together as long as padding adds no more than this to their work


class PrefixTree(NamedTuple):
    """The places of some rows, those with equal beginnings in one node.

    Attributes:
        tokens: ``[U]`` token of each node.
        position: ``[U]`` its column.
        place: ``[U]`` where it comes first, an index into the flattened ``[b T]``.
        node: ``[b,T]`` node of each place; 0 behind the end of a row.
    """

    tokens: Tensor
    position: Tensor
    place: Tensor
    node: Tensor


class Block(NamedTuple):
    """Rows that attend together.

    Attributes:
        queries: ``[b',S]`` who asks, an index into the W nodes; anybody at padding.
        keys: ``[b',T']`` nodes of the rows.
        bias: ``[b',S,T']`` 0 or, for what comes after the query, -inf; ``None`` if S is T' and attention is causal.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor | None


def prefix_tree(tokens: Tensor, lengths: Tensor) -> PrefixTree:
    """Finds the equal beginnings of rows that follow one another.

    Rows in lexicographic order share all they can; in any other order the tree is as right, and larger.

    Args:
        tokens: ``[b,T]``.
        lengths: ``[b]`` how many tokens of each row count.
    """
    T = tokens.shape[1]
    real = torch.arange(T, device=tokens.device) < lengths[:, None]  # [b,T]
    alike = (tokens[1:] == tokens[:-1]) & real[1:] & real[:-1]
    shared = torch.zeros_like(real)  # with the row above
    shared[1:] = alike.cummin(1).values
    place = (real & ~shared).view(-1).nonzero().squeeze(1)  # [U]
    number = torch.zeros_like(tokens).view(-1).index_put((place,), torch.arange(len(place), device=tokens.device))
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    owner = torch.where(shared, -1, rows).cummax(0).values  # [b,T] the row that this place was new in
    node = number.view_as(tokens).gather(0, owner) * real
    return PrefixTree(tokens.reshape(-1)[place], place % T, place, node)


def attention_blocks(tree: PrefixTree, asking: Tensor, *, causal: bool) -> tuple[list[Block], Tensor]:
    """Lays out the attention of some nodes to all nodes on their paths.

    A node asks in the row where it comes first, and in no other.

    Args:
        tree: Of the rows.
        asking: ``[W]`` distinct nodes.
        causal: Lets every place of a row ask, in order, for kernels that know nothing but causal attention.

    Returns:
        The blocks; and ``[W]`` where each node asks, an index into all blocks' ``[b',S]``, flattened, one after the
        other.
    """
    T = tree.node.shape[1]
    column = torch.arange(T, device=asking.device)
    asks = torch.zeros(tree.node.numel(), dtype=torch.bool, device=asking.device)
    asks[tree.place[asking]] = True
    asks = asks.view_as(tree.node)  # [b,T]
    number = torch.zeros_like(tree.tokens).index_put((asking,), torch.arange(len(asking), device=asking.device))
    width = (asks * (column + 1)).amax(1)  # nobody looks further than the last who asks
    count = width if causal else asks.sum(1)
    blocks: list[Block] = []
    owner: list[Tensor] = []  # who asks at each place; W where nobody does
    for rows in _even(count, width):
        S, end = (int(size[rows].amax()) for size in (count, width))
        keys, here = tree.node[rows, :end], asks[rows, :end]
        bias = None
        queries = number[keys]
        if not causal:  # those who ask come to the front
            front = here.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :S]
            queries, here = queries.gather(1, front), here.gather(1, front)
            unseen = column[:end] > front[:, :, None]
            bias = torch.zeros(unseen.shape, device=unseen.device).masked_fill_(unseen, -torch.inf)
        blocks.append(Block(queries, keys, bias))
        owner.append(queries.masked_fill(~here, len(asking)).view(-1))
    whole = torch.cat(owner)
    where = whole.new_zeros(len(asking) + 1).scatter(0, whole, torch.arange(len(whole), device=whole.device))[:-1]
    return blocks, where


def _even(count: Tensor, width: Tensor) -> list[Tensor]:
    """Rows that cost little more together than alone, though all compute the most S queries times the most T keys."""
    order = (count * width).argsort(descending=True, stable=True)
    sizes = torch.stack([count, width], 1)[order].tolist()
    blocks, start, alone, most, longest = [], 0, 0, 0, 0
    for at, (S, T) in enumerate(sizes):
        if not S:  # rows of which nobody asks, all at the end
            order = order[:at]
            break
        most, longest = max(most, S), max(longest, T)
        if at > start and (at + 1 - start) * most * longest > WASTE * (alone + S * T):
            blocks.append(order[start:at])
            start, alone, most, longest = at, 0, S, T
        alone += S * T
    return [*blocks, order[start:]]


def tree_buckets(tokens: NDArray[np.int64], lengths: NDArray[np.int64], token_budget: int) -> list[NDArray[np.int64]]:
    """Splits rows into micro-batches such that rows with equal beginnings come together.

    Args:
        tokens: ``[B,T]``.
        lengths: ``[B]`` how many tokens of each row count.
        token_budget: Most nodes of a micro-batch's tree; a row that has more gets a micro-batch of its own. The rows,
            padded to the longest, have at most ``PADDED`` times as many places.

    Returns:
        Index arrays that hold every row exactly once, in lexicographic order.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    columns = np.arange(tokens.shape[1])
    real = columns < lengths[:, None]
    key = np.where(real, tokens + 1, 0).astype(">u4")  # an end comes before every token
    order = np.array(sorted(range(len(key)), key=[row.tobytes() for row in key].__getitem__), dtype=np.int64)
    alike = np.logical_and.accumulate((key[order[1:]] == key[order[:-1]]) & real[order[1:]], 1).sum(1)
    shared = np.concatenate([[0], alike])  # with the row before
    out: list[NDArray[np.int64]] = []
    start = nodes = longest = 0
    for at, row in enumerate(order):
        length = int(lengths[row])
        grown, widest = nodes + length - int(shared[at]), max(longest, length)
        if at > start and (grown > token_budget or widest * (at - start + 1) > PADDED * token_budget):
            out.append(order[start:at])
            start, grown, widest = at, length, length
        nodes, longest = grown, widest
    return [*out, order[start:]]

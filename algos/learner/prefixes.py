"""Rows that begin alike, as a tree: each distinct beginning is one path, and is computed once.

The episodes of a group share their instructions and their opening; what a causal model makes of a token depends on
the tokens before it only, so that their hidden states are the same numbers, and their gradients add up. A node of the
tree is a place in a row together with everything before it. Nothing is padded in the tree.

Axes: b rows, T tokens, U nodes, U <= b T.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PADDED = 4  # most places that attention pads to, for each token of the budget
EVEN = 0.9  # rows of a block are at least this long, compared with its longest


class PrefixTree(NamedTuple):
    """The places of some rows, those with equal beginnings in one node.

    Attributes:
        tokens: ``[U]`` token of each node.
        position: ``[U]`` its column.
        node: ``[b,T]`` node of each place; 0 behind the end of a row.
        blocks: ``[b',T']`` nodes of rows of similar length, padded with 0: each that is not empty is in one.
        first: ``[U]`` the place in the blocks, flattened and one after the other, where a node comes first.
    """

    tokens: Tensor
    position: Tensor
    node: Tensor
    blocks: list[Tensor]
    first: Tensor


def prefix_tree(tokens: Tensor, lengths: Tensor) -> PrefixTree:
    """Finds the equal beginnings of rows that follow one another.

    Rows in lexicographic order share all they can; in any other order the tree is as right, and larger.

    Args:
        tokens: ``[b,T]``.
        lengths: ``[b]`` how many tokens of each row count.
    """
    T = tokens.shape[1]
    column = torch.arange(T, device=tokens.device)
    real = column < lengths[:, None]  # [b,T]
    alike = (tokens[1:] == tokens[:-1]) & real[1:] & real[:-1]
    shared = torch.zeros_like(real)  # with the row above
    shared[1:] = alike.cummin(1).values
    new = real & ~shared
    place = new.view(-1).nonzero().squeeze(1)  # [U]
    number = torch.zeros_like(tokens).view(-1).index_put((place,), torch.arange(len(place), device=tokens.device))
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    owner = torch.where(shared, -1, rows).cummax(0).values  # [b,T] the row that this place was new in
    node = number.view_as(tokens).gather(0, owner) * real
    blocks, ends = [], []
    for index in _even(lengths):
        width = int(lengths[index].amax()) if len(index) else 0
        blocks.append(node[index, :width])
        ends.append(~real[index, :width])
    everywhere = torch.cat([block.masked_fill(end, len(place)).view(-1) for block, end in zip(blocks, ends)])
    places = torch.arange(len(everywhere), device=tokens.device)
    # The least one of several, so that the choice does not depend on the device.
    first = places.new_full((len(place) + 1,), len(places)).scatter_reduce(0, everywhere, places, "amin")[:-1]
    return PrefixTree(tokens.reshape(-1)[place], place % T, node, blocks, first)


def _even(lengths: Tensor) -> list[Tensor]:
    """Rows by length, longest first, cut where a block would be padded much; empty ones are left out."""
    size, row = lengths.sort(descending=True, stable=True)
    sizes = [length for length in size.tolist() if length]
    blocks, start = [], 0
    for at, length in enumerate(sizes):
        if length < EVEN * sizes[start]:
            blocks.append(row[start:at])
            start = at
    return [*blocks, row[start : len(sizes)]]


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

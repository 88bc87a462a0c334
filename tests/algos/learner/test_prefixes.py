"""Rows that begin alike become one path of a tree, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from algos.learner.prefixes import PADDED, attention_blocks, prefix_tree, tree_buckets

ROWS = st.lists(st.lists(st.integers(0, 2), max_size=7), min_size=1, max_size=8)  # three tokens: much in common


def padded(rows: list[list[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded with a token that occurs, and the lengths."""
    tokens = torch.full((len(rows), max(1, *map(len, rows), 0)), pad)
    for out, row in zip(tokens, rows):
        out[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return tokens, torch.tensor([len(row) for row in rows])


def beginnings(rows: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(row[: t + 1]) for row in rows for t in range(len(row))}


@given(ROWS, st.integers(0, 2), st.booleans())
def test_a_node_is_a_place_and_all_before_it(rows: list[list[int]], pad: int, ordered: bool) -> None:
    rows = sorted(rows) if ordered else rows
    tree = prefix_tree(*padded(rows, pad))
    path: dict[int, tuple[int, ...]] = {}
    for r, row in enumerate(rows):
        for t in range(len(row)):
            node = int(tree.node[r, t])
            assert path.setdefault(node, tuple(row[: t + 1])) == tuple(row[: t + 1])
            assert (int(tree.tokens[node]), int(tree.position[node])) == (row[t], t)
    assert sorted(path) == list(range(len(tree.tokens)))  # no node is of padding only
    if ordered:
        assert len(path) == len(beginnings(rows))


@given(ROWS, st.integers(0, 2), st.booleans(), st.data())
def test_every_node_that_asks_sees_its_path_and_nothing_else(
    rows: list[list[int]], pad: int, causal: bool, data: st.DataObject
) -> None:
    tree = prefix_tree(*padded(rows, pad))
    asks = data.draw(st.lists(st.booleans(), min_size=len(tree.tokens), max_size=len(tree.tokens)))
    asking = torch.tensor(asks, dtype=torch.bool).nonzero().squeeze(1)
    assume(len(asking))
    blocks, where = attention_blocks(tree, asking, causal=causal)
    places = [(block, row, query) for block in blocks for row in range(len(block.keys))
              for query in range(block.queries.shape[1])]  # fmt: skip
    for number, (node, at) in enumerate(zip(asking.tolist(), where.tolist(), strict=True)):
        block, row, query = places[at]
        assert int(block.queries[row, query]) == number
        if block.bias is None:
            assert block.queries.shape == block.keys.shape
            seen = block.keys[row, : query + 1]
        else:
            assert set(block.bias[row, query].tolist()) <= {0.0, -torch.inf}
            seen = block.keys[row][block.bias[row, query] == 0]
        first = int(tree.place[node])
        path = tree.node.view(-1)[first - int(tree.position[node]) : first + 1]
        assert torch.equal(seen, path)


def test_only_what_is_new_asks_and_rows_without_questions_are_left_out() -> None:
    """Three rows of 4, 3 of them common: 4 + 1 + 0 queries; in plain causal attention 4 each."""
    tokens = torch.tensor([[5, 6, 7, 1], [5, 6, 7, 2], [5, 6, 7, 2]])
    tree = prefix_tree(tokens, torch.tensor([4, 4, 4]))
    asking = torch.arange(5)
    own, _ = attention_blocks(tree, asking, causal=False)
    assert [tuple(block.queries.shape) for block in own] == [(1, 4), (1, 1)]
    plain, _ = attention_blocks(tree, asking, causal=True)
    assert [tuple(block.queries.shape) for block in plain] == [(2, 4)]


@given(ROWS, st.integers(1, 30), st.integers(0, 2))
def test_buckets_hold_every_row_once_and_keep_the_budget(rows: list[list[int]], budget: int, pad: int) -> None:
    tokens, lengths = padded(rows, pad)
    parts = tree_buckets(tokens.numpy(), lengths.numpy(), budget)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(rows)))
    for part in parts:
        chosen = [rows[i] for i in part]
        assert chosen == sorted(chosen)
        longest = max(map(len, chosen))
        assert len(part) == 1 or (len(beginnings(chosen)) <= budget and longest * len(part) <= PADDED * budget)
        assert len(prefix_tree(tokens[part], lengths[part]).tokens) == len(beginnings(chosen))


def test_a_group_that_fits_stays_together() -> None:
    """Two groups of 3 with an opening of 10 tokens: 10 + 3 x 2 nodes each, and the budget holds just that."""
    rows = [[group] * 10 + [7, member] for member in range(3) for group in range(2)]
    tokens, lengths = padded(rows)
    parts = tree_buckets(tokens.numpy(), lengths.numpy(), 10 + 1 + 3)  # the 7 is common too
    assert [part.tolist() for part in parts] == [[0, 2, 4], [1, 3, 5]]


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="token_budget must be at least 1"):
        tree_buckets(np.ones((1, 1), np.int64), np.ones(1, np.int64), 0)

"""Seeds derived by name never collide, and streams are keyed by turn."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from convgym.seeding import STREAMS, Streams, derive_seed

names = st.lists(st.integers() | st.text(st.characters(codec=None), max_size=8), max_size=4).map(tuple)
roots = st.integers(-(2**70), 2**70)


@given(roots, names)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_a_child_seed_is_63_bits_and_repeatable(root, path):
    seed = derive_seed(root, *path)
    assert 0 <= seed < 2**63 and seed == derive_seed(root, *path)


@given(roots, roots, names, names)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_other_roots_and_paths_give_other_seeds(root, other, path, another):
    assert (derive_seed(root, *path) == derive_seed(other, *another)) == ((root, path) == (other, another))


def test_no_seed_plus_index():
    """Item 1 of seed 42 is not item 0 of seed 43, nor anything near."""
    assert derive_seed(42, "episode", 1) != derive_seed(43, "episode", 0)
    grid = {derive_seed(root, "episode", i) for root in range(100) for i in range(100)}
    assert len(grid) == 10_000


def test_names_do_not_run_together():
    paths = [
        ("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), ("a,b", "c"), ("a', 'b", "c"), (1,), ("1",),
        (1, 1), (11,), (),
    ]  # fmt: skip
    assert len({derive_seed(0, *path) for path in paths}) == len(paths)


def test_golden_seeds():
    """Part of every published result: 8 bytes of BLAKE2b over the path's repr, little-endian, halved."""
    assert derive_seed(0) == 2631537505891389924
    assert derive_seed(42, "env", 1) == 3167588025465253638
    assert derive_seed(-7, "sample", 3, "é") == 4144924932160525444


def test_numpy_integers_are_integers():
    assert derive_seed(np.int64(7), "env", np.int64(3)) == derive_seed(7, "env", 3)


def test_child_seeds_look_uniform():
    """Mean and bits of 4,000 neighbouring children, within 5 standard errors."""
    seeds = np.array([derive_seed(0, "x", i) for i in range(4_000)], dtype=np.uint64)
    bits = (seeds[:, None] >> np.arange(63, dtype=np.uint64)) & np.uint64(1)  # [4000, 63]
    assert np.all(np.abs(bits.mean(0) - 0.5) < 5 * 0.5 / np.sqrt(4_000))


def test_streams_are_independent_of_each_other():
    streams = Streams(1, 1)
    draws = {(name, turn): streams.stream(name, turn).random() for name in STREAMS for turn in range(-2, 20)}
    assert len(set(draws.values())) == len(draws)


def test_a_stream_is_keyed_by_turn_and_not_by_the_order_of_draws():
    streams = Streams(1, 2)
    expected = {turn: streams.stream("user", turn).random() for turn in range(5)}
    for order in itertools.permutations(range(5)):
        assert {turn: streams.stream("user", turn).random() for turn in order} == expected


def test_the_scenario_stream_belongs_to_the_scenario_seed():
    assert Streams(1, 2).stream("scenario").random() == Streams(1, 3).stream("scenario").random()
    for name in STREAMS[1:]:
        assert Streams(1, 2).stream(name).random() == Streams(9, 2).stream(name).random()
        assert Streams(1, 2).stream(name).random() != Streams(1, 3).stream(name).random()

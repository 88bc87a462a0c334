"""The space of utterances."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from gymnasium.spaces import Dict, Tuple, flatdim
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from convgym.spaces import Utterance


@given(st.text(st.characters(codec=None)))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_every_string_is_an_utterance(text):
    assert Utterance().contains(text) and text in Utterance()


@pytest.mark.parametrize("value", [None, 1, b"bytes", ["a"], np.array("a")])
def test_what_is_no_utterance(value):
    assert not Utterance().contains(value)


def test_length_is_bounded():
    assert "a" * 5 in Utterance(5) and "a" * 6 not in Utterance(5)
    space = Utterance(4, seed=0)
    assert all(space.sample() in space for _ in range(200))


def test_samples_are_seeded_and_various():
    one, other = Utterance(seed=3), Utterance(seed=3)
    drawn = [one.sample() for _ in range(100)]
    assert drawn == [other.sample() for _ in range(100)]
    assert len(set(drawn)) > 50 and "" in drawn
    with pytest.raises(ValueError, match="no mask"):
        one.sample(mask=np.ones(3))


def test_spaces_compare_copy_and_nest():
    space = Utterance(9)
    for twin in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert twin == space and hash(twin) == hash(space)
    assert space != Utterance(8) and repr(space) == "Utterance(9)"
    assert isinstance(batch_space(space, 2), Tuple)
    assert {"a": "x"} in Dict({"a": space})
    assert flatdim(Utterance(9)) == 9

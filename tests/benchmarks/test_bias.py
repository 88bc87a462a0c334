"""Noisy directions against a known gradient: no bias, the right error, tests that hold their level."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks import bias
from benchmarks.bias import Floats


def noise(shift: float, seed: int) -> Floats:
    x = np.random.default_rng(seed).standard_normal((100, 30))
    x[:, 0] += shift
    return x


def test_the_squared_mean_is_unbiased_and_its_error_is_that_of_repetition() -> None:
    # |m|^2 = 0 and 1/4; the square of the mean itself would be 30 / 100 too large
    for shift in (0.0, 0.5):
        found = np.array([bias.squared_mean(noise(shift, seed)) for seed in range(300)])
        assert found[:, 0].mean() == pytest.approx(shift**2, abs=4 * found[:, 0].std() / np.sqrt(300))
        assert np.sqrt((found[:, 1] ** 2).mean()) == pytest.approx(found[:, 0].std(), rel=0.15)


def test_the_split_test_holds_its_level_and_has_power() -> None:
    null = [bias.split_test(bias.adjusted(noise(0.0, seed), None, None)) for seed in range(300)]
    assert np.mean(np.array(null) < 0.05) <= 0.08  # .05 + 3 standard errors of .0126 would be .088
    assert all(bias.split_test(bias.adjusted(noise(1.0, seed), None, None)) < 1e-4 for seed in range(20))


def test_control_variates_move_no_mean_and_take_noise_away() -> None:
    rng, mean = np.random.default_rng(1), np.ones((1, 5))
    known = mean[:, None] + rng.standard_normal((1, 400, 5))
    found = 2 * known[0] + 0.1 * rng.standard_normal((400, 5)) + 3  # expectation 5
    better = np.concatenate([half for _, half in bias.adjusted(found, known, mean)])
    assert_allclose(better.mean(0), 5.0, atol=0.03)
    assert better.std() < 0.2 < 1.5 < found.std()


def test_a_multiple_of_the_truth_with_noise_across_it() -> None:
    truth, rng = np.array([2.0, 0.0, 0.0]), np.random.default_rng(2)
    found = np.array([1.0, 0.5, 0.0]) + 0.3 * rng.standard_normal((1000, 3))  # c = 1/2, residual 1/2, distance by hand
    m = bias.measure(found, truth)
    assert m.factor == pytest.approx(0.5, abs=0.02)
    assert m.residual == pytest.approx(0.5, abs=0.05)
    assert m.residual_low < 0.5 < m.residual_high
    assert m.distance == pytest.approx(np.hypot(1.0, 0.5) / 2, abs=0.02)
    assert m.variance == pytest.approx(3 * 0.09 / 4, rel=0.1)
    assert m.cosine == pytest.approx(2 / np.sqrt(5), abs=0.02)

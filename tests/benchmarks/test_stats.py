"""Statistics against published numbers, hand-derived values, identities and properties."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats

from benchmarks import stats

# Student's own data (1908): extra hours of sleep of ten patients under two drugs.
SLEEP_1 = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
SLEEP_2 = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)  # a busy machine is not a bug

share = st.floats(0, 1, allow_nan=False).map(lambda x: round(x, 6))
strata = st.lists(st.lists(share, min_size=1, max_size=6).map(np.array), min_size=1, max_size=4)
rich_strata = st.lists(st.lists(share, min_size=2, max_size=6).map(np.array), min_size=1, max_size=4)


# ------------------------------------------------------------------------------------------ golden values


def test_paired_t_reproduces_student_1908():
    test = stats.paired_t_test([SLEEP_2 - SLEEP_1])
    assert test.difference == pytest.approx(1.58)
    assert test.difference / test.se == pytest.approx(4.0621, abs=5e-5)
    assert test.df == pytest.approx(9)
    assert test.p == pytest.approx(0.00283289, abs=5e-9)
    assert (test.low, test.high) == pytest.approx((0.7001142, 2.4598858), abs=5e-8)


def test_t_interval_of_three_runs_by_hand():
    # mean .6, s = .1, se = .1 / sqrt 3, t_{.975, 2} = 4.302653
    interval = stats.t_interval([[0.5, 0.6, 0.7]])
    assert interval == pytest.approx(
        (0.6, 0.6 - 4.302653 * 0.1 / 3**0.5, 0.6 + 4.302653 * 0.1 / 3**0.5), abs=1e-6
    )
    assert stats.t_interval([[0.8, 0.9, 1.0]], bounds=(0, 1)).high == 1.0


def test_two_strata_are_welchs_test():
    """mean(x) / 2 - mean(y) / 2 over strata {x, -y} has Welch's t and Welch's degrees of freedom."""
    x, y = SLEEP_1[:6], 3 * SLEEP_2[2:]
    welch = scipy_stats.ttest_ind(x, y, equal_var=False)
    ours = stats.paired_t_test([x, -y])
    assert ours.df == pytest.approx(welch.df)
    assert ours.difference / ours.se == pytest.approx(welch.statistic)
    assert ours.p == pytest.approx(welch.pvalue)


def test_iqm_drops_the_outer_quarters():
    assert stats.iqm([[0.0, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 100.0]]) == pytest.approx(
        (0.2 + 0.3 + 0.4 + 0.5) / 4
    )


def test_mean_weighs_environments_and_not_runs():
    assert stats.stratified_mean([[1.0, 1.0, 1.0, 1.0], [0.0]]) == 0.5


def test_optimality_gap_caps_at_the_target():
    assert stats.optimality_gap([[0.5, 2.0], [1.0, 0.25]]) == pytest.approx((0.25 + 0.375) / 2)


def test_gap_closed():
    assert stats.gap_closed(0.3, 0.3, 0.9) == 0
    assert stats.gap_closed(0.9, 0.3, 0.9) == pytest.approx(1)
    assert stats.gap_closed(0.6, 0.3, 0.9) == pytest.approx(0.5)
    assert stats.gap_closed(0.0, 0.8, 0.9) == -1  # floored, not -8
    assert np.isnan(stats.gap_closed(0.5, 0.9, 0.9))


def test_pass_k_is_tau_benchs_estimator():
    # two of four: the six pairs hold one that is all success; three of four: three of six
    assert stats.pass_k([4, 4], [2, 3], 2) == pytest.approx((1 / 6 + 3 / 6) / 2)
    assert stats.pass_k([4, 4], [2, 3], 1) == pytest.approx(5 / 8)
    with pytest.raises(ValueError, match="1 <= k <= trials"):
        stats.pass_k([4], [2], 5)


def test_holm_reproduces_rs_p_adjust():
    assert stats.holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert stats.holm([0.04, 0.001, 0.6]) == pytest.approx([0.08, 0.003, 0.6])
    adjusted = stats.holm([0.02, np.nan, 0.03])  # a test that was not possible takes no share of the error
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.04])
    assert np.isnan(adjusted[1])


def test_sign_flips_by_hand():
    assert stats.permutation_test([[1.0, 2.0, 3.0, 4.0]]) == 2 / 16
    assert stats.permutation_test([[1.0, 2.0, 3.0, 4.0]], alternative="greater") == 1 / 16
    # |-1 + 2 + 3 + 4| = 8 is reached by the patterns without 1 (4 of 16: all, -1 and their mirrors)
    assert stats.permutation_test([[-1.0, 2.0, 3.0, 4.0]]) == 4 / 16
    assert stats.permutation_test([[1.0, 1.0], [1.0, 1.0]]) == 2 / 16


def test_sign_flips_agree_with_scipy():
    ours = stats.permutation_test([SLEEP_2 - SLEEP_1])
    scipys = scipy_stats.permutation_test(
        (SLEEP_2, SLEEP_1), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert ours == pytest.approx(scipys.pvalue)


def test_sampled_sign_flips_are_near_the_exact_ones():
    d = np.linspace(-0.5, 1.0, 16)  # 2^16 patterns: beyond the enumeration
    signs = 1 - 2 * ((np.arange(2**16)[:, None] >> np.arange(16)) & 1)
    exact = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-9)
    sampled = stats.permutation_test([d])
    assert abs(sampled - exact) < 4 * (exact * (1 - exact) / stats.MONTE_CARLO_FLIPS) ** 0.5


def test_probability_of_improvement_by_hand():
    # env 1: 3 wins and 1 tie of 4; env 2: 0 of 2
    assert stats.probability_of_improvement([[2, 3], [0, 0]], [[1, 2], [1]]) == pytest.approx(
        (3.5 / 4 + 0) / 2
    )


def test_minimum_detectable_difference_matches_cohens_tables():
    # Cohen 1988: a paired test finds d = .5 with power .80 from 34 pairs, d = .8 from 15 pairs on
    for n, d in ((34, 0.5), (15, 0.8)):
        enough = stats.minimum_detectable_difference(n**-0.5, n - 1)
        one_less = stats.minimum_detectable_difference((n - 1) ** -0.5, n - 2)
        assert enough <= d < one_less


def test_minimum_detectable_difference_has_the_stated_power():
    n, draws = 5, 4000
    rng = np.random.default_rng(1)
    delta = stats.minimum_detectable_difference(n**-0.5, n - 1)
    p = scipy_stats.ttest_1samp(rng.normal(delta, 1, size=(draws, n)), 0, axis=1).pvalue
    assert abs(np.mean(p < 0.05) - 0.8) < 4 * (0.8 * 0.2 / draws) ** 0.5


def test_correlation_is_taken_inside_environments():
    a = [np.array([0.1, 0.2, 0.3]), np.array([0.7, 0.8, 0.9])]
    b = [np.array([0.3, 0.2, 0.1]), np.array([0.9, 0.8, 0.7])]  # easy env high for both, seeds opposed
    assert stats.paired_correlation(a, b) == pytest.approx(-1)
    assert np.isnan(stats.paired_correlation([np.ones(3)], [np.ones(3)]))


def test_tie_groups_overlap_where_the_middle_one_ties_with_both():
    apart = {frozenset("AC")}
    assert stats.tie_groups("ABC", lambda x, y: frozenset((x, y)) in apart) == {"A": "a", "B": "ab", "C": "b"}
    assert stats.tie_groups("ABC", lambda x, y: False) == {"A": "a", "B": "a", "C": "a"}
    assert stats.tie_groups("ABC", lambda x, y: True) == {"A": "a", "B": "b", "C": "c"}


# ------------------------------------------------------------------------------------------ refusals and gaps


def test_one_run_gives_no_interval_and_no_test():
    assert np.isnan(stats.t_interval([[0.5]]).low)
    bootstrap = stats.stratified_bootstrap([[0.5]], "iqm")
    assert bootstrap.estimate == 0.5
    assert np.isnan(bootstrap.low)
    assert np.isnan(stats.probability_of_improvement_interval([[0.9]], [[0.1]]).low)
    assert np.isnan(stats.paired_t_test([[0.1]]).p)
    pair = stats.compare_all({"x": [[0.9]], "y": [[0.1]]})[0]
    assert not pair.separated


def test_identical_runs_are_not_separated():
    pair = stats.compare_all({"x": [[0.5, 0.6, 0.7]], "y": [[0.5, 0.6, 0.7]]})[0]
    assert pair.test.p == 1.0
    assert not pair.separated


def test_constant_differences_fall_back_to_sign_flips():
    """Four equal differences have no variance: a t test would be sure, the exact test is not."""
    test = stats.paired_t_test([[0.1, 0.1, 0.1, 0.1]])
    assert test.p == 2 / 16


def test_missing_runs_drop_their_pair_only():
    a = [[0.5, np.nan, 0.7, 0.9]]
    b = [[0.4, 0.6, np.nan, 0.7]]
    assert stats.paired_differences(a, b)[0] == pytest.approx([0.1, 0.2])
    assert stats.stratified_mean(a) == pytest.approx(0.7)


def test_no_data_is_nan_and_not_a_crash():
    nothing = [[np.nan, np.nan]]
    assert np.isnan(stats.stratified_mean(nothing))
    assert np.isnan(stats.iqm(nothing))
    assert np.isnan(stats.stratified_bootstrap(nothing, "iqm").low)
    assert np.isnan(stats.permutation_test(nothing))
    assert np.isnan(stats.probability_of_improvement(nothing, nothing))
    assert not stats.compare_all({"x": nothing, "y": nothing})[0].separated


def test_unequal_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match="same seeds"):
        stats.paired_differences([[0.1, 0.2]], [[0.1]])
    with pytest.raises(ValueError, match="same strata"):
        stats.paired_differences([[0.1, 0.2]], [])


# ------------------------------------------------------------------------------------------ properties


@PROPERTY
@given(strata)
def test_iqm_lies_in_the_data_and_ignores_order(scores):
    pooled = np.concatenate(scores)
    assert pooled.min() - 1e-12 <= stats.iqm(scores) <= pooled.max() + 1e-12
    assert stats.iqm([x[::-1] for x in reversed(scores)]) == pytest.approx(stats.iqm(scores))


@PROPERTY
@given(strata, st.floats(-2, 2))
def test_aggregates_shift_with_the_scores(scores, shift):
    for of in (stats.iqm, stats.stratified_mean):
        assert of([x + shift for x in scores]) == pytest.approx(of(scores) + shift)


@PROPERTY
@given(rich_strata)
def test_bootstrap_interval_lies_in_the_data_and_repeats(scores):
    pooled = np.concatenate(scores)
    first = stats.stratified_bootstrap(scores, "iqm", resamples=200)
    assert pooled.min() - 1e-12 <= first.low <= first.high <= pooled.max() + 1e-12
    assert first == stats.stratified_bootstrap(scores, "iqm", resamples=200)


@PROPERTY
@given(rich_strata)
def test_paired_test_is_antisymmetric(scores):
    forth, back = stats.paired_t_test(scores), stats.paired_t_test([-x for x in scores])
    assert forth.p == pytest.approx(back.p)
    assert forth.difference == pytest.approx(-back.difference)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))


@PROPERTY
@given(rich_strata)
def test_degrees_of_freedom_lie_between_the_smallest_stratum_and_all(scores):
    _, se, df = stats.mean_error(scores)
    if se > 0:
        varying = [x.size - 1 for x in scores if x.var() > 0]
        assert min(varying) - 1e-6 <= df <= sum(x.size - 1 for x in scores) + 1e-6


@PROPERTY
@given(rich_strata, st.floats(0.1, 10))
def test_p_values_do_not_know_the_unit(scores, scale):
    assert stats.permutation_test([x * scale for x in scores]) == stats.permutation_test(scores)
    assert stats.paired_t_test([x * scale for x in scores]).p == pytest.approx(stats.paired_t_test(scores).p)


@PROPERTY
@given(arrays(float, st.integers(1, 12), elements=st.floats(0, 1)))
def test_holm_only_raises_and_keeps_the_order(p):
    adjusted = stats.holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * p.size) + 1e-12).all()  # never worse than Bonferroni
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@PROPERTY
@given(rich_strata, st.data())
def test_improvement_either_way_sums_to_one(a, data):
    b = [data.draw(st.lists(share, min_size=1, max_size=5).map(np.array)) for _ in a]
    forth, back = stats.probability_of_improvement(a, b), stats.probability_of_improvement(b, a)
    assert forth + back == pytest.approx(1)
    assert 0 <= forth <= 1


@PROPERTY
@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(1, 5))
def test_pass_k_falls_with_k(successes, k):
    trials = [6] * len(successes)
    assert stats.pass_k(trials, successes, k) >= stats.pass_k(trials, successes, k + 1)
    assert stats.pass_k(trials, successes, 1) == pytest.approx(np.mean(successes) / 6)


@PROPERTY
@given(st.integers(1, 7), st.data())
def test_letters_say_exactly_who_is_separated(n, data):
    names = [f"algo{i}" for i in range(n)]
    apart = {pair: data.draw(st.booleans()) for pair in combinations(names, 2)}
    letters = stats.tie_groups(names, lambda x, y: apart[(x, y)])
    for (x, y), separated in apart.items():
        assert separated == (not set(letters[x]) & set(letters[y]))
    assert "a" in letters[names[0]]


# ------------------------------------------------------------------------------------------ the decision


def simulated_suite(rng: np.random.Generator, names: str, envs: int, seeds: int, lift: dict[str, float]):
    """Success rates on shared seeds: a seed effect for all, a run effect, the noise of 256 episodes."""
    scores = {name: [] for name in names}
    for _ in range(envs):
        base = rng.uniform(0.3, 0.7) + rng.normal(0, 0.05, seeds)
        for name in names:
            rate = np.clip(base + lift.get(name, 0.0) + rng.normal(0, 0.04, seeds), 0, 1)
            scores[name].append(rng.binomial(256, rate) / 256)
    return scores


def test_a_against_a_is_separated_at_most_five_times_in_a_hundred():
    """200 suites in which three algorithms are one: any separated pair makes the suite a false positive."""
    rng = np.random.default_rng(2026)
    tries = 200
    false = sum(
        any(pair.separated for pair in stats.compare_all(simulated_suite(rng, "xyz", 2, 4, {})))
        for _ in range(tries)
    )
    allowed = scipy_stats.binom.ppf(0.99, tries, 0.05)  # 5 % and its binomial error
    assert false <= allowed


def test_a_clear_winner_is_found():
    """The same decision has power: a lift of .25 is found in nearly every suite of 2 envs x 4 seeds."""
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(40):
        pairs = stats.compare_all(simulated_suite(rng, "xyz", 2, 4, {"x": 0.25}))
        found += all(pair.separated for pair in pairs if "x" in (pair.a, pair.b))
        assert all(pair.a == "x" for pair in pairs if "x" in (pair.a, pair.b))
    assert found >= 32


def test_the_bootstrap_would_decide_too_often():
    """Why it is shown and does not decide: on four seeds, A against A looks different in one of ten pairs."""
    rng, pairs = np.random.default_rng(5), 400
    excludes_zero = paired = 0
    for _ in range(pairs):
        scores = simulated_suite(rng, "xy", 2, 4, {})
        differences = stats.paired_differences(scores["x"], scores["y"])
        interval = stats.stratified_bootstrap(differences, "iqm", resamples=400)
        excludes_zero += interval.low > 0 or interval.high < 0
        paired += stats.paired_t_test(differences).p < 0.05
    allowed = scipy_stats.binom.ppf(0.99, pairs, 0.05)
    assert paired <= allowed < excludes_zero

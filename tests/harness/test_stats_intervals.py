"""Intervals and power against published numbers, scipy, and plain loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness import stats
from harness.stats.intervals import resampled_means, seed_variance
from harness.stats.percentiles import order_statistic_ranks

LEVELS = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])


# Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_table(successes, n, low, high):
    found = stats.wilson(successes, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert (found.estimate, found.n, found.level) == (successes / n, n, 0.95)


@given(st.integers(1, 400), st.data(), LEVELS)
@settings(max_examples=100, deadline=None)
def test_wilson_agrees_with_scipy_holds_its_estimate_and_mirrors(n, data, level):
    k = data.draw(st.integers(0, n))
    found, mirrored = stats.wilson(k, n, level), stats.wilson(n - k, n, level)
    theirs = scipy_stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.high > found.low, "a rate of 0 or 1 must not look certain"
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-12)


@given(st.integers(1, 400), st.data())
@settings(max_examples=50, deadline=None)
def test_wilson_widens_with_the_level(n, data):
    k = data.draw(st.integers(0, n))
    narrow, wide = stats.wilson(k, n, 0.9), stats.wilson(k, n, 0.99)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


def test_mean_interval_is_students_1908_sleep_result():
    # Student 1908, Biometrika 6:1, differences of the two soporifics; R's t.test prints this interval
    gain = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = stats.mean_interval(gain)
    assert (found.estimate, found.low, found.high) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-6)


def test_standard_error_of_a_rate_is_the_binomial_one():
    # protocol 1, section 6: GSM8K, n = 1319, p = .478 -> 1.38 points
    right = np.r_[np.ones(630), np.zeros(689)]
    assert round(100 * stats.standard_error(right), 2) == 1.38
    p = 630 / 1319
    assert stats.standard_error(right) == pytest.approx(math.sqrt(p * (1 - p) / 1318))


def test_clustered_error_is_millers_triple_sum():
    rng = np.random.default_rng(3)
    clusters = rng.integers(7, size=40)
    values = rng.normal(size=40) + clusters
    residuals = values - values.mean()
    cross = sum(
        residuals[i] * residuals[j] for i, j in itertools.permutations(range(40), 2) if clusters[i] == clusters[j]
    )
    expected = math.sqrt(residuals @ residuals / (40 * 39) + cross / 40**2)
    assert stats.standard_error(values, clusters) == pytest.approx(expected, rel=1e-12)
    assert expected > 1.5 * stats.standard_error(values), "items of one cluster move together here"
    assert stats.standard_error(values, np.arange(40)) == pytest.approx(stats.standard_error(values))


def test_duplicated_items_gain_nothing_when_clustered():
    values = np.random.default_rng(0).normal(size=50)
    twice, source = np.tile(values, 2), np.tile(np.arange(50), 2)
    assert stats.standard_error(twice) < 0.75 * stats.standard_error(values)
    assert stats.standard_error(twice, source) == pytest.approx(stats.standard_error(values), rel=0.02)


def test_bca_gives_efrons_spatial_data_interval():
    # Efron & Tibshirani 1993, table 14.2: variance of the spatial test data, A scores, 90 % interval by BCa
    scores = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]
    found = stats.bootstrap_interval(scores, np.var, level=0.9)
    plain = stats.bootstrap_interval(scores, np.var, level=0.9, method="percentile")
    assert found.estimate == pytest.approx(171.5, abs=0.05)
    assert (found.low, found.high) == pytest.approx((115.8, 259.6), abs=4)
    assert (plain.low, plain.high) == pytest.approx((100.8, 233.9), abs=4)


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=4, max_size=30).filter(lambda x: len(set(x)) > 2))
@settings(max_examples=25, deadline=None)
def test_bootstrap_interval_holds_the_mean_and_ignores_order(values):
    found = stats.bootstrap_interval(values, method="percentile", resamples=500)
    shuffled = stats.bootstrap_interval(values[::-1], method="percentile", resamples=500)
    assert found == shuffled
    assert found.low - 1e-9 <= found.estimate <= found.high + 1e-9
    wide = stats.bootstrap_interval(values, method="percentile", resamples=500, level=0.99)
    assert wide.low <= found.low + 1e-9
    assert found.high <= wide.high + 1e-9


def test_joint_resampling_is_what_a_plain_loop_gives():
    rng = np.random.default_rng(1)
    a, b = rng.random((3, 30)), rng.random((2, 30))
    fast = resampled_means((a, b), None, resamples=8_000, seed=5)
    slow = np.empty((2, 8_000))
    for k in range(8_000):
        items = rng.integers(30, size=30)
        for row, arm in enumerate((a, b)):
            seeds = rng.integers(len(arm), size=len(arm))
            slow[row, k] = arm[seeds][:, items].mean()
    for mine, loop in zip(fast, slow, strict=True):
        assert mine.std() == pytest.approx(loop.std(), rel=0.05)
        assert np.quantile(mine, [0.05, 0.5, 0.95]) == pytest.approx(np.quantile(loop, [0.05, 0.5, 0.95]), abs=0.005)
    assert np.corrcoef(*fast)[0, 1] == pytest.approx(np.corrcoef(*slow)[0, 1], abs=0.05)


def test_clusters_are_resampled_whole():
    # two clusters, of 1 and 3 items: the mean of a resample is 0, 1 or, with one of each, 3/4
    draws = resampled_means((np.array([[0.0, 1, 1, 1]]),), np.array([0, 1, 1, 1]), resamples=4_000, seed=0)[0]
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [0, 0.75, 1]
    assert counts / 4_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_seed_variance_is_the_two_way_anova_component():
    # the textbook mean squares, by loops (Searle, Casella & McCulloch 1992, chapter 4)
    table = np.random.default_rng(2).normal(size=(4, 9)) + np.array([[0.0], [1], [2], [3]])
    seeds, items, grand = *table.shape, table.mean()
    ms_seeds = sum(items * (row.mean() - grand) ** 2 for row in table) / (seeds - 1)
    ms_error = sum(
        (table[s, i] - table[s].mean() - table[:, i].mean() + grand) ** 2 for s in range(seeds) for i in range(items)
    ) / ((seeds - 1) * (items - 1))
    assert seed_variance(table) == pytest.approx((ms_seeds - ms_error) / items / seeds)
    assert seed_variance(np.tile(table[0], (3, 1))) == 0


@pytest.mark.parametrize("seed_sd", [0.0, 0.01, 0.03])
def test_seed_item_interval_has_nominal_coverage(seed_sd):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        truth = 0.5 + rng.normal(0, seed_sd, (3, 1)) + rng.normal(0, 0.25, 300) + rng.normal(0, 0.3, (3, 300))
        found = stats.seeds_items_interval(truth)
        covered += found.low <= 0.5 <= found.high
    assert covered / 600 > 0.92, "nominal 0.95"
    assert covered / 600 < 0.985


def test_seed_item_bootstrap_approaches_t_with_many_seeds():
    rng = np.random.default_rng(4)
    table = rng.normal(0, 0.05, (20, 1)) + rng.normal(0, 0.2, 200) + rng.normal(0, 0.1, (20, 200))
    by_t, drawn = stats.seeds_items_interval(table), stats.seeds_items_interval(table, method="bootstrap")
    assert drawn.high - drawn.low == pytest.approx(by_t.high - by_t.low, rel=0.1)
    assert drawn == stats.seeds_items_interval(table, method="bootstrap"), "seeded"


def test_percentile_ranks_of_the_textbook():
    # Conover 1999, section 3.2; David & Nagaraja 2003, section 7.1: the 95 % interval of a median
    assert order_statistic_ranks(20, 0.5) == (6, 15)
    assert order_statistic_ranks(10, 0.5) == (2, 9)


@given(st.integers(20, 400), st.sampled_from([0.5, 0.75, 0.9, 0.95, 0.99, 0.1]))
@settings(max_examples=80, deadline=None)
def test_percentile_interval_covers_and_matches_scipy(n, q):
    values = np.random.default_rng(n).exponential(size=n)
    found = stats.percentile(values, q)
    if n < stats.fewest_for(q):
        assert found == "too_few"
        return
    low, high = order_statistic_ranks(n, q)
    below = scipy_stats.binom(n, q)
    assert below.cdf(high - 1) - below.cdf(low - 1) >= 0.95
    assert found.low <= found.estimate <= found.high
    assert found.estimate == np.quantile(values, q)
    theirs = scipy_stats.quantile_test(values, p=q).confidence_interval(0.95)
    if not np.isnan([theirs.low, theirs.high]).any():  # scipy needs equal tails inside the sample
        assert (found.low, found.high) == (theirs.low, theirs.high)


@pytest.mark.parametrize(("q", "fewest"), [(0.5, 20), (0.9, 100), (0.99, 300), (0.95, 300), (0.1, 100), (0.999, 2995)])
def test_a_percentile_is_shown_from_enough_samples_only(q, fewest):
    values = np.arange(fewest, dtype=float)
    assert stats.fewest_for(q) == fewest
    assert stats.percentile(values[1:], q) == stats.TOO_FEW
    assert stats.percentile(values, q).n == fewest


def test_299_samples_bound_true_p99_at_95_percent():
    # protocol 1, section 5, rule 5
    assert 1 - 0.99**299 > 0.95 > 1 - 0.99**298


def test_sample_sizes_and_detectable_effects_of_the_protocol():
    # Miller 2024: 3 points at 80 % power with omega^2 = 1/9; protocol 1, section 6 for GSM8K
    assert stats.sample_size(0.03, 1 / 9) == 969
    assert stats.mde(969, 1 / 9) == pytest.approx(0.03, rel=1e-5)
    points = [round(100 * stats.mde(1319, stats.difference_variance(0.478, correlation=r)), 1) for r in (0, 0.5, 0.7)]
    assert points == [5.4, 3.9, 3.0]


def test_cohens_sample_size_by_the_normal_approximation():
    # Cohen 1988: d = .5, two-sided 5 %, 80 % power: 63 a group (64 with t)
    assert stats.sample_size(0.5, 2.0) == 63


@given(st.floats(0.005, 0.3), st.floats(0.02, 0.98), st.floats(-0.5, 0.9))
@settings(max_examples=60, deadline=None)
def test_sample_size_inverts_mde(effect, rate, correlation):
    variance = stats.difference_variance(rate, correlation=correlation)
    n = stats.sample_size(effect, variance)
    assert stats.mde(n, variance) <= effect * (1 + 1e-9)
    assert n == 1 or stats.mde(n - 1, variance) > effect * (1 - 1e-9)


def test_detectable_effect_has_its_power_in_simulation():
    rng = np.random.default_rng(0)
    effect = stats.mde_from_error(1.0)
    found = np.abs(rng.normal(effect, 1, 40_000)) > scipy_stats.norm.isf(0.025)
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_fewest_flips_is_where_exact_test_reaches_alpha():
    assert stats.fewest_flips() == 6
    for alpha in (0.05, 0.01, 0.001):
        k = stats.fewest_flips(alpha)
        assert scipy_stats.binomtest(k, k).pvalue <= alpha < scipy_stats.binomtest(k - 1, k - 1).pvalue
    rng = np.random.default_rng(0)
    flips = rng.poisson(1000 * stats.mde_of_flips(1000), 40_000)
    assert (flips >= 6).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: stats.wilson(3, 2), "3 successes of 2 trials"),
        (lambda: stats.wilson(0, 0), "not possible"),
        (lambda: stats.wilson(1, 2, 95), "level must be between 0 and 1, not 95"),
        (lambda: stats.mean_interval([]), "at least 2 needed"),
        (lambda: stats.mean_interval([1.0, math.nan]), r"NaN or an infinity at \[1\]"),
        (lambda: stats.mean_interval([[1.0, 2.0]]), r"not shape \(1, 2\)"),
        (lambda: stats.mean_interval([1, 2, 3], ["a", "b"]), "one label an item"),
        (lambda: stats.mean_interval([1, 2, 3], ["a", "a", "a"]), "all items are in one"),
        (lambda: stats.bootstrap_interval([2, 2, 2]), "all 3 values are equal"),
        (lambda: stats.seeds_items_interval([1, 0, 1]), "one seed says nothing about the next"),
        (lambda: stats.percentile([1.0] * 400, 99), "q must be between 0 and 1"),
        (lambda: stats.percentile(np.arange(300.0), 0.99, level=0.999), "cannot bracket percentile 0.99"),
        (lambda: stats.mde(0, 1), "not possible"),
        (lambda: stats.sample_size(0, 1), "no answer"),
        (lambda: stats.difference_variance(1.5), "must be in"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()

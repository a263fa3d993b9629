"""Alarms, change points and pooled tests: published series, enumeration, and planted changes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness import stats
from harness.stats.changes import _best_split, _distance_sums, _split
from harness.stats.pooled import between_variance

# Annual flow of the Nile at Aswan, 1871-1970, 10^8 m^3 (Cobb 1978, Biometrika 65:243); it fell in 1899
NILE = [
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140,
    1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969,
    831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845, 864, 862, 698, 845, 744, 796, 1040, 759,
    781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890,
    744, 749, 838, 1050, 918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740,
]  # fmt: skip

# BCG vaccine trials (Colditz 1994; the worked example of Viechtbauer 2010, J. Stat. Softw. 36:3):
# cases and non-cases, vaccinated, then not
BCG = np.array([
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232),
    (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
], dtype=float)  # fmt: skip


def test_median_absolute_deviation_of_a_textbook_sample():
    found = stats.noise([1, 1, 2, 2, 4, 6, 9])
    assert (found.median, found.n) == (2, 7)
    assert found.sigma == pytest.approx(1.4826 * 1)
    assert found.sigma == pytest.approx(
        scipy_stats.median_abs_deviation([1, 1, 2, 2, 4, 6, 9], scale="normal"), rel=1e-4
    )


@given(st.lists(st.floats(-1e300, 1e300), min_size=5, max_size=24))
def test_noise_is_that_of_numpys_median(values):
    middle = float(np.median(values))
    found = stats.noise(values)
    assert (found.median, found.sigma) == (middle, 1.4826 * float(np.median(np.abs(np.array(values) - middle))))


def test_no_noise_and_no_alarm_before_five_runs():
    assert stats.noise([1.0] * 4) == "too_few"
    assert stats.provisional_alarm([1.0] * 4, 9.0, 0.01) == "too_few"


def test_alarm_uses_the_floor_where_runs_are_nearly_equal():
    history = [1000.0] * 20
    floor = stats.RELATIVE_FLOORS["memory"]
    assert not stats.provisional_alarm(history, 1009.0, floor).raised
    up, down = stats.provisional_alarm(history, 1011.0, floor), stats.provisional_alarm(history, 985.0, floor)
    assert up.raised
    assert (up.low, up.high, up.relative) == pytest.approx((990, 1010, 0.011))
    assert down.raised, "an improvement alarms too: a silent skip looks like speed"
    assert down.relative < 0


def test_alarm_band_uses_wider_noise_and_last_twenty_values():
    rng = np.random.default_rng(0)
    history = np.r_[np.full(100, 50.0), rng.normal(100, 5, 20)]
    sigma = 1.4826 * np.median(np.abs(history[-20:] - np.median(history[-20:])))
    found = stats.provisional_alarm(history, 110.0, 0.01)
    assert not found.raised
    assert found.high - found.low == pytest.approx(6 * sigma)
    assert stats.provisional_alarm([0.0] * 5, 0.0, 0.05).relative is None


def test_permutation_and_mann_whitney_by_enumeration():
    a, b = np.array([1.2, 3.4, 2.2, 5.0]), np.array([2.0, 0.1, 1.9, 0.4, 1.0])
    pool = np.r_[a, b]
    means, ranks = [], []
    for chosen in itertools.combinations(range(9), 4):
        first, second = pool[list(chosen)], np.delete(pool, chosen)
        means.append(first.mean() - second.mean())
        ranks.append(sum(x > y for x in first for y in second))
    upper = np.mean(np.array(means) >= a.mean() - b.mean() - 1e-12)
    lower = np.mean(np.array(means) <= a.mean() - b.mean() + 1e-12)
    assert stats.permutation_test(a, b).p == pytest.approx(2 * min(upper, lower))
    u = sum(x > y for x in a for y in b)
    far = np.mean(np.abs(np.array(ranks) - 10) >= abs(u - 10))
    assert stats.mann_whitney(a, b).p == pytest.approx(far)
    assert stats.mann_whitney(a, b).statistic == u


def test_three_against_three_cannot_confirm_but_five_can():
    # protocol 1, section 8, rule 4
    assert stats.permutation_test([1, 2, 3], [10, 11, 12]).p == pytest.approx(0.1)
    assert stats.mann_whitney([1, 2, 3], [10, 11, 12]).p == pytest.approx(0.1)
    assert round(stats.permutation_test([1, 2, 3, 4, 5], [10, 11, 12, 13, 14]).p, 3) == 0.008
    assert stats.permutation_test([7, 7, 7, 7, 7], [7, 7, 7, 7, 7]).p == 1


def test_the_nile_fell_once_in_1899():
    found = stats.change_points(NILE)
    assert [1871 + point.index for point in found] == [1899]
    assert (found[0].before, found[0].after) == pytest.approx((1097.75, 849.97), abs=0.01)
    assert found[0].p == pytest.approx(scipy_stats.ttest_ind(NILE[:28], NILE[28:]).pvalue)
    assert found[0].relative == pytest.approx(-0.2257, abs=1e-4)
    assert stats.change_points(NILE, relative_floor=0.3) == []


def test_best_split_is_the_largest_energy_distance_by_loops():
    # Matteson & James 2014, over every split and every end
    x = np.random.default_rng(0).normal(size=14) + np.r_[np.zeros(5), np.full(4, 2), np.zeros(5)]

    def energy(left: np.ndarray, right: np.ndarray) -> float:
        m, n = len(left), len(right)
        between = np.mean([abs(p - q) for p in left for q in right])
        within = [np.mean([abs(p - q) for p, q in itertools.combinations(part, 2)]) for part in (left, right)]
        return m * n / (m + n) * (2 * between - sum(within))

    best = max(
        ((energy(x[2:t], x[t:k]), t, k) for t in range(5, 12) for k in range(t + 3, 15)), key=lambda found: found[0]
    )
    assert _best_split(_distance_sums(x), 2, 14, 3) == best[1:]


def test_steps_there_and_back_are_found_and_a_spike_is_not():
    rng = np.random.default_rng(1)
    step = np.r_[np.full(20, 100.0), np.full(12, 110.0), np.full(18, 100.0)] + rng.normal(0, 1.5, 50)
    assert [point.index for point in stats.change_points(step)] == [20, 32]
    spike = rng.normal(100, 1.5, 40)
    spike[20] = 140
    assert stats.change_points(spike) == []


def test_a_step_without_noise_is_found_exactly():
    found = stats.change_points([5.0] * 10 + [6.0] * 3)
    assert found == [stats.ChangePoint(10, 5.0, 6.0, 0.0)]
    assert stats.change_points([5.0] * 30) == []
    assert stats.change_points([5.0] * 10 + [6.0] * 2) == [], "fewer than three values after it"
    assert stats.change_points([1.0]) == []


@given(st.integers(0, 10_000), st.floats(0.1, 50), st.floats(-100, 100))
@settings(max_examples=25, deadline=None)
def test_change_points_are_scale_and_time_reversal_invariant(seed, scale, shift):
    rng = np.random.default_rng(seed)
    series = rng.normal(0, 1, 30) + np.repeat(rng.normal(0, 4, 3), 10)
    places = [point.index for point in stats.change_points(series)]
    assert [point.index for point in stats.change_points(scale * series + shift)] == places
    assert [point.index for point in stats.change_points(-series)] == places
    assert all(b - a >= 3 for a, b in itertools.pairwise([0, *places, 30]))


def test_drift_is_reported_as_a_change():
    series = np.r_[np.full(15, 100.0), np.linspace(100, 110, 20)] + np.random.default_rng(2).normal(0, 0.8, 35)
    found = stats.change_points(series, relative_floor=0.02)
    assert found
    assert all(point.relative > 0.02 for point in found)


def test_false_alarms_of_identical_nights_are_measured():
    rate = stats.false_alarm_rate(
        lambda series: bool(stats.change_points(series)), lambda rng: rng.normal(100, 2, 40), rounds=300
    )
    assert rate.n == 300
    assert rate.estimate < 0.06
    assert rate.low <= rate.estimate <= rate.high
    always = stats.false_alarm_rate(lambda _: True, lambda rng: rng.normal(size=3), rounds=20)
    assert (always.estimate, always.high) == (1, 1)


def test_random_effects_mean_is_the_published_bcg_result():
    # DerSimonian-Laird on log relative risks: tau^2 = .3088, -0.7141 (SE .1787)
    tp, tn, cp, cn = BCG.T
    effect = np.log((tp / (tp + tn)) / (cp / (cp + cn)))
    error = np.sqrt(1 / tp - 1 / (tp + tn) + 1 / cp - 1 / (cp + cn))
    assert between_variance(effect, error) == pytest.approx(0.3088, abs=5e-5)
    found = stats.pooled_paired(np.zeros(13), effect, standard_errors=error)
    assert found.effect == pytest.approx(-0.7141, abs=5e-5)
    assert (found.high - found.low) / (2 * 1.959964) == pytest.approx(0.1787, abs=5e-5)
    assert found.between_sd == pytest.approx(math.sqrt(0.3088), abs=1e-4)


def test_signed_rank_is_hollander_and_wolfes_example():
    # Hollander & Wolfe 1973, p. 29: depression scores, V = 40, one-sided p = .01953
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    found = stats.pooled_paired(before, after)
    assert found.wilcoxon_p == pytest.approx(0.03906, abs=1e-5)
    assert found.sign_p == pytest.approx(scipy_stats.binomtest(2, 9).pvalue)
    assert found.p == pytest.approx(scipy_stats.ttest_rel(after, before).pvalue)
    assert found.pairs == 9


def test_clustered_pooled_error_is_the_sandwich_by_loops():
    rng = np.random.default_rng(0)
    model = np.repeat(["a", "b", "c", "d"], 5)
    before = rng.normal(size=20)
    after = before + rng.normal(size=20)
    errors = rng.uniform(0.1, 0.5, 20)
    difference = after - before
    weights = 1 / (errors**2 + between_variance(difference, errors))
    mean = (weights * difference).sum() / weights.sum()
    meat = sum(sum(weights[i] * (difference[i] - mean) for i in range(20) if model[i] == name) ** 2 for name in "abcd")
    se = math.sqrt(4 / 3 * meat) / weights.sum()
    found = stats.pooled_paired(before, after, clusters=model, standard_errors=errors)
    assert found.effect == pytest.approx(mean)
    assert found.high - found.low == pytest.approx(2 * scipy_stats.t.isf(0.025, 3) * se)
    assert (found.clusters, found.method) == (4, "pooled paired, random effects, clustered")


def test_a_point_lost_in_forty_cells_is_seen_by_the_pool_alone():
    rng = np.random.default_rng(3)
    before, after, single = [], [], []
    for _ in range(40):
        skill = rng.uniform(0.4, 0.8)
        easy = rng.random(1_319)
        old = easy + rng.normal(0, 0.1, 1_319) < skill
        new = easy + rng.normal(0, 0.1, 1_319) < skill - 0.012
        before.append(old.mean())
        after.append(new.mean())
        single.append(stats.mcnemar(new, old).p)
    assert (stats.holm(single) > 0.01).all(), "no cell shows it"
    found = stats.pooled_paired(before, after, clusters=np.repeat(np.arange(8), 5))
    assert found.p < 1e-4
    assert found.wilcoxon_p < 1e-6
    assert found.low < -0.011 < found.high


def test_ratios_are_pooled_on_logarithms():
    before = np.array([1.0, 2.0, 4.0, 8.0])
    found = stats.pooled_paired(before, before * [1.1, 1.1, 1.21, 1.0], ratio=True)
    assert found.effect == pytest.approx(scipy_stats.gmean([1.1, 1.1, 1.21, 1.0]) - 1)
    back = stats.pooled_paired(before * [1.1, 1.1, 1.21, 1.0], before, ratio=True)
    assert (back.low, back.high) == pytest.approx((1 / (1 + found.high) - 1, 1 / (1 + found.low) - 1))
    assert back.p == pytest.approx(found.p)


def test_nothing_moved():
    found = stats.pooled_paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (found.effect, found.p, found.wilcoxon_p, found.sign_p) == (0, 1, 1, 1)


@given(st.lists(st.integers(-6, 6), min_size=3, max_size=25).filter(lambda x: len(set(x)) > 1))
@settings(max_examples=20, deadline=None)
def test_pooled_tests_mirror_and_ignore_order(steps):
    before = np.arange(len(steps), dtype=float)
    after = before + steps
    found, back = stats.pooled_paired(before, after), stats.pooled_paired(after, before)
    order = np.random.default_rng(0).permutation(len(steps))
    shuffled = stats.pooled_paired(before[order], after[order])
    assert (back.effect, back.low, back.high) == pytest.approx((-found.effect, -found.high, -found.low))
    assert (back.p, back.wilcoxon_p, back.sign_p) == pytest.approx((found.p, found.wilcoxon_p, found.sign_p))
    assert (shuffled.p, shuffled.wilcoxon_p) == pytest.approx((found.p, found.wilcoxon_p))
    assert found.low <= found.effect <= found.high


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: stats.noise([]), "repeats holds 0"),
        (lambda: stats.provisional_alarm([1.0] * 9, math.nan, 0.1), "latest holds NaN"),
        (lambda: stats.change_points([1.0, math.nan]), "series holds NaN"),
        (lambda: stats.change_points([1.0, 2.0], min_segment=1), "at least 2"),
        (lambda: stats.pooled_paired([1, 2], [1, 2, 3]), "same items"),
        (lambda: stats.pooled_paired([1, 2], [0, 3], ratio=True), "positive values"),
        (lambda: stats.pooled_paired([1, 2], [2, 3], clusters=["m", "m"]), "all items are in one"),
        (lambda: stats.pooled_paired([1, 2], [2, 3], standard_errors=[0.1, 0]), "must be positive"),
        (lambda: stats.permutation_test([1], [2, 3]), "at least 2"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_any_split_agrees_with_the_search_of_each_series() -> None:
    rng = np.random.default_rng(5)
    series = [list(rng.normal(size=n) + shift * (np.arange(n) > n // 2)) for n in range(5, 40) for shift in (0, 1, 4)]
    series += [[1.0] * 9, [1.0] * 5 + [2.0] * 5, [1.0, 2.0], []]
    found = stats.any_split(series, alpha=0.001)
    for values, split in zip(series, found, strict=True):
        points = stats.change_points(values, alpha=0.001) if values else []
        assert split or not points
        data = np.array(values)
        assert split == bool(len(values) and _split(data, _distance_sums(data), 0, len(values), 3, 0.01))
    assert 10 < found.sum() < len(series) - 10

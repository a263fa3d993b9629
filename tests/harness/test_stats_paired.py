"""Comparisons of two arms: exact tests against enumeration, intervals against simulation, sentences against eyes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness import stats
from harness.stats.paired import _by_flips, _by_t, _Found

ARMS = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.booleans(), min_size=n, max_size=n), st.lists(st.booleans(), min_size=n, max_size=n)
    )
)


def arms_with(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two 0/1 arms with the given two-by-two table."""
    a = np.repeat([1, 1, 0, 0], [both, gained, lost, neither])
    b = np.repeat([1, 0, 1, 0], [both, gained, lost, neither])
    return a, b


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 0), (6, 0), (2, 7), (4, 4), (9, 3)])
def test_mcnemar_is_the_enumeration_of_all_ways_to_split(gained, lost):
    a, b = arms_with(10, gained, lost, 5)
    signs = itertools.product([1, -1], repeat=gained + lost)
    sums = np.array([sum(way) for way in signs])
    expected = (np.abs(sums) >= abs(gained - lost)).mean()
    found = stats.mcnemar(a, b)
    assert found.p == pytest.approx(expected)
    assert (found.statistic, found.n) == (gained, 15 + gained + lost)
    assert stats.flips(a, b) == (gained, lost, found.n)


def test_paired_t_is_students_1908_sleep_result():
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = stats.paired_t(first, second)
    assert (found.statistic, found.p) == pytest.approx((-4.0621, 0.002833), abs=5e-5)  # as R's t.test prints it
    compared = stats.compare(first, second)
    assert (compared.effect, compared.low, compared.high) == pytest.approx((-1.58, -2.4598858, -0.7001142), abs=1e-6)
    assert compared.p == pytest.approx(found.p)


def test_paired_t_of_differences_without_spread():
    assert stats.paired_t([1, 2, 3], [1, 2, 3]).p == 1
    assert stats.paired_t([2, 3, 4], [1, 2, 3]) == stats.Significance(math.inf, 0.0, 3, "paired t")


# Newcombe 1998, Statistics in Medicine 17:873, table II, method 10
@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((6, 7), (2, 7), 0.0582, 0.8062)],
)
def test_unpaired_rates_give_newcombes_table(a, b, low, high):
    found = stats.compare_rates(*a, *b)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    table = [[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]
    assert found.p == pytest.approx(scipy_stats.chi2_contingency(table, correction=False).pvalue)
    assert not found.paired
    assert found.n_pairs is None
    assert "unpaired because no samples were kept" in found.sentence


def test_unpaired_detectable_effect_is_the_protocols():
    assert round(100 * stats.compare_rates(630, 1319, 631, 1319).mde, 1) == 5.4


def test_two_perfect_rates_are_not_known_to_be_equal():
    found = stats.compare_rates(30, 30, 40, 40)
    assert (found.effect, found.p) == (0, 1)
    assert found.low < 0 < found.high
    assert found.mde > 0
    assert "are not significantly different: the smallest effect" in found.sentence


def exact_coverage(n: int, gain: float, loss: float) -> float:
    """Probability that the interval covers, summed over every possible table of n items."""
    covered = 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            found = _by_flips(stats.Flips(gained, lost, n), _Found(0, 0, 0, 1, None, ""), 0.95)
            if found.low <= gain - loss <= found.high:
                covered += scipy_stats.multinomial.pmf(
                    [gained, lost, n - gained - lost], n, [gain, loss, 1 - gain - loss]
                )
    return covered


@pytest.mark.parametrize(("gain", "loss"), [(0.1, 0.1), (0.2, 0.1), (0.05, 0.02), (0.3, 0.05), (0.01, 0.01)])
def test_paired_rate_interval_coverage_by_enumeration(gain, loss):
    # Bonett & Price 2012 report coverage close to or above nominal throughout
    assert exact_coverage(25, gain, loss) > 0.93


@given(ARMS)
@settings(max_examples=100, deadline=None)
def test_comparisons_hold_their_estimate_mirror_and_ignore_order(arms):
    a, b = (np.array(arm, dtype=float) for arm in arms)
    found, mirrored = stats.compare(a, b), stats.compare(b, a)
    order = np.random.default_rng(0).permutation(len(a))
    shuffled = stats.compare(a[order], b[order])
    assert found.low <= found.effect <= found.high
    assert found.low < found.high, "no number of items makes a comparison certain"
    assert (mirrored.effect, mirrored.low, mirrored.high) == pytest.approx((-found.effect, -found.high, -found.low))
    assert (mirrored.p, mirrored.mde) == pytest.approx((found.p, found.mde))
    assert (shuffled.effect, shuffled.low, shuffled.p) == pytest.approx((found.effect, found.low, found.p))
    wide = stats.compare(a, b, level=0.99)
    assert wide.low <= found.low
    assert found.high <= wide.high


@given(ARMS.filter(lambda arms: len({int(x) - int(y) for x, y in zip(*arms, strict=True)}) > 1))
@settings(max_examples=40, deadline=None)
def test_paired_bootstrap_mirrors_and_ignores_order(arms):
    a, b = (np.array(arm, dtype=float) for arm in arms)
    found = stats.paired_bootstrap(a, b, resamples=400)
    mirrored = stats.paired_bootstrap(b, a, resamples=400)
    order = np.random.default_rng(1).permutation(len(a))
    shuffled = stats.paired_bootstrap(a[order], b[order], resamples=400)
    ends = (-found.interval.high, -found.interval.low)
    assert (mirrored.interval.low, mirrored.interval.high) == pytest.approx(ends, abs=1e-12)  # one draw, rounded twice
    assert found.p == mirrored.p == shuffled.p
    ends = (shuffled.interval.low, shuffled.interval.high)
    assert (found.interval.low, found.interval.high) == pytest.approx(ends, abs=1e-12)


def test_paired_bootstrap_is_the_exact_resampling_distribution():
    # five differences, all 5^5 resamples enumerated
    a, b = np.array([1.0, 2.0, 0.5, 3.0, 2.5]), np.array([0.5, 2.5, 0.0, 1.0, 2.0])
    means = np.array([np.mean(way) for way in itertools.product(a - b, repeat=5)])
    found = stats.paired_bootstrap(a, b, resamples=40_000, level=0.8)
    assert (found.interval.low, found.interval.high) == pytest.approx(np.quantile(means, [0.1, 0.9]), abs=0.02)
    assert found.p == pytest.approx(2 * (means <= 0).mean(), abs=0.01)


def test_paired_bootstrap_agrees_with_scipy_and_with_mcnemar():
    a, b = arms_with(600, 130, 90, 499)
    found = stats.paired_bootstrap(a, b)
    theirs = scipy_stats.bootstrap(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), paired=True, method="percentile", n_resamples=4_000,
        batch=500, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (found.interval.low, found.interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)
    assert found.p == pytest.approx(stats.mcnemar(a, b).p, abs=0.006)
    assert found.interval.estimate == pytest.approx(40 / 1319)


def test_clusters_widen_what_items_alone_make_look_certain():
    rng = np.random.default_rng(0)
    passage = np.repeat(np.arange(40), 10)
    shift = rng.normal(0.05, 0.3, 40)[passage]
    a, b = rng.normal(0, 0.1, 400) + shift, rng.normal(0, 0.1, 400)
    alone, clustered = stats.compare(a, b), stats.compare(a, b, clusters=passage)
    drawn = stats.compare(a, b, clusters=passage, method="bootstrap")
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert (drawn.low, drawn.high) == pytest.approx((clustered.low, clustered.high), abs=0.02)
    assert drawn.method == "paired bootstrap of clusters"


def test_a_lucky_seed_is_not_a_better_method():
    # the same method trained six times: seeds differ by 3 points, items are plenty
    rng = np.random.default_rng(5)
    false_claims = {"one seed": 0, "three seeds": 0}
    for _ in range(200):
        skill = 0.6 + rng.normal(0, 0.03, (6, 1))
        scores = (rng.random((6, 2_000)) < skill).astype(float)
        false_claims["one seed"] += stats.compare(scores[0], scores[3]).told_apart
        false_claims["three seeds"] += stats.compare(scores[:3], scores[3:]).told_apart
    assert false_claims["one seed"] > 60, "one seed each mistakes luck for skill"
    assert false_claims["three seeds"] < 20, "nominal 5 % of 200 is 10"


def test_seeds_enter_by_satterthwaite():
    rng = np.random.default_rng(7)
    a, b = rng.random((3, 50)), rng.random((4, 50))
    difference = a.mean(0) - b.mean(0)
    parts = [(difference.var(ddof=1) / 50, 49), (stats_seed(a), 2), (stats_seed(b), 3)]
    se = math.sqrt(sum(v for v, _ in parts))
    df = se**4 / sum(v * v / f for v, f in parts)
    found = stats.compare(a, b)
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(abs(difference.mean()) / se, df))
    assert found.high - found.low == pytest.approx(2 * scipy_stats.t.isf(0.025, df) * se)
    assert found.mde == pytest.approx((scipy_stats.t.isf(0.025, df) + scipy_stats.t.isf(0.2, df)) * se)
    assert found.n_seeds == (3, 4)


def stats_seed(table: np.ndarray) -> float:
    """The seed component by numpy's own two-way decomposition."""
    seeds, n = table.shape
    noise = (table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()).ravel()
    return max(0.0, table.mean(1).var(ddof=1) / seeds - noise @ noise / ((seeds - 1) * (n - 1)) / (n * seeds))


def test_the_detectable_effect_is_detected_four_times_in_five():
    rng = np.random.default_rng(0)
    n, effect, told = 400, 0.06, []
    variance = 0.0
    for _ in range(300):
        easy = rng.random(n) < 0.4
        a = (easy | (rng.random(n) < 0.3)).astype(float)
        b = (easy | (rng.random(n) < 0.3 - effect / 0.6)).astype(float)
        told.append(stats.compare(a, b).told_apart)
        variance += (a - b).var() / 300
    assert np.mean(told) == pytest.approx(expected_power(effect, math.sqrt(variance / n)), abs=0.08)
    assert expected_power(stats.mde(n, variance), math.sqrt(variance / n)) == pytest.approx(0.8, abs=0.001)


def expected_power(effect: float, se: float) -> float:
    return float(scipy_stats.norm.cdf(effect / se - scipy_stats.norm.isf(0.025)))


def test_sentences_say_what_a_reader_needs():
    a, b = arms_with(500, 160, 90, 250)
    better = stats.compare(a, b, names=("lora-r16", "ia3"))
    assert better.told_apart
    assert better.discordant == 250
    assert better.sentence.startswith("lora-r16 is 7.0 points above ia3 (95 % interval +3.9 to +10.1, p < 0.001, ")
    assert "1,000 shared items, 250 scored differently; one seed each" in better.sentence
    assert better.sentence.endswith("The smallest effect this comparison could have seen is 4.4 points (80 % power).")
    assert stats.compare(b, a, names=("ia3", "lora-r16")).sentence.startswith("ia3 is 7.0 points below lora-r16 (")

    tie = stats.compare(*arms_with(500, 100, 95, 305), names=("lora", "dora"))
    assert not tie.told_apart
    assert tie.sentence.startswith(
        "lora and dora are not significantly different: the smallest effect this comparison could have seen is 3.9 "
        "points (80 % power), the measured one is +0.5 points (95 % interval -2.2 to +3.2, p = 0.77, "
    )
    nats = stats.compare([-1.0, -2.0, -1.5, -0.7], [-1.1, -2.2, -1.4, -0.9], unit="nat")
    assert "nat (80 % power)" in nats.sentence
    seeds = stats.compare(np.eye(3), 1 - np.eye(3))
    assert "3 shared items; 3 seeds each" in seeds.sentence
    assert "one arm's training noise is unknown" in stats.compare(np.eye(3), [1, 0, 1]).sentence


def test_identical_arms_are_not_proof_of_equality():
    a, _ = arms_with(300, 0, 0, 200)
    found = stats.compare(a, a)
    assert (found.effect, found.p, found.discordant) == (0, 1, 0)
    assert found.low < 0 < found.high
    assert found.mde == pytest.approx(7.906 / 500, rel=1e-3), "fewer flips than six cannot reach 5 %"
    three_seeds = stats.compare(np.tile(a, (3, 1)), np.tile(a, (3, 1)))
    assert three_seeds.low < 0 < three_seeds.high
    same_scores = stats.compare([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert same_scores.mde is None
    assert "are not significantly different: they score the same on every item" in same_scores.sentence


def test_every_item_gained_keeps_an_interval():
    found = stats.compare(np.ones(200), np.zeros(200))
    assert found.told_apart
    assert (found.effect, found.high) == (1, 1)
    assert found.low < 1
    by_cluster = stats.compare(np.ones(200), np.zeros(200), clusters=np.repeat(np.arange(20), 10))
    assert by_cluster.low < by_cluster.effect == 1


def test_log_probability_sees_what_accuracy_does_not():
    rng = np.random.default_rng(0)
    seen = {"log p": 0, "right or wrong": 0}
    for _ in range(100):
        before = rng.normal(-1, 0.6, 400)
        after = before - 0.01 + rng.normal(0, 0.05, 400)
        seen["log p"] += stats.paired_t(after, before).p < 0.05
        seen["right or wrong"] += stats.mcnemar(after > -0.7, before > -0.7).p < 0.05
    assert seen["log p"] > 90
    assert seen["right or wrong"] < 30


def test_by_t_matches_scipy():
    rng = np.random.default_rng(11)
    a, b = rng.normal(size=30), rng.normal(size=30)
    theirs = scipy_stats.ttest_rel(a, b)
    found = _by_t(a[None], b[None], None, 0.9)
    ends = theirs.confidence_interval(0.9)
    assert (found.p, found.low, found.high) == pytest.approx((theirs.pvalue, ends.low, ends.high))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: stats.compare([1, 0, 1], [1, 0]), "same items in the same order: 3 and 2"),
        (lambda: stats.compare([], []), "at least 2 needed"),
        (lambda: stats.compare([1, math.nan], [0, 1]), "a holds NaN"),
        (lambda: stats.compare([1, 0], [0, 1], level=95), "level must be between 0 and 1"),
        (lambda: stats.compare([1, 0], [0, 1], clusters=["x"]), "one label an item"),
        (lambda: stats.compare(np.zeros((2, 2, 2)), np.zeros(2)), "2 dimension"),
        (lambda: stats.mcnemar([0.5, 1], [0, 1]), "right or wrong"),
        (lambda: stats.paired_bootstrap([1, 2, 3], [0, 1, 2]), "differ by 1 on every item"),
        (lambda: stats.compare_rates(5, 4, 1, 4), "not possible"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_a_difference_of_shares_stays_between_minus_one_and_one():
    """Two seeds that could not differ more: t's interval has one degree of freedom and would reach far beyond."""
    a, b = np.array([[1.0] * 20, [0.0] * 20]), np.array([[0.0] * 20, [0.0] * 20])
    found = stats.compare(a, b)
    assert (found.effect, found.low, found.high) == (0.5, -1.0, 1.0)
    assert stats.compare(3 * a, b).high > 1  # scores of another kind know no such bound

"""Families of comparisons, equivalence and calibration against published numbers and plain loops."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions
from scipy import stats as scipy_stats

from harness import stats
from tests.quality import ranks

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=25)

# Benjamini & Hochberg 1995, section 3.2: fifteen tests of a myocardial infarction trial
FIFTEEN = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
    0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
]  # fmt: skip


def test_benjamini_hochberg_rejects_their_four_and_holm_three():
    assert (stats.benjamini_hochberg(FIFTEEN) <= 0.05).sum() == 4
    assert (stats.holm(FIFTEEN) <= 0.05).sum() == 3


def test_holm_of_a_worked_example():
    # R: p.adjust(c(.01, .04, .03, .005), "holm")
    assert stats.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(P_VALUES)
@settings(max_examples=80, deadline=None)
def test_adjusted_p_values_by_their_definitions(p):
    m = len(p)
    order = sorted(range(m), key=lambda i: p[i])
    holm, bh = [0.0] * m, [0.0] * m
    for k, i in enumerate(order):
        holm[i] = min(1.0, max((m - j) * p[order[j]] for j in range(k + 1)))
        bh[i] = min(1.0, min(m / (j + 1) * p[order[j]] for j in range(k, m)))
    assert stats.holm(p).tolist() == pytest.approx(holm)
    assert stats.benjamini_hochberg(p).tolist() == pytest.approx(bh)
    assert (stats.holm(p) >= stats.benjamini_hochberg(p) - 1e-12).all()


@given(P_VALUES, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_adjusting_does_not_depend_on_order(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    shuffled = [p[i] for i in order]
    assert stats.holm(shuffled).tolist() == stats.holm(p)[order].tolist()
    assert stats.benjamini_hochberg(shuffled).tolist() == pytest.approx(stats.benjamini_hochberg(p)[order].tolist())


def test_rank_intervals_of_a_board_with_a_tie_at_the_top():
    # a and b tie, both beat c and d; c beats d; e is so noisy that it beats and loses to none
    better = np.zeros((5, 5), dtype=bool)
    better[0, [2, 3]] = better[1, [2, 3]] = better[2, 3] = True
    ranks = stats.rank_intervals(better)
    assert [str(rank) for rank in ranks] == ["1-3", "1-3", "3-4", "4-5", "1-5"]


@given(st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_rank_intervals_hold_the_rank_and_follow_the_rows(rows, seed):
    rng = np.random.default_rng(seed)
    score = rng.normal(size=rows)
    better = (score[:, None] - score) > rng.uniform(0, 2)
    ranks = stats.rank_intervals(better)
    for row, rank in enumerate(ranks):
        assert 1 <= rank.low <= 1 + (score > score[row]).sum() <= rank.high <= rows
    order = rng.permutation(rows)
    assert stats.rank_intervals(better[np.ix_(order, order)]) == [ranks[i] for i in order]


def test_without_evidence_everybody_may_be_first():
    assert stats.rank_intervals(np.zeros((4, 4))) == [stats.RankInterval(1, 4)] * 4
    assert stats.rank_intervals([[False]]) == [stats.RankInterval(1, 1)]


def test_pairwise_ranks_of_real_differences():
    rng = np.random.default_rng(0)
    easy = rng.random(1_500)
    arms = [(easy + rng.normal(0, 0.1, 1_500) < share).astype(float) for share in (0.70, 0.698, 0.55, 0.30)]
    found = stats.pairwise(arms)
    pairs = list(itertools.combinations(range(4), 2))
    expected = stats.holm([stats.compare(arms[i], arms[j]).p for i, j in pairs])
    assert [found.p[i, j] for i, j in pairs] == [found.p[j, i] for i, j in pairs] == expected.tolist()
    assert found.effects[0, 2] == pytest.approx(stats.compare(arms[0], arms[2]).effect)
    assert np.array_equal(found.effects, -found.effects.T)
    assert (np.diag(found.p) == 1).all()
    ranks = stats.rank_intervals(stats.significantly_better(found.effects, found.p))
    assert [str(rank) for rank in ranks] == ["1-2", "1-2", "3", "4"]
    assert (stats.pairwise(arms, adjust="bh").p <= found.p).all()


def test_pairwise_of_seeds_is_the_comparison_of_each_pair():
    rng = np.random.default_rng(0)
    arms = [rng.normal(mean, 0.5, (3, 80)) for mean in (0, 0.1, 1)]
    found = stats.pairwise(arms, adjust="bh")
    expected = stats.benjamini_hochberg([stats.compare(arms[i], arms[j]).p for i, j in [(0, 1), (0, 2), (1, 2)]])
    assert [found.p[0, 1], found.p[0, 2], found.p[2, 1]] == expected.tolist()
    assert found.effects[2, 0] == pytest.approx(arms[2].mean() - arms[0].mean())
    assert np.array_equal(found.effects, -found.effects.T)


def test_a_tenth_of_the_published_board_ties_with_its_best_row():
    # peft's MetaMathQA suite, 63 rows on GSM8K (n = 1319): protocol 1, section 6 counts ten, unpaired
    root = Path(os.environ.get("PEFT_MATRIX_DATA", Path(__file__).parents[3] / "shared" / "data"))
    folder = root / "peft_method_comparison" / "MetaMathQA"
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}: set PEFT_MATRIX_DATA")
    metrics = [json.loads(path.read_text())["train_info"]["metrics"] for path in folder.glob("*.json")]
    right = sorted((round(1_319 * row[-1]["test accuracy"]) for row in metrics), reverse=True)
    assert len(right) == 63
    against_best = [stats.compare_rates(right[0], 1_319, count, 1_319) for count in right]
    assert sum(not found.told_apart for found in against_best) == 10


def test_holm_keeps_equal_methods_tied():
    rng = np.random.default_rng(1)
    split = 0
    for _ in range(60):
        arms = (rng.random((8, 300)) < 0.6).astype(float)
        found = stats.pairwise(list(arms))
        split += stats.significantly_better(found.effects, found.p).any()
    assert split <= 6, "the family-wise error is 5 %: 3 of 60 expected at most"


def test_tost_is_two_one_sided_t_tests():
    rng = np.random.default_rng(0)
    a = rng.normal(0.02, 0.1, 60)
    b = np.zeros(60)
    found = stats.tost(a, b, 0.05)
    low = scipy_stats.ttest_1samp(a, -0.05, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp(a, 0.05, alternative="less").pvalue
    assert found.p == pytest.approx(max(low, high))
    assert found.equivalent == (found.margin_low < found.low and found.high < found.margin_high)
    ninety = scipy_stats.ttest_1samp(a, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((ninety.low, ninety.high))


def test_tost_ratio_works_on_logarithms():
    rng = np.random.default_rng(2)
    b = rng.lognormal(0, 0.5, 30)
    a = b * rng.lognormal(math.log(1.05), 0.1, 30)
    found = stats.tost_ratio(a, b)
    log_scale = stats.tost_from(
        np.log(a / b).mean(), scipy_stats.sem(np.log(a / b)), math.log(0.8), math.log(1.25), df=29
    )
    assert found.equivalent
    assert found.p == pytest.approx(log_scale.p)
    assert (found.low, found.high) == pytest.approx((math.exp(log_scale.low), math.exp(log_scale.high)))
    assert found.effect == pytest.approx(scipy_stats.gmean(a / b))
    assert found.sentence.startswith("equivalent: the ratio is 1.0")


@given(st.floats(-1, 1), st.floats(0.001, 1), st.floats(0.01, 1))
@settings(max_examples=80, deadline=None)
def test_equivalent_means_the_interval_lies_inside(effect, se, margin):
    found = stats.tost_from(effect, se, -margin, margin, df=20)
    assert found.equivalent == (-margin < found.low and found.high < margin)
    assert found.p == pytest.approx(stats.tost_from(-effect, se, -margin, margin, df=20).p)


def test_a_wide_interval_is_not_equivalence():
    found = stats.tost([0.5, -0.5, 0.4, -0.4], [0, 0, 0, 0], 0.1)
    assert not found.equivalent
    assert found.sentence.startswith("not shown to be equivalent: the difference is ")
    assert stats.tost([1, 2, 3], [1, 2, 3], 0.1).equivalent, "no difference at all is within any margin"
    assert not stats.tost([2, 3, 4], [1, 2, 3], 0.1).equivalent


def test_calibration_error_by_hand():
    # bins of .25: (.2: wrong), (.6 right, .7 wrong: mean .65, half right), (.9, 1.0: both right)
    found = stats.calibration_error([0.2, 0.6, 0.7, 0.9, 1.0], [0, 1, 0, 1, 1], bins=4)
    assert found.error == pytest.approx((1 * 0.2 + 2 * 0.15 + 2 * 0.05) / 5)
    assert [(one.n, one.accuracy) for one in found.bins] == [(1, 0.0), (2, 0.5), (2, 1.0)]
    assert found.bins[1].confidence == pytest.approx(0.65)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_calibration_error_by_its_definition(items, bins):
    confidence, correct = zip(*items, strict=True)
    total = 0.0
    for k in range(bins):
        low, high = np.linspace(0, 1, bins + 1)[k : k + 2]
        held = [(c, r) for c, r in items if low < c <= high or (k == 0 and c == 0)]
        if held:
            total += abs(sum(r for _, r in held) - sum(c for c, _ in held))
    found = stats.calibration_error(confidence, correct, bins)
    assert found.error == pytest.approx(total / len(items), abs=1e-12)
    assert sum(one.n for one in found.bins) == found.n == len(items)


def test_a_calibrated_model_has_a_small_error():
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    right = rng.random(20_000) < confidence
    assert stats.calibration_error(confidence, right).error < 0.02
    assert stats.calibration_error(np.sqrt(confidence), right).error > 0.1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: stats.holm([]), "p holds 0"),
        (lambda: stats.benjamini_hochberg([0.1, 1.2]), r"be in \[0, 1\]"),
        (lambda: stats.holm([0.1, math.nan]), "NaN"),
        (lambda: stats.rank_intervals(np.zeros((2, 3))), "square"),
        (lambda: stats.rank_intervals([[False, True], [True, False]]), "rows 0 and 1 cannot each be better"),
        (lambda: stats.significantly_better(np.zeros((2, 2)), np.full((2, 2), math.nan)), "set p = 1"),
        (lambda: stats.significantly_better(np.zeros((2, 2)), np.ones((3, 3))), "square and alike"),
        (lambda: stats.pairwise([[1, 0]]), "1 row"),
        (lambda: stats.pairwise([[1, 0], [1, 0, 1]]), "same items"),
        (lambda: stats.tost([1, 2], [1, 2], -1), "not possible"),
        (lambda: stats.tost_ratio([1, 0], [1, 2]), "positive values"),
        (lambda: stats.calibration_error([0.5], [2]), "correct must be 0 or 1"),
        (lambda: stats.calibration_error([0.5, 0.5], [1]), "same items"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("rows", [2, 8, 30])
@pytest.mark.parametrize("df", [1.0, 3.0, 16.0, 1e6])
def test_simultaneous_p_is_tukeys(rows: int, df: float) -> None:
    for level in (0.05, 0.01):
        t = distributions.studentized_range.isf(level, rows, df) / np.sqrt(2)
        assert stats.simultaneous_p(t, df, rows) == pytest.approx(level, abs=0.002)


@pytest.mark.parametrize(("scenario", "seeds"), [(1, 2), (2, 3), (6, 3), (7, 5)])
def test_errors_and_coverage_of_a_small_simulation(scenario: int, seeds: int) -> None:
    rng = np.random.default_rng([seeds, scenario])
    found = [ranks.count(rng, seeds, ranks.SCENARIOS[scenario]) for _ in range(60)]
    assert sum(one.wrong for one in found) <= 8, "5 % of 60 boards are 3"
    assert 0.90 <= np.mean([one.pairs for one in found]) <= 0.99
    assert 0.90 <= np.mean([one.rows for one in found]) <= 0.99


def test_power_on_the_committed_records_of_fair_methods() -> None:
    found = ranks.fair_methods()
    assert found["sst2"] >= 4
    assert found["trec"] >= 8
    assert found["strings-compose"] >= 12


def test_two_lucky_seeds_give_no_row_a_rank() -> None:
    """BitFit of the quickstart: the row whose two seeds agreed was ranked below twelve others."""
    rng = np.random.default_rng(0)
    rates = [(0.945, 0.940), (0.910, 0.955), (0.910, 0.950), (0.895, 0.955)] * 2
    hard = rng.permutation(200)
    arms = [np.array([hard >= round(200 * (1 - rate)) for rate in pair], dtype=float) for pair in rates]
    found = stats.fit_rows(arms, [[0, 1]] * len(arms))
    assert not found.better().any()


def test_one_seed_rows_use_pooled_variance_and_have_no_rank() -> None:
    rng = np.random.default_rng(1)
    arms = [(rng.random((3, 400)) < rate).astype(float) for rate in (0.5, 0.7, 0.9)]
    arms.append((rng.random((1, 400)) < 0.9).astype(float))
    found = stats.fit_rows(arms)
    assert found.seed_variance[3] > 0
    assert not found.better()[3].any()
    assert not found.better()[:, 3].any()
    assert found.better()[2, 0]


def test_shared_seeds_cancel_as_far_as_rows_move_together() -> None:
    rng = np.random.default_rng(2)
    common = rng.normal(0, 0.08, 4)
    hard = rng.random(500)
    arms = [np.array([hard + rng.normal(0, 0.02, 500) < 0.6 + shift + c for c in common], float) for shift in (0, 0.02)]
    paired, apart = stats.fit_rows(arms, [[0, 1, 2, 3]] * 2), stats.fit_rows(arms)
    assert paired.effect(0, 1).se < 0.7 * apart.effect(0, 1).se
    one, other = paired.effect(0, 1), paired.effect(1, 0)
    assert (one.effect, one.low, one.high) == pytest.approx((-other.effect, -other.high, -other.low))


def test_pairs_share_the_seeds_they_have_in_common_in_any_order() -> None:
    rng = np.random.default_rng(3)
    arms = [(rng.random((4, 60)) < 0.5).astype(float) for _ in range(3)]
    names = [[0, 1, 2, 3], [2, 3, 1, 0], [7, 1, 8, 0]]
    found = stats.fit_rows([*arms, arms[0][:2]], [*names, [5, 6]])
    order = [3, 1, 0, 2]
    again = stats.fit_rows(
        [arms[0], arms[1][order], arms[2], arms[0][:2]], [names[0], [names[1][k] for k in order], names[2], [5, 6]]
    )
    variance = lambda fitted, i, j: fitted.effect(i, j).se  # noqa: E731
    for i, j in itertools.combinations(range(4), 2):
        assert variance(found, i, j) == pytest.approx(variance(again, i, j))
    apart = stats.fit_rows(
        [*arms, arms[0][:2]], [[(k, seed) for seed in one] for k, one in enumerate([*names, [5, 6]])]
    )
    assert variance(found, 0, 1) != pytest.approx(variance(apart, 0, 1))
    assert variance(found, 0, 3) == pytest.approx(variance(apart, 0, 3)), "no seed in common"


def test_a_rate_at_its_edge_is_no_narrower_than_a_perfect_one() -> None:
    perfect = np.ones((2, 200))
    nearly = perfect.copy()
    nearly[0, 0] = 0
    found = stats.fit_rows([perfect, nearly])
    all_right, one_wrong = found.interval(0), found.interval(1)
    assert all_right.low == pytest.approx(stats.wilson(200, 200).low)
    assert one_wrong.high - one_wrong.low >= all_right.high - all_right.low


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no row"):
        stats.fit_rows([])
    with pytest.raises(ValueError, match="same items"):
        stats.fit_rows([[1, 0, 1], [1, 0]])
    with pytest.raises(ValueError, match="as many names"):
        stats.fit_rows([[1, 0, 1]], [[0, 1]])
    with pytest.raises(ValueError, match="no pairs"):
        stats.simultaneous_p(1.0, 5.0, 1)


def test_a_ratio_of_rows_does_not_depend_on_their_unit() -> None:
    rng = np.random.default_rng(4)
    arms = [centre + rng.normal(0, 1, (3, 1)) + rng.normal(0, 2, (3, 50)) for centre in (20.0, 8.0, 9.0)]
    names = [[0, 1, 2]] * 3
    found = stats.fit_rows(arms, names).log_ratio(0, 1)
    scaled = stats.fit_rows([3 * arms[0], *arms[1:]], names).log_ratio(0, 1)
    assert found is not None
    assert scaled is not None
    assert scaled.effect == pytest.approx(found.effect + np.log(3))
    assert (scaled.se, scaled.df) == pytest.approx((found.se, found.df))
    assert stats.fit_rows([arms[0] - 100, *arms[1:]], names).log_ratio(0, 1) is None, "a mean below zero has none"


def _of_rates(rates: list[tuple[float, ...]]) -> list[np.ndarray]:
    hard = np.random.default_rng(0).permutation(500)
    return [np.array([hard >= round(500 * (1 - rate)) for rate in seeds], dtype=float) for seeds in rates]


def test_seeds_close_together_near_the_top_place_no_row() -> None:
    """Seeds near 100 % lie closer together in points than in logits."""
    steady = [(0.73, 0.75, 0.77), (0.74, 0.76, 0.72), (0.77, 0.74, 0.76), (0.71, 0.75, 0.73)]
    found = stats.fit_rows(_of_rates([*steady, *steady[:3], (0.95, 0.99, 0.97)]))
    assert (found.simultaneous[7, :7] < 0.04).all()
    assert found.better()[7, :7].all()
    loose = stats.fit_rows(_of_rates([*steady, *steady[:3], (0.82, 0.87, 0.92)]))
    assert (loose.simultaneous[7, :7] < 0.04).all(), "the others' steadiness alone would place it"
    assert not loose.better()[7].any()


def test_rows_that_move_together_know_less_about_their_seeds() -> None:
    steps = [(-0.06, 0.01, 0.05), (-0.05, 0.0, 0.06), (-0.06, 0.02, 0.04), (-0.05, 0.01, 0.05)] * 2
    arms = _of_rates([(0.7 + a, 0.7 + b, 0.7 + c) for a, b, c in steps])
    together, apart = stats.fit_rows(arms, [[0, 1, 2]] * 8), stats.fit_rows(arms)
    for i in range(8):
        wide, narrow = together.interval(i), apart.interval(i)
        assert wide.estimate == narrow.estimate
        assert wide.high - wide.low > 1.05 * (narrow.high - narrow.low)

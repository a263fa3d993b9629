"""Ranks and intervals of all rows of a board: errors by simulation, power on committed records, limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as distributions

from harness import stats
from tests.quality import ranks


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

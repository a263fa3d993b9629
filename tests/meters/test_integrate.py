"""Integration of held samples against integrals known by hand."""

from __future__ import annotations

import pytest

from harness.meters.gauges import integrate_held, variation


def sampled(power: list[tuple[float, float]], step: float, end: float) -> list[tuple[float, float]]:
    """Samples of a step function given as (from, watts)."""
    times = [index * step for index in range(round(end / step) + 1)]
    return [(t, [watts for start, watts in power if start <= t][-1]) for t in times]


def test_plateau_before_a_step_is_kept_and_the_tail_counts() -> None:
    samples = sampled([(0, 100), (5, 400)], 0.05, 10)
    got = integrate_held(samples, 0, 10, update_s=0.1)
    # the change is between the samples at 4.95 s and 5 s, and is put in the middle of them
    assert got.joules == pytest.approx(4.975 * 100 + 5.025 * 400)
    assert got.samples == 201


def test_edges_cut_the_held_value_where_they_fall() -> None:
    samples = sampled([(0, 100), (5, 400)], 0.05, 10)
    assert integrate_held(samples, 1.23, 4.321, update_s=0.1).joules == pytest.approx(309.1)
    assert integrate_held(samples, 5.51, 5.52, update_s=0.1).joules == pytest.approx(4.0)


def test_uneven_sampling_does_not_bias_a_plateau() -> None:
    samples = [(0.0, 100.0), (0.01, 100.0), (0.02, 100.0), (3.0, 100.0), (4.0, 100.0)]
    got = integrate_held(samples, 0.005, 3.5, update_s=0.1)
    assert got.joules == pytest.approx(349.5)
    assert got.max_gap_s == pytest.approx(2.98)
    assert got.blind_fraction == pytest.approx((2.98 + 0.5) / 3.495)


@pytest.mark.parametrize(
    ("samples", "start", "end"),
    [
        ([(0.0, 1.0)], 0, 1),
        ([(0.5, 1.0), (2.0, 1.0)], 0, 1),
        ([(0.0, 1.0), (0.9, 1.0)], 0, 1),
        ([(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (3.0, 1.0)], 0, 1),
        ([(0.0, 1.0), (2.0, 1.0)], 1, 1),
    ],
)
def test_what_cannot_be_integrated_raises(samples: list[tuple[float, float]], start: float, end: float) -> None:
    with pytest.raises(ValueError):
        integrate_held(samples, start, end, update_s=0.1)


def test_variation_of_a_known_sample() -> None:
    mean, spread = variation([(0, 999), (1, 90), (2, 110), (3, 999)], 0.5, 2.5)
    assert (mean, spread) == (100, pytest.approx(0.1414, rel=1e-3))
    with pytest.raises(ValueError):
        variation([(0, 1), (1, 1)], 5, 6)

"""Energy from samples of a sensor that holds each value until its next update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

Sample = tuple[float, float]
"""Time (s) and power (W)."""


@dataclass(frozen=True)
class Integral:
    """An integrated window.

    Attributes:
        joules: energy over the window.
        samples: number of samples inside it.
        max_gap_s: longest time between neighbouring samples.
        blind_fraction: share of the window in gaps longer than the sensor's update period, where a value may
            have come and gone unseen.
    """

    joules: float
    samples: int
    max_gap_s: float
    blind_fraction: float


def integrate_held(samples: Sequence[Sample], start_s: float, end_s: float, *, update_s: float) -> Integral:
    """Integrate power over ``[start_s, end_s]``.

    Every sample counts, repeated values too: a value seen again was held in between, and dropping it would turn
    a plateau into a ramp. Between two samples that differ, the change is put in the middle, which errs by at
    most half a sample period. The window's edges cut the held value where they fall.

    Args:
        samples: in order of time.
        start_s: begin of the window, not before the first sample.
        end_s: its end, not after the last sample.
        update_s: the sensor's update period.

    Raises:
        ValueError: fewer than two samples, times that do not increase, or a window the samples do not cover.
    """
    if len(samples) < 2 or samples[0][0] > start_s or samples[-1][0] < end_s:
        raise ValueError("the samples do not cover the window")
    if start_s >= end_s or any(b[0] <= a[0] for a, b in pairwise(samples)):
        raise ValueError("the clock went back or did not move")
    joules = blind_s = max_gap_s = 0.0
    for (t0, p0), (t1, p1) in pairwise(samples):
        middle = (t0 + t1) / 2
        joules += p0 * _overlap(t0, middle, start_s, end_s) + p1 * _overlap(middle, t1, start_s, end_s)
        inside = _overlap(t0, t1, start_s, end_s)
        if inside > 0:
            max_gap_s = max(max_gap_s, t1 - t0)
        if t1 - t0 > update_s:
            blind_s += inside
    count = sum(start_s <= t <= end_s for t, _ in samples)
    return Integral(joules, count, max_gap_s, blind_s / (end_s - start_s))


def variation(samples: Sequence[Sample], start_s: float, end_s: float) -> tuple[float, float]:
    """Mean power (W) and coefficient of variation of the samples inside a window.

    Raises:
        ValueError: fewer than two samples inside.
    """
    inside = [p for t, p in samples if start_s <= t <= end_s]
    if len(inside) < 2:
        raise ValueError("fewer than two samples in the window")
    mean = sum(inside) / len(inside)
    deviation = sqrt(sum((p - mean) ** 2 for p in inside) / (len(inside) - 1))
    return mean, deviation / mean if mean > 0 else 0.0


def _overlap(a: float, b: float, start: float, end: float) -> float:
    return max(0.0, min(b, end) - max(a, start))

"""Has a number moved? Noise floors, alarms, confirmation by reruns, change points (protocol 1, section 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from harness.stats._checks import Floats, fraction, vector
from harness.stats.paired import Significance
from harness.stats.percentiles import TOO_FEW, TooFew

FEWEST_REPEATS = 5
"""Identical runs needed before anything may alarm."""

HISTORY = 20
"""Latest values that an alarm looks back on."""

MAD_TO_SIGMA = 1.4826
"""Makes the median absolute deviation of normal data estimate their standard deviation."""

RELATIVE_FLOORS = {"memory": 0.01, "time": 0.05, "energy": 0.05, "ttft_ms": 0.10}
"""Smallest relative change worth an alarm, by metric family, and by name where a metric has its own."""


@dataclass(frozen=True)
class Noise:
    """Spread of identical runs, in the unit of the data.

    Attributes:
        median: of the runs.
        sigma: 1.4826 times the median absolute deviation.
        n: runs.
    """

    median: float
    sigma: float
    n: int

    def band(self, relative_floor: float) -> float:
        """Half width of the range that counts as unchanged: three sigma, or the floor if that is wider."""
        return max(3 * self.sigma, relative_floor * abs(self.median))


def noise(repeats: ArrayLike) -> Noise | TooFew:
    """Noise of at least five identical runs, shape (n,), by median and median absolute deviation; else ``too_few``.

    Raises:
        ValueError: empty, or NaN.
    """
    return _noise(vector(repeats, "repeats").tolist())


def _noise(data: list[float]) -> Noise | TooFew:
    if len(data) < FEWEST_REPEATS:
        return TOO_FEW
    middle = median(data)
    return Noise(middle, MAD_TO_SIGMA * median([abs(value - middle) for value in data]), len(data))


def median(values: Sequence[float]) -> float:
    """The value of ``numpy.median``, in a tenth of its time for a few values; at least one."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if len(ordered) % 2 else (low + high) / 2


@dataclass(frozen=True)
class Alarm:
    """The latest value against its history.

    Attributes:
        latest: the value to test.
        low: lower end of what counts as unchanged.
        high: upper end.
        relative: (latest - median) / abs(median); None where the median is zero.
        raised: True if the latest value is outside.
    """

    latest: float
    low: float
    high: float
    relative: float | None
    raised: bool


def provisional_alarm(history: ArrayLike, latest: float, relative_floor: float) -> Alarm | TooFew:
    """Test if ``latest`` is outside the median of the last 20 values +- max(3 * 1.4826 * MAD, floor). Either way
    counts.

    Args:
        history: earlier values of the same series and environment, oldest first.
        latest: the new value.
        relative_floor: from :data:`RELATIVE_FLOORS`, as a fraction of the median.

    Raises:
        ValueError: an empty history, or NaN.
    """
    known = _noise(vector(history, "history")[-HISTORY:].tolist())
    value = float(latest)
    if not math.isfinite(value):
        raise ValueError("latest holds NaN or an infinity at [0]")
    if isinstance(known, str):
        return TOO_FEW
    band = known.band(relative_floor)
    relative = (value - known.median) / abs(known.median) if known.median else None
    return Alarm(value, known.median - band, known.median + band, relative, abs(value - known.median) > band)


def permutation_test(a: ArrayLike, b: ArrayLike, *, resamples: int = 9_999, seed: int = 0) -> Significance:
    """Permutation test on the difference of means; exact where there are at most ``resamples`` ways to split.

    Three against three can reach only p = 0.1; five against five reach 0.008.

    Raises:
        ValueError: a sample with fewer than two values, or NaN.
    """
    first, second = np.sort(vector(a, "a", at_least=2)), np.sort(vector(b, "b", at_least=2))
    found = scipy.stats.permutation_test(
        (first, second), _mean_difference, n_resamples=resamples, vectorized=True, rng=np.random.default_rng(seed)
    )
    return Significance(float(found.statistic), float(found.pvalue), len(first) + len(second), "permutation, means")


def _mean_difference(first: Floats, second: Floats, axis: int) -> Floats:
    difference: Floats = first.mean(axis=axis) - second.mean(axis=axis)
    return difference


def mann_whitney(a: ArrayLike, b: ArrayLike) -> Significance:
    """Mann-Whitney U test, two-sided; exact for small samples without ties (scipy.stats.mannwhitneyu).

    Raises:
        ValueError: an empty sample, or NaN.
    """
    first, second = vector(a, "a"), vector(b, "b")
    found = scipy.stats.mannwhitneyu(first, second, alternative="two-sided")
    return Significance(float(found.statistic), float(found.pvalue), len(first) + len(second), "Mann-Whitney")


@dataclass(frozen=True)
class ChangePoint:
    """A lasting change in a series.

    Attributes:
        index: first value after the change.
        before: mean of the segment before.
        after: mean of the segment after.
        p: Student's t test between the two segments.
    """

    index: int
    before: float
    after: float
    p: float

    @property
    def relative(self) -> float | None:
        """Change as a fraction of the level before; None where that is zero."""
        return (self.after - self.before) / abs(self.before) if self.before else None


_TABLE_VALUES = 200_000
"""Values of the tables that :func:`any_split` holds at once."""
_WEAK = 10.0  # splits this much weaker are kept until their neighbours are known, then judged again


def change_points(
    series: ArrayLike,
    *,
    alpha: float = 0.001,
    min_segment: int = 3,
    relative_floor: float = 0.0,
    ratio: bool = False,
) -> list[ChangePoint]:
    """Change points of a series, oldest value first: E-divisive with a t test for the permutations.

    The split is the one of largest energy distance (Matteson & James 2014, arXiv:1306.4933); Student's t test decides
    whether it is a change, which makes the procedure deterministic (Fleming et al. 2023, arXiv:2301.03034). Weak splits
    are kept at first and dropped, weakest first, once their neighbours are known.
    A change needs ``min_segment`` values after it to be seen. As the best split is tested, false alarms are more
    frequent than ``alpha``: measure them with :func:`harness.stats.false_alarm_rate`.

    Args:
        series: shape (n,), one environment, a value a night. Cost grows with n squared.
        alpha: largest p value of a change.
        min_segment: fewest values between two changes, at least 2.
        relative_floor: smallest change worth reporting, as a fraction of the level before.
        ratio: test logarithms, and give geometric means; for seconds, bytes and joules, whose spread is skewed.

    Raises:
        ValueError: empty, NaN, a ``min_segment`` below 2, or, for ratios, a value that is not positive.
    """
    data = vector(series, "series")
    if ratio:
        if data.min() <= 0:
            raise ValueError("change_points: ratios need positive values")
        data = np.log(data)
    weak = min(0.5, _WEAK * fraction(alpha, "alpha"))
    if min_segment < 2:
        raise ValueError(f"min_segment must be at least 2 for a t test, not {min_segment}")
    splits = sorted(_split(data, _distance_sums(data), 0, len(data), min_segment, weak))
    while True:
        points = _points(data, splits)
        kept = [point for point in points if point.p <= alpha and _large_enough(point, relative_floor, ratio)]
        if len(kept) == len(points):
            return [_as_values(point) for point in points] if ratio else points
        # changes too small to matter go first; among equals the least sure
        dropped = max(points, key=lambda p: (not _large_enough(p, relative_floor, ratio), p.p, p.index))
        splits = [index for index in splits if index != dropped.index]


def _as_values(point: ChangePoint) -> ChangePoint:
    """A point of logarithms in the unit of the series."""
    return replace(point, before=math.exp(point.before), after=math.exp(point.after))


def any_split(series: Sequence[Sequence[float]], *, alpha: float = 0.001, min_segment: int = 3) -> NDArray[np.bool_]:
    """Whether :func:`change_points` finds a first split in each series; where not, it finds no change point.

    The first split of all series of one length is searched at once, which takes a fraction of the time.

    Args:
        series: finite values, each series oldest first.
        alpha: as for :func:`change_points`, as is ``min_segment``.

    Returns:
        Shape (series,).
    """
    weak = min(0.5, _WEAK * fraction(alpha, "alpha"))
    out = np.zeros(len(series), bool)
    by_length: dict[int, list[int]] = {}
    for number, values in enumerate(series):
        by_length.setdefault(len(values), []).append(number)
    for length, numbers in by_length.items():
        together = max(1, _TABLE_VALUES // (length + 1) ** 2)
        for start in range(0, len(numbers) if length >= 2 * min_segment else 0, together):
            some = numbers[start : start + together]
            data = np.array([series[i] for i in some], float)
            index, stop = _best_split(_distance_sums(data), 0, length, min_segment)
            for i, values, at, end in zip(some, data, index.tolist(), stop.tolist(), strict=True):
                out[i] = _student(values[:at], values[at:end]) <= weak
    return out


def _large_enough(point: ChangePoint, relative_floor: float, ratio: bool) -> bool:
    least = math.log1p(relative_floor) if ratio else relative_floor * abs(point.before)
    return abs(point.after - point.before) >= least


def _points(data: Floats, splits: list[int]) -> list[ChangePoint]:
    edges = [0, *splits, len(data)]
    points = []
    for start, index, end in zip(edges, edges[1:], edges[2:], strict=False):
        left, right = data[start:index], data[index:end]
        points.append(ChangePoint(index, float(left.mean()), float(right.mean()), _student(left, right)))
    return points


def _student(left: Floats, right: Floats) -> float:
    """Two-sided p of Student's t test; segments without any spread differ surely or not at all."""
    if np.ptp(left) == 0 and np.ptp(right) == 0:
        return float(left[0] == right[0])
    df = len(left) + len(right) - 2
    pooled = (float(((left - left.mean()) ** 2).sum()) + float(((right - right.mean()) ** 2).sum())) / df
    t = float(left.mean() - right.mean()) / math.sqrt(pooled * (1 / len(left) + 1 / len(right)))
    return 2 * float(scipy.special.stdtr(df, -abs(t)))  # the same value as scipy.stats.t.sf, without its checks


def _distance_sums(data: Floats) -> Floats:
    """Summed-area table of abs(x_i - x_j), shape (..., n + 1, n + 1): any block of distances is four look-ups.

    Args:
        data: shape (..., n).
    """
    n = data.shape[-1]
    table = np.zeros((*data.shape[:-1], n + 1, n + 1))
    table[..., 1:, 1:] = np.abs(data[..., :, None] - data[..., None, :]).cumsum(axis=-2).cumsum(axis=-1)
    return table


def _split(data: Floats, sums: Floats, start: int, end: int, least: int, alpha: float) -> list[int]:
    """Indices in (start, end) where the series splits, found by halving again and again."""
    if end - start < 2 * least:
        return []
    index, stop = (int(found) for found in _best_split(sums, start, end, least))
    if _student(data[start:index], data[index:stop]) > alpha:
        return []
    left = _split(data, sums, start, index, least, alpha)
    return [*left, index, *_split(data, sums, index, end, least, alpha)]


def _best_split(sums: Floats, start: int, end: int, least: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The split of largest energy distance: [start, index) against [index, stop), over every index and stop.

    Letting the second part stop early finds a change that is later taken back.

    Args:
        sums: shape (..., n + 1, n + 1); the two results have the shape of its first axes.
    """
    index = np.arange(start + least, end - least + 1)[:, None]
    stop = np.arange(start + 2 * least, end + 1)[None, :]
    m, n = index - start, np.maximum(stop - index, 2)
    cross = sums[..., index, stop] - sums[..., start, stop] - sums[..., index, index] + sums[..., start, index]
    left = sums[..., index, index] - 2 * sums[..., start, index] + sums[..., start, start][..., None, None]
    right = sums[..., stop, stop] - 2 * sums[..., index, stop] + sums[..., index, index]
    energy = 2 * cross / (m * n) - left / (m * (m - 1)) - right / (n * (n - 1))
    scaled = np.where(stop - index >= least, energy * m * n / (m + n), -math.inf)
    best = scaled.reshape(*scaled.shape[:-2], -1).argmax(axis=-1)
    row, column = np.unravel_index(best, scaled.shape[-2:])
    return index[row, 0], stop[0, column]

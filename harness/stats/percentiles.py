"""Percentiles of latencies, shown only where the sample can carry them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike

from harness.stats._checks import fraction, vector

TOO_FEW: Final = "too_few"
"""The typed reason a statistic is missing, as in :data:`harness.record.WhyMissing`."""

TooFew = Literal["too_few"]

_FEWEST = ((0.5, 20), (0.9, 100), (0.99, 300))  # protocol 1, section 5, rule 5


@dataclass(frozen=True)
class Percentile:
    """A percentile with its order-statistic interval, in the unit of the data.

    Attributes:
        q: which percentile, as a fraction.
        estimate: numpy's linear interpolation between order statistics.
        low: an order statistic; with ``high`` it covers the true percentile at least ``level`` of the time.
        high: an order statistic.
        n: values behind it.
        level: nominal coverage.
    """

    q: float
    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95


def fewest_for(q: float) -> int:
    """Values needed before percentile ``q`` (a fraction) is shown: p50 20, p90 100, p99 300; below p50 mirrored.

    A percentile between two of these needs what the farther one needs. Beyond p99: so many that the largest value
    passes the true percentile with 95 % probability, which gives 299 at p99 itself.

    Raises:
        ValueError: ``q`` outside (0, 1).
    """
    far = max(fraction(q, "q"), 1 - q)
    for known, count in _FEWEST:
        if far <= known + 1e-12:  # 1 - 0.1 is a hair above 0.9
            return count
    return math.ceil(math.log(0.05) / math.log(far))


def percentile(values: ArrayLike, q: float, level: float = 0.95) -> Percentile | TooFew:
    """Percentile ``q`` (a fraction) of ``values``, shape (n,), or ``too_few``.

    The interval is free of any assumption on the distribution (David & Nagaraja 2003, section 7.1): the number of
    values below the true percentile is binomial(n, q).

    Raises:
        ValueError: empty, NaN, ``q`` outside (0, 1), or a ``level`` above 0.95 that the sample cannot carry.
    """
    data = np.sort(vector(values))
    n = len(data)
    if n < fewest_for(q):
        return TOO_FEW
    low, high = order_statistic_ranks(n, q, level)
    return Percentile(q, float(np.quantile(data, q)), float(data[low - 1]), float(data[high - 1]), n, level)


def order_statistic_ranks(n: int, q: float, level: float = 0.95) -> tuple[int, int]:
    """Ranks (from 1) of the two order statistics that bracket percentile ``q`` with probability >= ``level``.

    Tails are equal if the sample allows; if the outer end would be beyond the sample it is the extreme value, and the
    inner end moves by the missing coverage.

    Raises:
        ValueError: so few values that not even the whole sample covers.
    """
    below = scipy.stats.binom(n, fraction(q, "q"))  # number of values below the true percentile
    miss = 1 - fraction(level, "level")
    low, high = int(below.ppf(miss / 2)), int(below.isf(miss / 2)) + 1
    if high > n:
        high, low = n, int(below.ppf(max(0.0, miss - float(below.sf(n - 1)))))
    elif low < 1:
        low, high = 1, int(below.isf(max(0.0, miss - float(below.cdf(0))))) + 1
    if not 1 <= low < high <= n:
        raise ValueError(f"{n} value(s) cannot bracket percentile {q:g} at level {level:g}")
    return low, high

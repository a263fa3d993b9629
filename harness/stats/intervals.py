"""Intervals for one row of a board: a rate, a mean, a mean over seeds and items, a percentile."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from harness.stats._checks import Floats, cluster_codes, fraction, seeds_by_items, vector

RESAMPLES = 10_000
"""Bootstrap resamples: the ends of a 95 % interval move by about 2 % of its width from one seed to the next."""

_BLOCK_CELLS = 2_000_000  # resampled indices held at once: 16 MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, all in the unit of the data.

    Attributes:
        estimate: the point estimate.
        low: lower end.
        high: upper end.
        n: items (or repeats) behind it.
        method: how the interval was made.
        level: nominal coverage.
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str
    level: float = 0.95


@functools.cache
def _normal_quantile(level: float) -> float:
    return float(scipy.stats.norm.isf((1 - level) / 2))


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval for a rate (Wilson 1927), which stays inside [0, 1] and has width at 0 of n.

    Raises:
        ValueError: ``n`` < 1 or ``successes`` outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n} trials is not possible")
    z = _normal_quantile(fraction(level, "level"))
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # at 0 and n one end is the rate itself; rounding must not move it past
    return Interval(rate, min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate), n, "Wilson", level)


def standard_error(values: ArrayLike, clusters: ArrayLike | None = None) -> float:
    """Standard error of the mean of ``values``, shape (n,), with items of a cluster allowed to move together.

    Miller 2024 (arXiv:2411.00640): sqrt(sum (s_i - s)^2 / (n (n - 1))), to which clustering adds
    (1 / n^2) times the sum over clusters of the products of different residuals.

    Raises:
        ValueError: fewer than two values, or fewer than two clusters.
    """
    data = vector(values, at_least=2)
    return math.sqrt(mean_variance(data, cluster_codes(clusters, len(data)))[0])


def mean_variance(data: Floats, codes: NDArray[np.int64] | None) -> tuple[float, int]:
    """Squared standard error of a mean and its degrees of freedom (items or clusters, less one)."""
    n = len(data)
    residuals = data - data.mean()
    squares = float(residuals @ residuals)
    if codes is None:
        return squares / (n * (n - 1)), n - 1
    sums = np.bincount(codes, weights=residuals)
    return squares / (n * (n - 1)) + (float(sums @ sums) - squares) / n**2, len(sums) - 1


def mean_interval(values: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95) -> Interval:
    """Student's t interval for a mean: over items, over clusters of items, or over the scores of several seeds.

    Args:
        values: shape (n,). For rates near 0 or 1 prefer :func:`wilson`.
        clusters: shape (n,), a label an item, where items share a passage or a template.

    Raises:
        ValueError: fewer than two values or clusters.
    """
    data = vector(values, at_least=2)
    variance, df = mean_variance(data, cluster_codes(clusters, len(data)))
    method = "t" if clusters is None else "t, clustered"
    return t_interval(float(data.mean()), math.sqrt(variance), df, len(data), method, level)


def t_interval(estimate: float, se: float, df: float, n: int, method: str, level: float = 0.95) -> Interval:
    """estimate +- t(df) * se."""
    half = -float(scipy.special.stdtrit(df, (1 - fraction(level, "level")) / 2)) * se
    return Interval(estimate, estimate - half, estimate + half, n, method, level)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    method: Literal["percentile", "BCa"] = "BCa",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval for any statistic of one sample (Efron & Tibshirani 1993; scipy.stats.bootstrap).

    Args:
        values: shape (n,); order does not matter.
        statistic: callable with an ``axis`` argument, such as ``numpy.mean`` or ``numpy.median``.
        method: plain percentiles, or bias-corrected and accelerated.

    Raises:
        ValueError: fewer than two values, or all equal (resampling then says nothing; a rate has :func:`wilson`).
    """
    data = np.sort(vector(values, at_least=2))
    if data[0] == data[-1]:
        raise ValueError(f"bootstrap: all {len(data)} values are equal, so resampling cannot show their spread")
    result = scipy.stats.bootstrap(
        (data,),
        statistic,
        n_resamples=resamples,
        batch=max(1, _BLOCK_CELLS // len(data)),
        vectorized=True,
        confidence_level=fraction(level, "level"),
        method=method,
        rng=np.random.default_rng(seed),
    )
    low, high = (float(end) for end in result.confidence_interval)
    return Interval(float(statistic(data, axis=0)), low, high, len(data), f"bootstrap {method}", level)


def seed_variance(arm: Floats) -> float:
    """Squared standard error that the choice of seeds adds to the mean of ``arm``, shape (seeds, items).

    Two-way random effects (Searle, Casella & McCulloch 1992, chapter 4): the variance of the seed means over
    their number, less the item-by-seed noise in it, which the variance over items already holds; never below 0.
    """
    seeds, n = arm.shape
    means = arm.mean(axis=1, keepdims=True)
    residuals = arm - means - arm.mean(axis=0) + arm.mean()
    noise = float((residuals**2).sum()) / ((seeds - 1) * (n - 1))
    return max(0.0, float((means.var(ddof=1) - noise / n) / seeds))


def satterthwaite(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and effective degrees of freedom of a sum of (variance, df) parts (Satterthwaite 1946)."""
    total = sum(variance for variance, _ in parts)
    weight = sum(variance**2 / df for variance, df in parts)
    df = total**2 / weight if weight > 0 else parts[0][1]
    return math.sqrt(total), float(df)


def seeds_items_interval(
    scores: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    method: Literal["t", "bootstrap"] = "t",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval for a score that would hold for other items *and* other training seeds.

    Args:
        scores: shape (seeds, items), at least two of each.
        method: ``t`` adds the variances over items and over seeds and uses Satterthwaite's degrees of freedom;
            ``bootstrap`` resamples seeds and items together (Owen 2007, pigeonhole bootstrap) and takes
            percentiles, which are too narrow below about ten seeds.

    Raises:
        ValueError: fewer than two seeds or items.
    """
    table = seeds_by_items(scores, at_least=2)
    seeds, n = table.shape
    if seeds < 2:
        raise ValueError("one seed says nothing about the next: use wilson or mean_interval for the items alone")
    codes = cluster_codes(clusters, n)
    if method == "bootstrap":
        draws = resampled_means((table,), codes, resamples=resamples, seed=seed)[0]
        low, high = percentile_ends(draws, level)
        return Interval(float(table.mean()), low, high, n, "bootstrap of seeds and items", level)
    variance, df_items = mean_variance(table.mean(axis=0), codes)
    se, df = satterthwaite([(variance, df_items), (seed_variance(table), seeds - 1)])
    return t_interval(float(table.mean()), se, df, n, "t over seeds and items", level)


def percentile_ends(draws: Floats, level: float) -> tuple[float, float]:
    """The two ends of a percentile interval from bootstrap draws, shape (resamples,)."""
    tail = (1 - fraction(level, "level")) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)


def resampled_means(
    arms: Sequence[Floats], codes: NDArray[np.int64] | None, *, resamples: int, seed: int
) -> list[Floats]:
    """Bootstrap means of each arm, shape (resamples,): the same items are drawn for all arms, seeds for each alone.

    Args:
        arms: each of shape (seeds, items), over the same items.
        codes: cluster of each item; whole clusters are drawn, and a mean is over the items they bring.
    """
    rng = np.random.default_rng(seed)
    units = arms[0].shape[1] if codes is None else int(codes.max()) + 1
    sums, sizes = list(arms), np.ones(units)
    if codes is not None:
        sums = [np.stack([np.bincount(codes, weights=row) for row in arm]) for arm in arms]
        sizes = np.bincount(codes).astype(np.float64)
    draws = [np.empty(resamples) for _ in arms]
    for block in _blocks(resamples, units * max(arm.shape[0] for arm in arms)):
        picks = rng.integers(units, size=(block.stop - block.start, units))
        items = sizes[picks].sum(axis=1)
        for arm, out in zip(sums, draws, strict=True):
            seeds = arm.shape[0]
            by_seed = np.stack([row[picks].sum(axis=1) for row in arm])  # (seeds, block)
            chosen = rng.integers(seeds, size=(seeds, len(items)))
            out[block] = np.take_along_axis(by_seed, chosen, axis=0).mean(axis=0) / items
    return draws


def _blocks(resamples: int, cells_each: int) -> Iterator[slice]:
    step = max(1, _BLOCK_CELLS // cells_each)
    for start in range(0, resamples, step):
        yield slice(start, min(start + step, resamples))

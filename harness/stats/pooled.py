"""The whole matrix at once: a point lost in every one of forty cells shows in none of them alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from harness.stats._checks import Floats, cluster_codes, fraction, same_length, vector
from harness.stats.intervals import Interval, wilson


@dataclass(frozen=True)
class Pooled:
    """A change common to many cells.

    Attributes:
        effect: mean of after - before, or of after / before - 1 (geometric) for ratios.
        low: lower end of its interval.
        high: upper end.
        p: t test of the mean effect.
        wilcoxon_p: signed-rank test, which an outlying cell cannot sway.
        sign_p: sign test, which asks only which way each cell went.
        pairs: cells in both.
        clusters: independent groups behind the standard error; None where each cell is its own.
        between_sd: spread of the true effects over cells (DerSimonian & Laird), in log ratio for ratios; None
            where no standard errors were given.
        method: how it was computed.
    """

    effect: float
    low: float
    high: float
    p: float
    wilcoxon_p: float
    sign_p: float
    pairs: int
    clusters: int | None
    between_sd: float | None
    method: str


def pooled_paired(
    before: ArrayLike,
    after: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    standard_errors: ArrayLike | None = None,
    ratio: bool = False,
    level: float = 0.95,
) -> Pooled:
    """Pooled paired test of the same cells before and after.

    Cells measured on one night share that night's machine: judge p against the false alarms of identical nights
    (:func:`false_alarm_rate`), not against its nominal level alone.

    Args:
        before: a value a cell, shape (cells,).
        after: likewise, the same cells in the same order.
        clusters: a label a cell, usually its model: cells of a model move together. Where there is one model
            only, leave it out, and the answer holds for that model.
        standard_errors: of each cell's difference (of its log ratio for ratios); then cells are weighted by a
            random-effects model (DerSimonian & Laird 1986), else equally.
        ratio: compare logarithms; for seconds, bytes and joules.

    Raises:
        ValueError: fewer than two cells, different lengths, NaN, one cluster, a standard error or, for ratios, a
            value that is not positive.
    """
    first, second = vector(before, "before", at_least=2), vector(after, "after", at_least=2)
    same_length(first, second, "before and after")
    if ratio and min(first.min(), second.min()) <= 0:
        raise ValueError("pooled_paired: ratios need positive values")
    difference = np.log(second / first) if ratio else second - first
    n, codes = len(difference), cluster_codes(clusters, len(difference))
    weights, between = np.ones(n), None
    if standard_errors is not None:
        errors = vector(standard_errors, "standard_errors")
        same_length(errors, difference, "standard_errors and before")
        between = between_variance(difference, errors)
        weights = 1 / (errors**2 + between)
    mean = float(weights @ difference / weights.sum())
    if between is not None and codes is None:
        se, df = math.sqrt(1 / float(weights.sum())), math.inf
    else:
        se, df = _clustered_error(difference - mean, weights, codes)
    t = mean / se if se > 0 else (math.copysign(math.inf, mean) if mean else 0.0)
    half = float(scipy.stats.t.isf((1 - fraction(level, "level")) / 2, df)) * se
    low, effect, high = (math.expm1(x) if ratio else x for x in (mean - half, mean, mean + half))
    weighting = "equal weights" if between is None else "random effects"
    return Pooled(
        effect=effect,
        low=low,
        high=high,
        p=2 * float(scipy.stats.t.sf(abs(t), df)),
        wilcoxon_p=_wilcoxon(difference),
        sign_p=_sign(difference),
        pairs=n,
        clusters=None if codes is None else int(codes.max()) + 1,
        between_sd=None if between is None else math.sqrt(between),
        method=f"pooled paired, {weighting}" + ("" if codes is None else ", clustered"),
    )


def between_variance(effects: Floats, errors: Floats) -> float:
    """Variance of the true effects over cells, by moments (DerSimonian & Laird 1986); never below 0.

    Raises:
        ValueError: a standard error that is not positive.
    """
    if errors.min() <= 0:
        raise ValueError("standard errors must be positive")
    weights = errors**-2
    mean = weights @ effects / weights.sum()
    spread = float(weights @ (effects - mean) ** 2)
    scale = float(weights.sum() - (weights**2).sum() / weights.sum())
    return max(0.0, (spread - (len(effects) - 1)) / scale)


def _clustered_error(residuals: Floats, weights: Floats, codes: NDArray[np.int64] | None) -> tuple[float, int]:
    """Standard error of a weighted mean whose residuals may move together within a cluster, and its df.

    Liang & Zeger 1986, with the factor G / (G - 1) for G clusters.
    """
    scores = weights * residuals
    sums = scores if codes is None else np.bincount(codes, weights=scores)
    groups = len(sums)
    return math.sqrt(groups / (groups - 1) * float(sums @ sums)) / float(weights.sum()), groups - 1


def _wilcoxon(difference: Floats) -> float:
    if not difference.any():
        return 1.0
    return float(scipy.stats.wilcoxon(difference).pvalue)


def _sign(difference: Floats) -> float:
    up, down = int((difference > 0).sum()), int((difference < 0).sum())
    return float(scipy.stats.binomtest(up, up + down).pvalue) if up + down else 1.0


def false_alarm_rate(
    raises_alarm: Callable[[Floats], bool],
    draw: Callable[[np.random.Generator], Floats],
    *,
    rounds: int = 1_000,
    seed: int = 0,
) -> Interval:
    """False-alarm rate of a detector where nothing changed (A/A simulation), with its Wilson interval.

    Args:
        raises_alarm: the detector under test.
        draw: one history without a change, e.g. a shuffled or resampled run of identical nights.
        rounds: histories drawn.

    Raises:
        ValueError: fewer than one round.
    """
    rng = np.random.default_rng(seed)
    return wilson(sum(bool(raises_alarm(draw(rng))) for _ in range(rounds)), rounds)

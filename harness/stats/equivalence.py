"""Equivalence: showing that a difference is small, which a large p value does not show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from harness.stats._checks import same_length, vector
from harness.stats.intervals import mean_variance


@dataclass(frozen=True)
class Equivalence:
    """Outcome of two one-sided tests.

    Attributes:
        effect: difference or ratio measured.
        low: lower end of its (1 - 2 alpha) interval.
        high: upper end.
        margin_low: lower bound of what counts as equivalent.
        margin_high: upper bound.
        p: the larger of the two one-sided p values.
        equivalent: True if p < alpha, which is the same as the interval being inside the margins.
        n: pairs behind it; None where only an estimate and its standard error were given.
        sentence: the same for a reader.
    """

    effect: float
    low: float
    high: float
    margin_low: float
    margin_high: float
    p: float
    equivalent: bool
    n: int | None
    sentence: str


def tost_from(
    effect: float,
    se: float,
    margin_low: float,
    margin_high: float,
    *,
    df: float = math.inf,
    alpha: float = 0.05,
    n: int | None = None,
) -> Equivalence:
    """Two one-sided t tests (Schuirmann 1987) of an effect against two margins.

    Raises:
        ValueError: margins the wrong way round, or a negative or non-finite number.
    """
    if not (margin_low < margin_high and se >= 0 and math.isfinite(effect) and math.isfinite(se)):
        raise ValueError(f"tost: effect {effect}, se {se}, margins {margin_low} to {margin_high} are not possible")
    if se > 0:
        p = max(
            float(scipy.stats.t.sf((effect - margin_low) / se, df)),
            float(scipy.stats.t.cdf((effect - margin_high) / se, df)),
        )
    else:
        p = 0.0 if margin_low < effect < margin_high else 1.0
    half = float(scipy.stats.t.isf(alpha, df)) * se
    return _told(effect, effect - half, effect + half, margin_low, margin_high, p, alpha, n, "difference")


def tost(a: ArrayLike, b: ArrayLike, margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Is the mean of the paired differences a - b within +-``margin``?

    Args:
        a: shape (n,).
        b: shape (n,), the same items.
        margin: > 0, in the unit of the data; fixed before the data are seen.

    Raises:
        ValueError: fewer than two pairs, different lengths, NaN, a margin that is not positive.
    """
    first, second = vector(a, "a", at_least=2), vector(b, "b", at_least=2)
    same_length(first, second, "a and b")
    difference = first - second
    variance, df = mean_variance(difference, None)
    return tost_from(
        float(difference.mean()), math.sqrt(variance), -margin, margin, df=df, alpha=alpha, n=len(difference)
    )


def tost_ratio(a: ArrayLike, b: ArrayLike, low: float = 0.8, high: float = 1.25, *, alpha: float = 0.05) -> Equivalence:
    """Is the geometric mean of the paired ratios a / b within [``low``, ``high``]? A paired test on logarithms.

    Raises:
        ValueError: as :func:`tost`, a value that is not positive, or limits that are not positive.
    """
    first, second = vector(a, "a", at_least=2), vector(b, "b", at_least=2)
    same_length(first, second, "a and b")
    if min(first.min(), second.min()) <= 0 or low <= 0:
        raise ValueError("tost_ratio: ratios need positive values and positive limits")
    logs = np.log(first / second)
    variance, df = mean_variance(logs, None)
    found = tost_from(
        float(logs.mean()), math.sqrt(variance), math.log(low), math.log(high), df=df, alpha=alpha, n=len(logs)
    )
    ends = (math.exp(found.effect), math.exp(found.low), math.exp(found.high))
    return _told(*ends, low, high, found.p, alpha, found.n, "ratio")


def _told(
    effect: float, low: float, high: float, below: float, above: float, p: float, alpha: float, n: int | None, kind: str
) -> Equivalence:
    equivalent = p < alpha
    verdict = "equivalent" if equivalent else "not shown to be equivalent"
    sentence = (
        f"{verdict}: the {kind} is {effect:.3g} ({100 * (1 - 2 * alpha):g} % interval {low:.3g} to {high:.3g}), "
        f"{'within' if equivalent else 'not surely within'} {below:.3g} to {above:.3g} "
        f"(two one-sided tests, p = {p:.2g})"
    )
    return Equivalence(effect, low, high, below, above, p, equivalent, n, sentence)

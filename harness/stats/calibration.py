"""Does a stated confidence of 80 % mean right 80 % of the time?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from harness.stats._checks import is_binary, same_length, vector


class Bin(NamedTuple):
    """One bar of a reliability diagram: items with confidence in (low, high], their mean confidence and accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error (a fraction), the items behind it, and the bins that hold any."""

    error: float
    n: int
    bins: tuple[Bin, ...]


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> Calibration:
    """Expected calibration error over bins of equal width (Naeini 2015; Guo 2017, arXiv:1706.04599).

    Args:
        confidence: probability given to the prediction, in [0, 1], shape (n,).
        correct: 0/1 or bool, shape (n,).
        bins: number of bins; few items in many bins inflate the error.

    Raises:
        ValueError: empty, different lengths, NaN, or values out of range.
    """
    stated, right = vector(confidence, "confidence"), vector(correct, "correct")
    same_length(stated, right, "confidence and correct")
    if stated.min() < 0 or stated.max() > 1 or not is_binary(right) or bins < 1:
        raise ValueError("calibration_error: confidence must be in [0, 1], correct must be 0 or 1, bins at least 1")
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, stated, side="left") - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    held = np.flatnonzero(counts)
    stated_mean = np.bincount(which, weights=stated, minlength=bins)[held] / counts[held]
    right_mean = np.bincount(which, weights=right, minlength=bins)[held] / counts[held]
    error = float(np.abs(stated_mean - right_mean) @ counts[held]) / len(stated)
    found = tuple(
        Bin(float(edges[k]), float(edges[k + 1]), int(counts[k]), float(c), float(r))
        for k, c, r in zip(held, stated_mean, right_mean, strict=True)
    )
    return Calibration(error, len(stated), found)

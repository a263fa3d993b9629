"""Tukey's studentized range: p values of all pairwise differences of several means at once."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from harness.stats._checks import Floats

_T = np.concatenate([np.linspace(0, 8, 161), np.geomspace(8.2, 400, 120)])
_INVERSE_DF = np.linspace(0, 1, 41)
_QUANTILES = (np.arange(2000) + 0.5) / 2000


def simultaneous_p(t: ArrayLike, df: ArrayLike, rows: int) -> Floats:
    """P values of pairwise t statistics, adjusted for all pairs of ``rows`` means (Tukey 1953, Kramer 1956).

    The probability that the largest of all pairwise |t| exceeds the given one where all means are equal. With a
    separate standard error and degrees of freedom for every pair it is the procedure of Games and Howell (1976).

    Args:
        t: any shape; difference over its standard error.
        df: the same shape; degrees of freedom of each, at least 1 (smaller values count as 1).
        rows: number of means compared with each other, at least 2.

    Returns:
        P values of the shape of ``t``, interpolated in a table; within 0.002 of the exact value near 0.05.
    """
    if rows < 2:
        raise ValueError(f"simultaneous_p: {rows} row(s) have no pairs")
    size, inverse = np.abs(np.asarray(t, dtype=np.float64)), 1 / np.maximum(np.asarray(df, dtype=np.float64), 1.0)
    table = _table(rows)
    across = np.clip(inverse, 0, 1) * (len(_INVERSE_DF) - 1)
    low = np.minimum(across.astype(np.int64), len(_INVERSE_DF) - 2)
    share = across - low
    place = np.clip(np.interp(size, _T, np.arange(len(_T))), 0, len(_T) - 1)
    left = np.minimum(place.astype(np.int64), len(_T) - 2)
    part = place - left

    def at(column: NDArray[np.int64]) -> Floats:
        return np.asarray(table[column, left] * (1 - part) + table[column, left + 1] * part)

    return np.asarray(np.clip(np.exp(at(low) * (1 - share) + at(low + 1) * share), 0.0, 1.0), dtype=np.float64)


@functools.lru_cache(maxsize=64)
def _table(rows: int) -> Floats:
    """Logarithm of the p value, shape (degrees of freedom, t)."""
    width = np.linspace(0, 60, 3001)
    beyond = _normal_range(width, rows)
    out = np.empty((len(_INVERSE_DF), len(_T)))
    for number, inverse in enumerate(_INVERSE_DF):
        ranges = _T * np.sqrt(2)
        if inverse == 0:
            out[number] = np.interp(ranges, width, beyond)
            continue
        scale = np.sqrt(stats.chi2.ppf(_QUANTILES, 1 / inverse) * inverse)  # of the standard error, by quantiles
        out[number] = np.interp(ranges[:, None] * scale, width, beyond).mean(axis=1)
    return np.asarray(np.log(np.maximum(out, 1e-12)))


def _normal_range(width: Floats, rows: int) -> Floats:
    """P(range of ``rows`` standard normal values > width)."""
    z = np.linspace(-8.5, 8.5, 681)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    inside = np.empty_like(width)
    for start in range(0, len(width), 500):
        part = width[start : start + 500, None]
        share = special.ndtr(z + part) - special.ndtr(z)
        inside[start : start + 500] = rows * np.trapezoid(density * share ** (rows - 1), z, axis=1)
    return np.asarray(np.clip(1 - inside, 0.0, 1.0))

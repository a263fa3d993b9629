"""How much the choice of training seeds adds to the error of every row, with the rows lending each other strength.

Two or three seeds say little about the spread of one row. The model here estimates it for all rows together: a row's
variance over seeds is ``scale * g**2``, where ``scale`` is p (1 - p) for a share p (Williams 1982, overdispersed
binomial) and log g varies over the rows around a common level (a log-normal random effect). How far the rows differ is
estimated from the rows themselves (empirical Bayes, as in Smyth 2004), on a grid, with every possible level and spread
weighted by how well it explains the data. With two or three seeds the variance in use is not below the plain mean over
rows, so that a row whose few seeds agreed by luck is not taken for a steady one. ``python -m tests.quality.ranks``
measures what this gives: family-wise error, coverage and power.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.stats._checks import Floats

_G = np.exp(np.linspace(np.log(0.002), 0.0, 30))
"""Standard deviation over seeds relative to its largest possible value, sqrt(p (1 - p))."""
_SPREADS = (0.0, 0.4, 0.8, 1.2)
"""Standard deviations over rows of log g that are considered, equally likely before the data."""
_NEEDS_HELP = 3
"""Degrees of freedom up to which a row's variance may not lie below the mean over rows; with more the bound falls."""
_CORRELATIONS = np.linspace(-0.8, 0.98, 25)
_LEVELS = np.array([-0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.3])
"""Mean of Fisher's z of the correlation of two rows over shared seeds."""
_LEVEL_SPREADS = (0.1, 0.5, 1.0)
_MANY_PAIRS, _FEW_VALUES = 1_000, 100


@dataclass(frozen=True)
class SeedVariance:
    """Variance over training seeds of one seed's mean, for every row; all arrays have shape (..., rows).

    Attributes:
        value: the variance in use.
        df: its degrees of freedom.
        pooled: whether the row uses the mean over rows (True) or its own larger estimate (False).
    """

    value: Floats
    df: Floats
    pooled: NDArray[np.bool_]


def seed_variance_of_rows(variance: Floats, df: Floats, scale: Floats) -> SeedVariance:
    """Variance over seeds of every row, estimated for all rows together.

    Args:
        variance: of the seeds' means, shape (..., rows); ignored where ``df`` is 0.
        df: seeds less one, shape (rows,) or (..., rows).
        scale: largest possible variance of each row, p (1 - p) for a share, shape (..., rows); positive.

    Raises:
        ValueError: no row has two seeds.
    """
    df = np.broadcast_to(np.asarray(df, dtype=np.float64), variance.shape)
    if not (df.sum(axis=-1) > 0).all():
        raise ValueError("seed_variance_of_rows: no row has two seeds, so the spread over seeds is not known")
    seen = np.where(df > 0, variance, 0.0)
    total = df.sum(axis=-1, keepdims=True)
    ratio = (df * seen / scale).sum(axis=-1, keepdims=True) / total
    level = ratio * scale
    own, own_df = _shrunk(seen, df, scale)
    level = level * np.minimum(1.0, _NEEDS_HELP / df.clip(1))
    pooled = own <= level
    level_df = _level_df(seen / scale, df)
    return SeedVariance(np.where(pooled, level, own), np.where(pooled, level_df, np.minimum(own_df, total)), pooled)


def _level_df(ratios: Floats, df: Floats) -> Floats:
    """Degrees of freedom of the mean over rows (Satterthwaite 1946), fewer where a few rows hold most of it.

    The fourth moments are corrected for their bias: E[s^4] = sigma^4 (df + 2) / df.
    """
    total = df.sum(axis=-1, keepdims=True)
    sums = (df * ratios).sum(axis=-1, keepdims=True)
    fourth = (df * ratios**2 * df / (df + 2)).sum(axis=-1, keepdims=True)
    found = np.where(fourth > 0, sums**2 / np.maximum(fourth, 1e-300), total)
    return np.asarray(np.clip(found, 1.0, total))


@functools.cache
def _row_prior() -> tuple[Floats, Floats]:
    """Shapes (levels * spreads, grid) and (levels * spreads,): probabilities of g, and their weights.

    Levels are flat in g, not in log g: a flat logarithm would put most weight on rows without any spread.
    """
    logs = np.log(_G)
    rows, weights = [], []
    for spread in _SPREADS:
        for level in logs:
            density = (logs == level).astype(float) if spread == 0 else np.exp(-0.5 * ((logs - level) / spread) ** 2)
            rows.append(density / density.sum())
            weights.append(np.exp(level))
    return np.array(rows), np.array(weights) / np.sum(weights)


def _shrunk(variance: Floats, df: Floats, scale: Floats) -> tuple[Floats, Floats]:
    """Variance of every row under the model, and its degrees of freedom.

    The posterior of 1 / variance is matched by a gamma distribution, which makes the test statistic Student's t.
    """
    prior, weights = _row_prior()
    of_grid = _G**2 * scale[..., None]
    fit = -0.5 * df[..., None] * (np.log(of_grid) + variance[..., None] / of_grid)
    likelihood = np.exp(fit - fit.max(axis=-1, keepdims=True))
    evidence = np.maximum(likelihood @ prior.T, 1e-300)  # (..., rows, hyper)
    logs = np.log(evidence).sum(axis=-2) + np.log(weights)
    hyper = np.exp(logs - logs.max(axis=-1, keepdims=True))
    hyper /= hyper.sum(axis=-1, keepdims=True)
    posterior = likelihood * ((hyper[..., None, :] / evidence) @ prior)
    posterior /= posterior.sum(axis=-1, keepdims=True)
    mean = (posterior / of_grid).sum(axis=-1)
    square = (posterior / of_grid**2).sum(axis=-1)
    return 1 / mean, 2 * mean**2 / np.maximum(square - mean**2, 1e-12 * mean**2)


@functools.cache
def _pair_prior() -> Floats:
    z = np.arctanh(_CORRELATIONS)
    jacobian = 1 / (1 - _CORRELATIONS**2)
    rows = [np.exp(-0.5 * ((z - level) / spread) ** 2) * jacobian for level in _LEVELS for spread in _LEVEL_SPREADS]
    table = np.array(rows)
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def seed_correlation_of_pairs(correlation: Floats, df: Floats, rows: int) -> Floats:
    """Correlation over shared seeds of two rows' means, for every pair, estimated for all pairs together.

    The same seed gives the same data order and the same fresh head, so that two methods may rise and fall together.
    Two or three seeds cannot show it alone; sample correlations are drawn towards what all pairs have in common.

    Args:
        correlation: sample correlation of each pair over its shared seeds, shape (..., pairs).
        df: shared seeds less one, shape (pairs,); 0 where a pair shares fewer than two.
        rows: rows behind the pairs: ``pairs`` pairs hold the information of ``rows - 1``.

    Returns:
        The expected correlation, shape (..., pairs).
    """
    prior = _pair_prior()
    correlation, df = np.clip(correlation, -0.999, 0.999), np.asarray(df, dtype=np.float64)
    each: NDArray[np.int64] | None = None
    if correlation.ndim == 1 and len(correlation) > _MANY_PAIRS:
        pairs, places = np.unique(correlation + 1j * df, return_inverse=True)
        if len(pairs) <= _FEW_VALUES:  # as where all rows have two seeds: each value is worked out once
            correlation, df, each = pairs.real, pairs.imag, places
    r, n = correlation[..., None], df[..., None]
    # Hotelling 1953, leading term
    fit = n / 2 * np.log1p(-(_CORRELATIONS**2)) - (n - 0.5).clip(0.25) * np.log1p(-_CORRELATIONS * r)
    fit = np.where(n > 0, fit, 0.0)
    likelihood = np.exp(fit - fit.max(axis=-1, keepdims=True))
    evidence = likelihood @ prior.T
    share = 2 / max(rows, 2)
    told = np.log(evidence)
    logs = share * (told if each is None else told[each]).sum(axis=-2)
    hyper = np.exp(logs - logs.max(axis=-1, keepdims=True))
    hyper /= hyper.sum(axis=-1, keepdims=True)
    posterior = likelihood * ((hyper[..., None, :] / evidence) @ prior)
    posterior /= posterior.sum(axis=-1, keepdims=True)
    found = (posterior * _CORRELATIONS).sum(axis=-1)
    return np.asarray(found if each is None else found[each])


def stacked(tables: Sequence[Floats]) -> Iterator[tuple[list[int], Floats]]:
    """Rows with equally many seeds: their numbers, and their scores as one array, (rows, seeds, items)."""
    alike: dict[int, list[int]] = {}
    for number, table in enumerate(tables):
        alike.setdefault(len(table), []).append(number)
    for of in alike.values():
        yield of, np.stack([tables[number] for number in of])


def spread(stack: Floats) -> tuple[Floats, Floats]:
    """Of each row the variance of its seeds' means, and the item-by-seed variance left when both means are out.

    Args:
        stack: shape (rows, seeds, items).
    """
    rows, seeds, items = stack.shape
    if seeds < 2:
        return np.zeros(rows), np.zeros(rows)
    means, whole = stack.mean(axis=2, keepdims=True), stack.reshape(rows, -1).mean(axis=1)[:, None, None]
    left = stack - means - stack.mean(axis=1, keepdims=True) + whole
    noise = (left**2).reshape(rows, -1).sum(axis=1) / ((seeds - 1) * (items - 1))
    return means[:, :, 0].var(axis=1, ddof=1), noise

"""One statistical model for all rows of a board: items x seeds x rows.

The score of a row is a mean over items and training seeds. Its error has two parts: the items (the same for all rows,
so that they cancel in a difference as far as rows agree on them) and the seeds, whose variance is estimated for all
rows together (:mod:`harness.stats.seeds`). Boards, ``compare`` and ``reproduce`` take their intervals from here.
``python -m tests.quality.ranks`` measures the errors of what is printed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from harness.stats._checks import Floats, fraction, same_length, seeds_by_items
from harness.stats.intervals import Interval, t_interval, wilson
from harness.stats.power import mde_from_error
from harness.stats.seeds import seed_correlation_of_pairs, seed_variance_of_rows, spread, stacked

RANK_LEVEL = 0.04
"""Level of the simultaneous test of ranks: below 5 %, since the variances are estimates themselves."""
OWN_LEVEL = 0.035
"""A pair must also differ at this level by its own seeds alone (Welch), without any help from other rows."""
OWN_LEVEL_OF_TWO = 0.01
"""The same where a row has two seeds, which may agree by luck."""
FEW_ITEMS = 10
"""Fewer items that are not all right (or all wrong) put a rate at its edge, where Wilson's interval is used."""


class Effect(NamedTuple):
    """A row less another.

    Attributes:
        effect: difference of the means, in the unit of the scores.
        low: lower end of its interval.
        high: upper end.
        p: two-sided p value of "no difference", not adjusted for other pairs.
        se: standard error.
        df: degrees of freedom.
        mde: smallest effect found 8 times in 10 at this standard error; None where nothing varies.
        method: how it was computed.
    """

    effect: float
    low: float
    high: float
    p: float
    se: float
    df: float
    mde: float | None
    method: str


class OwnSeeds(NamedTuple):
    """Spread of the seeds of each row alone; all of shape (rows,).

    Attributes:
        centre: mean over seeds of the score, or of its logit where scores are shares.
        variance: sample variance over seeds of the same; 0 where there is one seed.
        slope: derivative of the logit at the row's mean, which takes errors over items to its scale; else 1.
    """

    centre: Floats
    variance: Floats
    slope: Floats


@dataclass(frozen=True)
class FittedRows:
    """All rows of a board on the same items. Made by :func:`fit_rows`.

    Attributes:
        means: mean score of each row, shape (rows,).
        counts: training seeds of each row, shape (rows,).
        items: number of items.
        seed_variance: variance of one seed's mean, as used, shape (rows,).
        seed_df: its degrees of freedom, shape (rows,); inf for rows that do not depend on a seed.
        fixed: rows that do not depend on a seed, shape (rows,).
    """

    means: Floats
    counts: NDArray[np.int64]
    items: int
    seed_variance: Floats
    seed_df: Floats
    fixed: NDArray[np.bool_]
    _alone: OwnSeeds
    _noise: Floats  # item-by-seed variance, (rows,)
    _covariance: Floats  # of the item means, (rows, rows)
    _correlation: Floats  # of the seeds' means over shared seeds, as expected under the model, (rows, rows)
    _unit: tuple[float, float] | None  # (0, 1) for shares
    _edge: NDArray[np.int64]  # items that are not all right, or not all wrong, whichever are fewer; (rows,)

    @property
    def replicated(self) -> NDArray[np.bool_]:
        """Rows with two seeds or more, or whose seed changes nothing: those that can be ranked."""
        return (self.counts > 1) | self.fixed

    def _items_part(
        self, i: NDArray[np.int64], j: NDArray[np.int64], u: float | Floats = 1.0, v: float | Floats = 1.0
    ) -> Floats:
        """Squared standard error over items of ``u`` times row i less ``v`` times row j, without the noise that belongs
        to the seeds.
        """
        c = self._covariance
        spread = u * u * c[i, i] + v * v * c[j, j] - 2 * u * v * c[i, j]
        own = u * u * self._noise[i] / self.counts[i] + v * v * self._noise[j] / self.counts[j]
        return np.asarray(np.maximum(spread - own, 0.0) / self.items)

    def _tests(
        self, i: NDArray[np.int64], j: NDArray[np.int64], *, paired: bool, u: float = 1.0, v: float = 1.0
    ) -> tuple[Floats, Floats]:
        """Squared standard error and degrees of freedom of ``u`` times row i less ``v`` times row j.

        Args:
            paired: let seeds that both rows share cancel as far as the rows move together over them.
        """
        over_items = self._items_part(i, j, u, v)
        a = u * u * self.seed_variance[i] / self.counts[i]
        b = v * v * self.seed_variance[j] / self.counts[j]
        together = 2 * self._correlation[i, j] * np.sqrt(a * b) if paired else 0.0
        over_seeds = np.maximum(a + b - together, 0.0)
        # estimates for all rows together err together: their errors add up and do not average out
        scale = (a / np.sqrt(self.seed_df[i]) + b / np.sqrt(self.seed_df[j])) ** 2
        seeds_df = np.where(scale > 0, (a + b) ** 2 / np.maximum(scale, 1e-300), np.inf)
        total = over_items + over_seeds
        weight = over_items**2 / (self.items - 1) + np.where(np.isinf(seeds_df), 0.0, over_seeds**2 / seeds_df)
        df = np.where(weight > 0, total**2 / np.maximum(weight, 1e-300), float(self.items - 1))
        return np.asarray(total), np.asarray(df)

    def effect(self, i: int, j: int, level: float = 0.95) -> Effect:
        """Row ``i`` less row ``j`` with its interval, paired on items and on shared seeds; not adjusted."""
        variance, df = (float(x) for x in self._tests(np.array(i), np.array(j), paired=True))
        estimate, se = float(self.means[i] - self.means[j]), math.sqrt(variance)
        found = t_interval(estimate, se, df, self.items, "", level)
        low, high = found.low, found.high
        if self._unit is not None:
            low, high = max(low, -1.0), min(high, 1.0)
        p = 2 * float(scipy.special.stdtr(df, -abs(estimate) / se)) if se > 0 else float(estimate == 0)
        return Effect(estimate, low, high, p, se, df, mde_from_error(se, df) if se > 0 else None, self.method)

    def log_ratio(self, i: int, j: int, level: float = 0.95) -> Effect | None:
        """Logarithm of row ``i`` over row ``j``, with the errors of :meth:`effect` to first order (delta method).

        Returns:
            None where one of the means is not above zero.
        """
        first, second = float(self.means[i]), float(self.means[j])
        if min(first, second) <= 0:
            return None
        variance, df = (float(x) for x in self._tests(np.array(i), np.array(j), paired=True, u=1 / first, v=1 / second))
        estimate, se = math.log(first / second), math.sqrt(variance)
        found = t_interval(estimate, se, df, self.items, "", level)
        p = 2 * float(scipy.special.stdtr(df, -abs(estimate) / se)) if se > 0 else float(estimate == 0)
        mde = mde_from_error(se, df) if se > 0 else None
        return Effect(estimate, found.low, found.high, p, se, df, mde, f"{self.method}; ratio")

    @property
    def method(self) -> str:
        """The model in a few words, for a table's note."""
        return f"items and seeds, seed variance estimated over {int((~self.fixed).sum())} rows"

    def interval(self, i: int, level: float = 0.95) -> Interval:
        """Interval of row ``i`` for other items and other seeds; a row with one seed uses the others' seed variance.

        A share at its edge (fewer than :data:`FEW_ITEMS` items decide) gets Wilson's interval.
        """
        seeds = float(self.seed_variance[i]) / float(self.counts[i])
        over_items = max(0.0, float(self._covariance[i, i] - self._noise[i] / self.counts[i])) / self.items
        variance = over_items + seeds
        estimate = float(self.means[i])
        if self._unit is not None and (variance == 0 or self._edge[i] < FEW_ITEMS):
            return replace(_effective_wilson(estimate, variance, self.items, level), method="Wilson")
        weight = over_items**2 / (self.items - 1) + (seeds**2 / self._row_df(i) if seeds > 0 else 0.0)
        df = variance**2 / weight if weight > 0 else float(self.items - 1)
        found = t_interval(estimate, math.sqrt(variance), df, self.items, self.method, level)
        if self._unit is None:
            return found
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))

    def _row_df(self, i: int) -> float:
        """Degrees of freedom of row ``i``'s seed variance in its own interval."""
        df = float(self.seed_df[i])
        return min(df, max(df / self._alike, float(self.counts[i]) - 1.0, 1.0))

    @cached_property
    def _alike(self) -> float:
        """How many rows count as one where they rise and fall together over shared seeds; at least 1.

        Variances estimated from normal values that correlate by r correlate by r squared, so that many rows say less
        about the common variance than as many independent ones. A difference of two rows does not suffer: what they
        share cancels in it.
        """
        moving = np.flatnonzero(~self.fixed)
        squares = self._correlation[np.ix_(moving, moving)] ** 2
        return 1.0 + float(squares.sum() - np.trace(squares)) / max(1, len(moving))

    @cached_property
    def simultaneous(self) -> Floats:
        """P values of all pairs, adjusted for all pairs of replicated rows (Games & Howell 1976); (rows, rows).

        1 where one of the rows has a single seed.
        """
        rows = len(self.means)
        out = np.ones((rows, rows))
        kept = np.flatnonzero(self.replicated)
        if len(kept) < 2:
            return out
        a, b = np.triu_indices(len(kept), 1)
        i, j = kept[a], kept[b]
        variance, df = self._tests(i, j, paired=False)
        t = _ratios(self.means[i] - self.means[j], variance)
        out[i, j] = out[j, i] = simultaneous_p(t, df, len(kept))
        return out

    def better(self, *, sign: float = 1.0, level: float = RANK_LEVEL) -> NDArray[np.bool_]:
        """Pairwise wins, shape (rows, rows): True at [i, j] where i is better than j.

        A pair differs if the simultaneous test says so and the pair's own seeds alone say so too (Welch's test at
        :data:`OWN_LEVEL`), so that no row is placed by the steadiness of others alone.

        Args:
            sign: 1 where larger is better, -1 where smaller is.
            level: of the simultaneous test.
        """
        rows = len(self.means)
        out = np.zeros((rows, rows), dtype=bool)
        kept = np.flatnonzero(self.replicated)
        if len(kept) < 2:
            return out
        a, b = np.triu_indices(len(kept), 1)
        i, j = kept[a], kept[b]
        two = np.minimum(self.counts[i], self.counts[j]) == 2
        alone = self._own_p(i, j) < np.where(two, OWN_LEVEL_OF_TWO, OWN_LEVEL)
        differ = (self.simultaneous[i, j] < level) & alone
        gain = sign * (self.means[i] - self.means[j])
        out[i, j], out[j, i] = differ & (gain > 0), differ & (gain < 0)
        return out

    def _own_p(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> Floats:
        """P values of pairs by their own seeds alone: Welch's degrees of freedom, no pooling.

        Shares are compared by their logits. Near 100 % the seeds of an unsteady row lie close together in points and
        would pass for steady ones.
        """
        centre, variance, slope = self._alone
        over_items = self._items_part(i, j, slope[i], slope[j])
        parts = [np.where(self.fixed[k], 0.0, variance[k] / self.counts[k]) for k in (i, j)]
        total = over_items + parts[0] + parts[1]
        weight = over_items**2 / (self.items - 1)
        for k, part in zip((i, j), parts, strict=True):
            weight = weight + np.where(part > 0, part**2 / np.maximum(self.counts[k] - 1, 1), 0.0)
        df = np.where(weight > 0, total**2 / np.maximum(weight, 1e-300), float(self.items - 1))
        return np.asarray(2 * scipy.stats.t.sf(np.abs(_ratios(centre[i] - centre[j], total)), df))


def _ratios(effects: Floats, variances: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = effects / np.sqrt(variances)
    return np.asarray(np.where(variances > 0, found, np.where(effects == 0, 0.0, np.copysign(1e9, effects))))


def _effective_wilson(rate: float, variance: float, items: int, level: float) -> Interval:
    """Wilson's interval with as many items as carry the given variance, at most ``items``."""
    if rate in (0.0, 1.0) or variance == 0:
        return wilson(round(rate * items), items, level)
    n = min(float(items), rate * (1 - rate) / variance)
    z = float(scipy.stats.norm.isf((1 - fraction(level, "level")) / 2))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half), items, "Wilson", level)


def fit_rows(
    arms: Sequence[ArrayLike],
    seeds: Sequence[Sequence[Hashable]] | None = None,
    *,
    fixed: Sequence[bool] | None = None,
) -> FittedRows:
    """The model of all rows on their common items.

    Args:
        arms: for each row its scores, shape (seeds, items) or (items,), all over the same items in the same order.
        seeds: for each row the names of its seeds; None: no row shares a seed with another.
        fixed: rows whose score does not depend on a training seed (nothing is trained).

    Raises:
        ValueError: no row, different items, fewer than two items, NaN, or names that do not match the arms.
    """
    if not arms:
        raise ValueError("fit_rows: no row")
    tables = [seeds_by_items(arm, f"arms[{k}]", at_least=2) for k, arm in enumerate(arms)]
    for table in tables[1:]:
        same_length(tables[0], table, "arms")
    if seeds is not None and [len(s) for s in seeds] != [len(t) for t in tables]:
        raise ValueError("fit_rows: give every row as many names of seeds as it has seeds")
    rows, items = len(tables), tables[0].shape[1]
    steady = np.zeros(rows, dtype=bool) if fixed is None else np.asarray(fixed, dtype=bool)
    counts = np.array([len(table) for table in tables])
    over_items, own, noise, edge = np.empty((rows, items)), np.empty(rows), np.empty(rows), np.empty(rows, np.int64)
    low, high = math.inf, -math.inf
    for of, stack in stacked(tables):
        over_items[of] = stack.mean(axis=1)
        own[of], noise[of] = spread(stack)
        edge[of] = np.minimum((stack < 1).any(axis=1).sum(axis=1), (stack > 0).any(axis=1).sum(axis=1))
        low, high = min(low, float(stack.min())), max(high, float(stack.max()))
    means = over_items.mean(axis=1)
    alone = OwnSeeds(means, own, np.ones(rows))
    centred = over_items - means[:, None]
    unit = (0.0, 1.0) if low >= 0 and high <= 1 else None
    if unit is not None:
        total = counts * items
        share = (means * total + 1) / (total + 2)
        scale = share * (1 - share)
        alone = OwnSeeds(*_logits(tables), 1 / scale)
    else:
        scale = np.maximum(centred.var(axis=1) + noise, 1e-12)
    value, df = _seed_part(own, np.where(steady, 0, counts - 1), scale)
    return FittedRows(
        means=means,
        counts=counts,
        items=items,
        seed_variance=np.where(steady, 0.0, value),
        seed_df=np.where(steady, np.inf, df),
        fixed=steady,
        _alone=alone,
        _noise=noise,
        _covariance=centred @ centred.T / (items - 1),
        _correlation=_shared(tables, seeds, steady),
        _unit=unit,
        _edge=edge,
    )


def _seed_part(own: Floats, df: NDArray[np.int64], scale: Floats) -> tuple[Floats, Floats]:
    if not df.any():  # nothing was repeated: the variance over seeds is not known, and taken for none
        return np.zeros_like(own), np.full(len(own), np.inf)
    found = seed_variance_of_rows(own, df.astype(np.float64), scale)
    return found.value, found.df


def _logits(tables: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Mean and variance over seeds of each row's logit; half an item is added to both sides, so that it is finite."""
    found = []
    for table in tables:
        right = table.sum(axis=1) + 0.5
        logits = np.log(right / (table.shape[1] + 1 - right))
        found.append((logits.mean(), logits.var(ddof=1) if len(logits) > 1 else 0.0))
    means, variances = np.array(found).T
    return means, variances


def _shared(tables: Sequence[Floats], seeds: Sequence[Sequence[Hashable]] | None, steady: NDArray[np.bool_]) -> Floats:
    """Expected correlation over shared seeds of every pair, shape (rows, rows); 0 where none are shared."""
    rows = len(tables)
    out = np.zeros((rows, rows))
    if seeds is None:
        return out
    found = [_shared_of(*pair) for pair in _pairs_of_groups(tables, seeds, steady)]
    found = [one for one in found if one is not None]
    if not found:
        return out
    i, j, correlations, df, parts = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((j, i))  # as of all pairs one after the other, so that sums are the same
    i, j, correlations, df, parts = (column[order] for column in (i, j, correlations, df, parts))
    values = seed_correlation_of_pairs(correlations, df, rows) * parts
    out[i, j] = out[j, i] = values
    return out


Group = tuple[tuple[Hashable, ...], NDArray[np.int64], Floats]
"""Names of seeds, the rows that have just these in this order, and the mean of each row and seed, (rows, seeds)."""


def _pairs_of_groups(
    tables: Sequence[Floats], seeds: Sequence[Sequence[Hashable]], steady: NDArray[np.bool_]
) -> Iterator[tuple[Group, Group]]:
    """All pairs of groups of rows with the same seeds, each group with itself too; steady rows are in none."""
    members: dict[tuple[Hashable, ...], tuple[list[int], list[list[float]]]] = {}
    for number, (names, table) in enumerate(zip(seeds, tables, strict=True)):
        if not steady[number]:
            means = dict(zip(names, table.mean(axis=1).tolist(), strict=True))
            rows, values = members.setdefault(tuple(means), ([], []))
            rows.append(number)
            values.append(list(means.values()))
    groups = [(names, np.array(rows), np.array(values)) for names, (rows, values) in members.items()]
    for at, first in enumerate(groups):
        for second in groups[at:]:
            yield first, second


def _shared_of(
    first: Group, second: Group
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats, Floats] | None:
    """Rows i < j of two groups that move over shared seeds, their correlation, its degrees of freedom and its weight.

    None where the groups share fewer than two seeds.
    """
    names, others = first[0], second[0]
    both = [name for name in names if name in others]
    if len(both) < 2:
        return None
    a, b = (of[:, [n.index(name) for name in both]] for n, _, of in (first, second))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    sizes = np.sqrt(_products(a, a)[:, None] * _products(b, b)[None, :])
    k, m = np.nonzero(sizes > 0)  # a row at its ceiling moves with nothing
    i, j = first[1][k], second[1][m]
    if first is second:
        k, m, i, j = (column[i < j] for column in (k, m, i, j))
    correlations = _products(a[k], b[m]) / sizes[k, m]
    part = len(both) / max(len(names), len(others))
    # only as far as all seeds of both rows are shared does their mean difference profit
    df = np.full(len(i), (len(both) - 1) * part)
    # two seeds always lie on a line, so their correlation is known by its sign alone and counts less
    weight = np.full(len(i), part * (0.9 if len(both) == 2 else 1.0))
    return np.minimum(i, j), np.maximum(i, j), correlations, df, weight


def _products(a: Floats, b: Floats) -> Floats:
    """Scalar product of each row of ``a`` with that of ``b``, (rows,)."""
    return np.asarray(np.matmul(a[:, None, :], b[:, :, None])[:, 0, 0])


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
        scale = np.sqrt(scipy.stats.chi2.ppf(_QUANTILES, 1 / inverse) * inverse)  # of the standard error, by quantiles
        out[number] = np.interp(ranges[:, None] * scale, width, beyond).mean(axis=1)
    return np.asarray(np.log(np.maximum(out, 1e-12)))


def _normal_range(width: Floats, rows: int) -> Floats:
    """P(range of ``rows`` standard normal values > width)."""
    z = np.linspace(-8.5, 8.5, 681)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    inside = np.empty_like(width)
    for start in range(0, len(width), 500):
        part = width[start : start + 500, None]
        share = scipy.special.ndtr(z + part) - scipy.special.ndtr(z)
        inside[start : start + 500] = rows * np.trapezoid(density * share ** (rows - 1), z, axis=1)
    return np.asarray(np.clip(1 - inside, 0.0, 1.0))

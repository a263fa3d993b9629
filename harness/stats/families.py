"""Many comparisons at once: adjusted p values, and ranks that are intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from harness.stats._checks import Floats, fraction, is_binary, same_length, seeds_by_items, vector
from harness.stats.paired import compare, mcnemar_p


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjusted p values (Holm 1979), shape (m,): for claims such as "beats the baseline".

    Raises:
        ValueError: empty, NaN, or outside [0, 1].
    """
    values = _p_values(p)
    order = np.argsort(values, kind="stable")
    steps = (len(values) - np.arange(len(values))) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Adjusted p values that hold the false discovery rate (Benjamini & Hochberg 1995), shape (m,): for exploring.

    Raises:
        ValueError: empty, NaN, or outside [0, 1].
    """
    return np.asarray(scipy.stats.false_discovery_control(_p_values(p), method="bh"), dtype=np.float64)


def _p_values(p: ArrayLike) -> Floats:
    values = vector(p, "p")
    if values.min() < 0 or values.max() > 1:
        raise ValueError("p values must be in [0, 1]")
    return values


@dataclass(frozen=True, order=True)
class RankInterval:
    """The ranks a row may hold: 1 + rows significantly better, up to all rows less those significantly worse."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low}-{self.high}"


def significantly_better(effects: ArrayLike, p: ArrayLike, alpha: float = 0.05) -> NDArray[np.bool_]:
    """Pairwise wins: shape (rows, rows), True at [i, j] if i is better than j.

    Args:
        effects: shape (rows, rows), score of row i less that of row j, in the direction that is good.
        p: shape (rows, rows), already adjusted for the family; 1 where two rows share no items.

    Raises:
        ValueError: not square, different shapes, or NaN.
    """
    effect, values = np.asarray(effects, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if effect.ndim != 2 or effect.shape[0] != effect.shape[1] or effect.shape != values.shape:
        raise ValueError(f"effects and p must be square and alike: {effect.shape} and {values.shape}")
    if not (np.isfinite(effect).all() and np.isfinite(values).all()):
        raise ValueError("effects and p must not hold NaN: set p = 1 where two rows cannot be compared")
    better: NDArray[np.bool_] = (values < fraction(alpha, "alpha")) & (effect > 0)
    return better


def rank_intervals(better: ArrayLike) -> list[RankInterval]:
    """Rank intervals from pairwise verdicts, in the order of the rows; rows that tie share a rank.

    Args:
        better: shape (rows, rows), True at [i, j] where row i is significantly better than row j.

    Raises:
        ValueError: not square, or two rows each better than the other.
    """
    verdicts = np.asarray(better, dtype=bool)
    if verdicts.ndim != 2 or verdicts.shape[0] != verdicts.shape[1] or verdicts.size == 0:
        raise ValueError(f"better must be a square matrix, not shape {verdicts.shape}")
    if (verdicts & verdicts.T).any():
        i, j = np.argwhere(verdicts & verdicts.T)[0].tolist()
        raise ValueError(f"rows {i} and {j} cannot each be better than the other")
    rows = len(verdicts)
    beaten_by, beats = verdicts.sum(axis=0), verdicts.sum(axis=1)
    return [RankInterval(1 + int(lost), rows - int(won)) for lost, won in zip(beaten_by, beats, strict=True)]


@dataclass(frozen=True)
class Pairwise:
    """Every row against every other, each array of shape (rows, rows).

    Attributes:
        effects: score of row i less that of row j.
        p: two-sided p values, adjusted for the whole family; 1 on the diagonal.
    """

    effects: Floats
    p: Floats


def pairwise(
    arms: Sequence[ArrayLike], *, clusters: ArrayLike | None = None, adjust: Literal["holm", "bh"] = "holm"
) -> Pairwise:
    """Paired comparisons (:func:`harness.stats.compare`) of all rows of a board on the items they share.

    Args:
        arms: for each row, its scores of shape (items,) or (seeds, items), all over the same items.
        clusters: a label an item, shape (items,).
        adjust: Holm for what a board claims, Benjamini-Hochberg for exploring.

    Raises:
        ValueError: fewer than two rows, or as :func:`harness.stats.compare`.
    """
    rows = len(arms)
    if rows < 2:
        raise ValueError(f"pairwise: {rows} row(s) cannot be compared with each other")
    upper = np.triu_indices(rows, k=1)
    tables = [seeds_by_items(arm, f"arms[{k}]", at_least=2) for k, arm in enumerate(arms)]
    for table in tables[1:]:
        same_length(tables[0], table, "arms")
    if clusters is None and is_binary(*tables) and all(len(table) == 1 for table in tables):
        effects, p = _right_or_wrong(np.concatenate(tables))
    else:
        effects, p = np.zeros((rows, rows)), np.ones((rows, rows))
        found = [compare(tables[i], tables[j], clusters=clusters) for i, j in zip(*upper, strict=True)]
        effects[upper] = [one.effect for one in found]
        effects -= effects.T
        p[upper] = [one.p for one in found]
    adjusted = (holm if adjust == "holm" else benjamini_hochberg)(p[upper])
    p[upper] = adjusted
    p.T[upper] = adjusted
    return Pairwise(effects, p)


def _right_or_wrong(arms: Floats) -> tuple[Floats, Floats]:
    """Effects and exact McNemar p values of all pairs of 0/1 rows, shape (rows, items), by one product."""
    gained = np.rint(arms @ (1 - arms).T).astype(np.int64)
    return (gained - gained.T) / arms.shape[1], mcnemar_p(gained, gained.T)

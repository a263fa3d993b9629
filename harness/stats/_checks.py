"""Checks that every statistic makes: empty input, lengths that differ, values that are not numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def vector(values: ArrayLike, name: str = "values", *, at_least: int = 1) -> Floats:
    """``values`` as float64 of shape (n,).

    Raises:
        ValueError: not one-dimensional, fewer than ``at_least`` entries, or an entry that is not finite.
    """
    return _finite(np.asarray(values, dtype=np.float64), name, dimensions=1, at_least=at_least)


def seeds_by_items(scores: ArrayLike, name: str = "scores", *, at_least: int = 1) -> Floats:
    """``scores`` as float64 of shape (seeds, items); a vector is one seed.

    Raises:
        ValueError: more than two dimensions, fewer than ``at_least`` items, or an entry that is not finite.
    """
    array = np.asarray(scores, dtype=np.float64)
    return _finite(array[None, :] if array.ndim == 1 else array, name, dimensions=2, at_least=at_least)


def _finite(array: Floats, name: str, *, dimensions: int, at_least: int) -> Floats:
    if array.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension(s), not shape {array.shape}")
    if array.size == 0 or array.shape[-1] < at_least:
        raise ValueError(f"{name} holds {array.shape[-1]} value(s); at least {at_least} needed")
    if not np.isfinite(array).all():
        place = ", ".join(map(str, np.argwhere(~np.isfinite(array))[0]))
        raise ValueError(f"{name} holds NaN or an infinity at [{place}]")
    return array


def same_length(a: Floats, b: Floats, names: str) -> None:
    """Refuse arms that do not hold the same items.

    Raises:
        ValueError: the last dimensions differ.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"{names} must hold the same items in the same order: {a.shape[-1]} and {b.shape[-1]} values were given"
        )


def cluster_codes(clusters: ArrayLike | None, n: int) -> NDArray[np.int64] | None:
    """Cluster labels as codes 0..G-1 of shape (n,), or None where there are no clusters.

    Raises:
        ValueError: a label is missing, or all items are in one cluster.
    """
    if clusters is None:
        return None
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"clusters must hold one label an item: shape {labels.shape} for {n} item(s)")
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError("clusters: at least two are needed, all items are in one")
    return codes.astype(np.int64)


def fraction(value: float, name: str) -> float:
    """``value``, if it is strictly between 0 and 1.

    Raises:
        ValueError: it does not.
    """
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} must be between 0 and 1, not {value}")
    return float(value)


def is_binary(*arrays: Floats) -> bool:
    """True where every value is 0 or 1."""
    return all(bool(np.isin(array, (0.0, 1.0)).all()) for array in arrays)

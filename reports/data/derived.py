"""Quantities that follow from stored samples: true of every record that kept them, whenever it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness import stats
from reports.data.samples import gather


def negative_flips(table: pa.Table) -> float | None:
    """Share of the skill items that the base answers right and the adapted model wrong; None without both arms."""
    after, before = gather([(0, table)], "retained"), gather([(0, table)], "base")
    if after is None or before is None or after.items != before.items:
        return None
    found = stats.flips(after.right[0], before.right[0])
    return found.lost / found.n


def calibration_error(table: pa.Table) -> float | None:
    """Expected calibration error of the test items; None where they carry no log-probability of every option."""
    columns = table.select(["arm", "correct", "logp_choices"]).to_pydict()
    kept = [
        (right, logps)
        for arm, right, logps in zip(columns["arm"], columns["correct"], columns["logp_choices"], strict=True)
        if arm == "adapted" and right is not None and logps is not None and len(logps) > 1
    ]
    if not kept:
        return None
    confidence = np.array([_largest_share(np.asarray(logps, dtype=np.float64)) for _, logps in kept])
    return stats.calibration_error(confidence, [float(right) for right, _ in kept]).error


def _largest_share(logps: NDArray[np.float64]) -> float:
    if not np.isfinite(logps.max()):  # no option is possible
        return 1.0 / len(logps)
    weights = np.exp(logps - logps.max())
    return float(1.0 / weights.sum())


def cut_items(table: pa.Table) -> float | None:
    """Number of test inputs that were longer than the context and were cut; None if nothing was scored."""
    columns = table.select(["arm", "cut"]).to_pydict()
    cut = [bool(c) for arm, c in zip(columns["arm"], columns["cut"], strict=True) if arm == "adapted"]
    return float(sum(cut)) if cut else None


DERIVED: Mapping[str, Callable[[pa.Table], float | None]] = {
    "negative_flips": negative_flips,
    "calibration_error": calibration_error,
    "cut_items": cut_items,
}
"""Metric to how it follows from the samples of one record."""


def derive(tables: Sequence[pa.Table | None]) -> dict[str, list[float]]:
    """Each derived metric of a configuration, one value a seed; seeds without a value are left out."""
    found: dict[str, Any] = {}
    for name, of in DERIVED.items():
        values = [of(table) for table in tables if table is not None]
        found[name] = [value for value in values if value is not None]
    return found

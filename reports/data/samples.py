"""Stored samples as arrays of right and wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SampleSource = Callable[[str], "pa.Table | None"]
"""Record id to its table of scored items, or None where the record has none."""

ARMS = {
    "accuracy": "adapted",
    "merged_accuracy": "merged",
    "retained_accuracy": "retained",
    "base_retained_accuracy": "base",
}
"""Metric to the arm of the samples it is the mean of."""


@dataclass(frozen=True)
class Scores:
    """Right or wrong, for every seed and item of one arm of one configuration.

    Attributes:
        right: (seeds, items), 0.0 or 1.0.
        items: (task, item) of every column, sorted.
        seeds: seed of every row.
    """

    right: NDArray[np.float64]
    items: tuple[tuple[str, str], ...]
    seeds: tuple[Any, ...]

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight of every item such that the weighted mean is the mean over tasks: (items,), sums to 1."""
        names, index, counts = np.unique([task for task, _ in self.items], return_inverse=True, return_counts=True)
        return np.asarray(1.0 / (len(names) * counts[index]), dtype=np.float64)


def gather(tables: Sequence[tuple[Any, pa.Table | None]], arm: str) -> Scores | None:
    """The scores of one arm over the seeds of a configuration.

    Args:
        tables: seed and its samples.
        arm: ``adapted``, ``merged``, ``retained`` or ``base``.

    Returns:
        None where a seed has no samples of this arm, or seeds were scored on different items, so that nothing
        can be resampled together.
    """
    rows: list[NDArray[np.float64]] = []
    items: tuple[tuple[str, str], ...] = ()
    for _, table in tables:
        if table is None:
            return None
        columns = table.select(["arm", "task", "item", "correct"]).to_pydict()
        scored = {
            (task, item): float(correct)
            for which, task, item, correct in zip(
                columns["arm"], columns["task"], columns["item"], columns["correct"], strict=True
            )
            if which == arm and correct is not None
        }
        here = tuple(sorted(scored))
        if not here or (rows and here != items):
            return None
        items = here
        rows.append(np.array([scored[item] for item in here]))
    return Scores(np.stack(rows), items, tuple(seed for seed, _ in tables)) if rows else None

"""Stored samples as arrays of right and wrong, and the intervals that come from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness import stats

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


def interval(scores: Scores) -> stats.Interval:
    """95 % interval of the mean over tasks, items and seeds.

    Two seeds or more: items and seeds vary together (two-way random effects). One seed: sampling error of the
    items alone. Where no item and no seed differs from another, Wilson's interval keeps its width.
    """
    table = scores.right * scores.weights * len(scores.items)  # its plain mean is the mean over tasks
    seeds, items = table.shape
    one_task = len({task for task, _ in scores.items}) == 1
    if scores.right.min() == scores.right.max() or items < 2 or (seeds == 1 and one_task):
        return stats.wilson(round(float(scores.right[0].sum())), items)
    found = stats.seeds_items_interval(table) if seeds > 1 else stats.mean_interval(table[0])
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))

"""Quantities that follow from stored samples: true of every record that kept them, whenever it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness import stats
from harness.record import Record
from reports.data.samples import gather


class Continual(NamedTuple):
    """A model that learned several tasks one after the other.

    Attributes:
        tasks: in the order of learning.
        accuracy: [stages, tasks], fraction: of every task after every stage.
        backward_transfer: mean over all tasks but the last: accuracy at the end less that right after the task was
            learned; below 0 is forgetting (Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 3).
    """

    tasks: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    backward_transfer: float


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


def continual(records: Sequence[Record]) -> Continual | None:
    """Accuracies after each stage of a sequence of tasks, and the backward transfer; None without a whole sequence.

    A sequence is the longest list of tasks that a record's cell was trained on, its earlier stages first. Records of
    shorter lists that begin alike are its other rows; a task is scored after a stage by the cell that trains it there,
    or by one that scores it elsewhere (``score:`` of a task). The records are of one model, method and seed.
    """
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for record in records:
        accuracy = record.metrics.get("accuracy")
        if accuracy is not None and accuracy.value is not None and (learned := _tasks_learned(record)):
            found.setdefault(learned, {})[record.cell["task"]["name"]] = accuracy.value
    tasks = max(found, key=len, default=())
    stages = [found.get(tasks[: n + 1], {}) for n in range(len(tasks))]
    if len(tasks) < 2 or any(task not in stage for stage in stages for task in tasks):
        return None
    matrix = tuple(tuple(stage[task] for task in tasks) for stage in stages)
    lost = [matrix[-1][i] - matrix[i][i] for i in range(len(tasks) - 1)]
    return Continual(tasks, matrix, sum(lost) / len(lost))


def _tasks_learned(record: Record) -> tuple[str, ...]:
    own = record.cell["task"]["name"]
    stages = record.cell.get("stages") or {}
    earlier = tuple((one.get("task") or {"name": own})["name"] for one in stages.get("earlier", ()))
    trains = stages.get("trains", True) and record.cell["method"]["learning_rate"] is not None
    return (*earlier, own) if trains else earlier

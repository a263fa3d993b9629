"""Quantities that follow from stored samples: true of every record that kept them, whenever it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.record import CellView, Record
from reports.data.samples import Samples, scored_items


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


def negative_flips(table: Samples) -> float | None:
    """Share of the skill items that the base answers right and the adapted model wrong; None without both arms."""
    found = scored_items(table)
    after, before = (found.arms.get(arm) if found is not None else None for arm in ("retained", "base"))
    if after is None or before is None or not after.judged or after.judged != before.judged:
        return None
    return int((after.correct < before.correct).sum()) / len(after.judged)


def calibration_error(table: Samples) -> float | None:
    """Expected calibration error of the test items; None where they carry no log-probability of every option."""
    found = scored_items(table)
    return found.calibration_error if found is not None else None


def cut_items(table: Samples) -> float | None:
    """Number of test inputs that were longer than the context and were cut; None if nothing was scored."""
    found = scored_items(table)
    return float(found.arms["adapted"].cut) if found is not None and "adapted" in found.arms else None


DERIVED: Mapping[str, Callable[[Samples], float | None]] = {
    "negative_flips": negative_flips,
    "calibration_error": calibration_error,
    "cut_items": cut_items,
}
"""Metric to how it follows from the samples of one record."""


def derive(tables: Sequence[Samples | None]) -> dict[str, list[float]]:
    """Each derived metric of a configuration, one value a seed; seeds without a value are left out."""
    found: dict[str, Any] = {}
    scored = [scored_items(table) for table in tables]
    for name, of in DERIVED.items():
        values = [of(table) for table in scored if table is not None]
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
            found.setdefault(learned, {})[record.cell_view.name("task")] = accuracy.value
    tasks = max(found, key=len, default=())
    stages = [found.get(tasks[: n + 1], {}) for n in range(len(tasks))]
    if len(tasks) < 2 or any(task not in stage for stage in stages for task in tasks):
        return None
    matrix = tuple(tuple(stage[task] for task in tasks) for stage in stages)
    lost = [matrix[-1][i] - matrix[i][i] for i in range(len(tasks) - 1)]
    return Continual(tasks, matrix, sum(lost) / len(lost))


def _tasks_learned(record: Record) -> tuple[str, ...]:
    cell = record.cell_view
    own = cell.name("task")
    earlier = tuple(CellView(stage).name("task") or own for stage in cell.trained_before)
    trains = cell.part("stages").get("trains", True) and cell.learning_rate is not None
    return (*earlier, own) if trains else earlier

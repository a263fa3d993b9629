"""Energy per correct answer: joules of the evaluation over the number of items answered right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.record import Record
from reports.board.board import BoardTable, Section
from reports.board.figures.drawing import COLOURS, INK, MOST_ROWS, name_rows, row_name, rows_height, save

if TYPE_CHECKING:  # heavy, and only for types
    from matplotlib.axes import Axes

FILE = "energy-per-correct-answer"
NAME = "energy per correct answer"
CAPTION = "Gross energy of the evaluation stage over the items answered right. Whiskers: least and most over seeds."


def draw(table: BoardTable, section: Section) -> dict[str, bytes] | str:
    """One bar a row that has energy, accuracy and the number of items."""
    lines: list[tuple[str, list[float]]] = []
    reasons: set[str] = set()
    for row in section.rows:
        found = [per_correct(table.records[i]) for i in row.records if table.records[i].outcome.status == "ok"]
        reasons.update(value for value in found if isinstance(value, str))
        values = [value for value in found if isinstance(value, float)]
        if values:
            lines.append((row_name(row), values))
    if not lines:
        return "; ".join(sorted(reasons)) or "no row ended with a result"
    lines = sorted(lines, key=lambda line: sum(line[1]) / len(line[1]))[:MOST_ROWS]
    return save(lambda axes: _paint(axes, lines), height=rows_height(len(lines)))


def per_correct(record: Record) -> float | str:
    """Joules per correct answer of one record, or why there is no such number."""
    span = next((span for span in record.spans if span.stage == "evaluate"), None)
    energy = span.get("energy_gross_j") if span is not None else None
    if energy is None or energy.value is None:
        why = energy.why_missing if energy is not None else "not_measured"
        return f"no energy of the evaluation ({why})"
    accuracy = record.metrics.get("accuracy")
    if accuracy is None or accuracy.value is None or not accuracy.n:
        return "no accuracy with a number of items"
    right = round(accuracy.value * accuracy.n)
    return energy.value / right if right else "no item was answered right"


def _paint(axes: Axes, lines: list[tuple[str, list[float]]]) -> None:
    means = [sum(values) / len(values) for _, values in lines]
    whiskers = (
        [mean - min(values) for mean, (_, values) in zip(means, lines, strict=True)],
        [max(values) - mean for mean, (_, values) in zip(means, lines, strict=True)],
    )
    axes.barh(range(len(lines)), means, height=0.7, color=COLOURS[0])
    axes.errorbar(means, range(len(lines)), xerr=whiskers, fmt="none", ecolor=INK, elinewidth=0.9)
    name_rows(axes, [name for name, _ in lines])
    axes.set_xlabel("energy per correct answer (J)")

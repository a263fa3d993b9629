"""Memory by stage, stacked: how far each stage raised the peak over the stages before it.

Peaks of stages do not add up, so what is stacked is the running maximum: the whole bar is the highest peak of the
cell, and each piece is what its stage added to it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from harness.metrics import METRICS
from harness.record import Record
from reports.board.board import BoardTable, Section
from reports.board.figures.drawing import COLOURS, MOST_ROWS, name_rows, row_name, rows_height, save
from reports.board.formats.text import scale

if TYPE_CHECKING:  # heavy, and only for types
    from matplotlib.axes import Axes

FILE = "memory-by-stage"
NAME = "memory by stage"
CAPTION = (
    "The whole bar is the highest peak of the cell; each piece is what its stage added to the peak of the stages "
    "before it. Mean over seeds."
)
KINDS = ("cuda_allocated_peak_bytes", "cuda_reserved_peak_bytes", "device_used_peak_bytes", "peak_rss_bytes")

LEGEND_LINE_IN, LEGEND_TITLE_IN = 0.18, 0.9
"""Inches of height that a line of the legend needs, and its title with the axis."""
Line = tuple[str, dict[str, float]]


def draw(table: BoardTable, section: Section) -> dict[str, bytes] | str:
    """One bar a row, of the first kind of memory that any row has."""
    for kind in KINDS:
        lines: list[Line] = []
        for row in section.rows[:MOST_ROWS] if section.rows else ():
            pieces = [raised(table.records[i], kind) for i in row.records if table.records[i].outcome.status == "ok"]
            pieces = [piece for piece in pieces if piece]
            if pieces:
                stages = list(dict.fromkeys(stage for piece in pieces for stage in piece))
                mean = {stage: sum(p.get(stage, 0.0) for p in pieces) / len(pieces) for stage in stages}
                lines.append((row_name(row), mean))
        if lines:
            raising = {stage for _, pieces in lines for stage, value in pieces.items() if value}
            height = max(rows_height(len(lines)), LEGEND_TITLE_IN + LEGEND_LINE_IN * len(raising))
            return save(partial(_paint, kind=kind, lines=lines), height=height)
    return "no stage has a memory peak"


def raised(record: Record, kind: str) -> dict[str, float]:
    """Stage to the bytes by which it raised the peak of this kind; their sum is the highest peak."""
    highest = 0.0
    out = {}
    for span in record.spans:
        found = span.get(kind)
        if found is not None and found.value is not None:
            out[span.stage] = max(0.0, found.value - highest)
            highest = max(highest, found.value)
    return out


def _paint(axes: Axes, kind: str, lines: list[Line]) -> None:
    definition = METRICS[kind]
    chosen = scale(definition, [sum(pieces.values()) for _, pieces in lines])
    stages = list(dict.fromkeys(stage for _, pieces in lines for stage in pieces))
    stages = [stage for stage in stages if any(pieces.get(stage) for _, pieces in lines)]
    left = [0.0] * len(lines)
    for number, stage in enumerate(stages):
        widths = [pieces.get(stage, 0.0) * chosen.factor for _, pieces in lines]
        again = number >= len(COLOURS)  # a colour for the second time
        axes.barh(
            range(len(lines)),
            widths,
            left=left,
            height=0.7,
            color=COLOURS[number % len(COLOURS)],
            label=stage,
            hatch="////" if again else None,
            edgecolor="white" if again else None,
            linewidth=0,
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    name_rows(axes, [name for name, _ in lines])
    axes.set_xlabel(f"{definition.label} ({chosen.unit})")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), title="raised by")

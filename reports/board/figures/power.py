"""Power trace of a cell: watts over time, from the record's own series."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from harness.record import Record
from reports.board.board import BoardRow, BoardTable, Section
from reports.board.figures.drawing import COLOURS, FAINT, row_name, save

if TYPE_CHECKING:  # heavy, and only for types
    from matplotlib.axes import Axes

FILE = "power-trace"
NAME = "power trace"
CAPTION = "Power of the assigned devices over one cell: the first row of the table that has a trace."
WATTS, SECONDS = "power_w", "power_s"
"""Series of a record: power in watts, and the seconds since the cell's begin at which it was read."""


def draw(table: BoardTable, section: Section) -> dict[str, bytes] | str:
    """The trace of the best row that has one."""
    for row in section.rows:
        for identity in row.records:
            record = table.records[identity]
            seconds, watts = record.series.get(SECONDS, ()), record.series.get(WATTS, ())
            if len(watts) > 1 and len(watts) == len(seconds):
                return save(partial(_paint, row=row, record=record))
    return "no record holds a power trace"


def _paint(axes: Axes, row: BoardRow, record: Record) -> None:
    axes.plot(record.series[SECONDS], record.series[WATTS], color=COLOURS[0], linewidth=1.0, drawstyle="steps-post")
    axes.set_xlabel("time since the cell began (s)")
    axes.set_ylabel("power (W)")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{row_name(row)}, seed {record.cell_view.seed}", fontsize=9, parse_math=False)
    axes.grid(visible=True, color=FAINT, alpha=0.25, linewidth=0.6)

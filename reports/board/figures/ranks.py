"""Rank intervals: what the paired tests allow, best first. A critical-difference diagram for unequal differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.metrics import METRICS
from reports.board.board import BoardRow, BoardTable, Section
from reports.board.figures.drawing import ACCENT, COLOURS, MOST_ROWS, name_rows, row_name, rows_height, save

if TYPE_CHECKING:  # heavy, and only for types
    from matplotlib.axes import Axes

FILE = "rank-intervals"
NAME = "rank intervals"
CAPTION = (
    "Bars: first to last rank that the paired tests allow. Rows whose bars overlap in full are not significantly "
    "different; those that may be the best are green."
)


def draw(table: BoardTable, section: Section) -> dict[str, bytes] | str:
    """One line a ranked row: its rank interval, ordered by its middle."""
    ranked = [row for row in section.rows if row.rank is not None]
    if len(ranked) < 2:
        return "fewer than two rows are ranked"
    ranked.sort(key=lambda row: (sum(row.rank or ()), row.rank, row.config))
    shown = ranked[:MOST_ROWS]
    label = METRICS[table.board.rank].label
    return save(lambda axes: _paint(axes, shown, len(ranked), label), height=rows_height(len(shown)))


def _paint(axes: Axes, rows: list[BoardRow], total: int, label: str) -> None:
    for place, row in enumerate(rows):
        first, last = row.rank or (0, 0)
        colour = ACCENT if first == 1 else COLOURS[0]
        axes.plot([first, last], [place, place], color=colour, linewidth=4, solid_capstyle="round", alpha=0.8)
        axes.plot([(first + last) / 2], [place], marker="|", color=colour, markersize=9)
    name_rows(axes, [row_name(row) for row in rows])
    axes.set_xlim(0.5, total + 0.5)
    left_out = f"; the first {len(rows)} of {total} rows" if total > len(rows) else ""
    axes.set_xlabel(f"rank by {label} (1 is best){left_out}")

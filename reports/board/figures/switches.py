"""Memory saved against time lost: one point a row, as ratios to the same method in the plain variant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.board.board import BoardRow, BoardTable, Section
from reports.board.figures.drawing import COLOURS, FAINT, MARKERS, save
from reports.board.formats.text import plain

if TYPE_CHECKING:  # heavy, and only for types
    from matplotlib.axes import Axes

FILE = "switches"
NAME = "memory saved against time lost"
CAPTION = (
    "Each point is a switch of training: duration of a step and peak memory of training over those of the same method "
    "in the plain variant, which is the cross. Left: faster. Below: less memory."
)
TIME = "step_ms.vs_plain"
MEMORY = ("train.cuda_allocated_peak_bytes.vs_plain", "train.peak_rss_bytes.vs_plain")


def draw(_table: BoardTable, section: Section) -> dict[str, bytes] | str:
    """One point a row with both ratios."""
    kind = next((kind for kind in MEMORY if any(_number(row, kind) is not None for row in section.rows)), None)
    if kind is None:
        return "no row has a ratio of memory to its plain variant"
    points = [
        (row, time, memory)
        for row in section.rows
        if (time := _number(row, TIME)) is not None and (memory := _number(row, kind)) is not None
    ]
    if not points:
        return "no row has ratios of both time and memory to its plain variant"
    return save(lambda axes: _paint(axes, points, kind))


def _number(row: BoardRow, key: str) -> float | None:
    return row.cells[key].value if key in row.cells else None


def _paint(axes: Axes, points: list[tuple[BoardRow, float, float]], kind: str) -> None:
    axes.axhline(1, color=FAINT, linewidth=0.8)
    axes.axvline(1, color=FAINT, linewidth=0.8)
    axes.plot([1], [1], marker="x", linestyle="none", color=FAINT, markersize=8)
    methods = sorted({row.labels["method"].partition("+")[0] for row, _, _ in points})
    for row, time, memory in points:
        place = methods.index(row.labels["method"].partition("+")[0])
        axes.plot([time], [memory], marker=MARKERS[place % len(MARKERS)], color=COLOURS[place % len(COLOURS)])
        axes.annotate(
            plain(row.labels["method"].replace("+", " + "), 36),
            (time, memory),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xlabel("duration of a step, ratio to plain")
    axes.set_ylabel("peak memory of training, ratio to plain" + (" (resident)" if "rss" in kind else ""))

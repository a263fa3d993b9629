"""Heat map: the board's main metric over methods and quantizations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.metrics import METRICS
from reports.board.board import BoardRow, BoardTable, Section
from reports.board.figures.drawing import INK, LABEL_CHARACTERS, MOST_ROWS, rows_height, save
from reports.board.formats.text import MISSING, plain, scale

if TYPE_CHECKING:  # heavy, and only for types
    from matplotlib.axes import Axes

FILE = "method-by-quantization"
NAME = "method by quantization"
MOST_ACROSS = MOST_ROWS // 4
CAPTION = "Darker is better. A dash: the cell ended without a result; the table says why. Blank: not planned here."


def draw(table: BoardTable, section: Section) -> dict[str, bytes] | str:
    """Methods down, in the table's order; quantizations across; the sorting metric in each place.

    Many quantizations of few methods are transposed, so that there is room for their names.
    """
    methods = list(dict.fromkeys(row.labels["method"] for row in section.rows))
    quantizations = sorted({row.labels["quantization"] for row in section.rows}, key=lambda q: (q != "none", q))
    if len(methods) < 2 or len(quantizations) < 2:
        return "needs two methods and two quantizations"
    down, across = methods, quantizations
    if len(across) > MOST_ACROSS:
        down, across = across, down
    if len(down) > MOST_ROWS or len(across) > MOST_ACROSS:
        return f"{len(methods)} methods x {len(quantizations)} quantizations are too many to be read"
    places: dict[tuple[str, str], list[BoardRow]] = {}
    for row in section.rows:
        places.setdefault((row.labels["method"], row.labels["quantization"]), []).append(row)
    if any(len(rows) > 1 for rows in places.values()):
        return "several rows share a method and a quantization"
    name = table.board.sort
    values = {place: rows[0].cells[name].value for place, rows in places.items() if name in rows[0].cells}
    if not any(value is not None for value in values.values()):
        return f"no row has a value of {METRICS[name].label}"
    if down is quantizations:
        values = {(quantization, method): value for (method, quantization), value in values.items()}
    return save(lambda axes: _paint(axes, down, across, values, name), height=rows_height(len(down)))


def _paint(
    axes: Axes,
    rows: list[str],
    columns: list[str],
    values: dict[tuple[str, str], float | None],
    name: str,
) -> None:
    definition = METRICS[name]
    chosen = scale(definition, [value for value in values.values() if value is not None])
    grid = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in values.items():
        if value is not None:
            grid[rows.index(row), columns.index(column)] = value * chosen.factor
    colours = "Greens_r" if definition.better == "lower" else "Greens"
    # a mesh, not an image: a page may hold no address, and pictures inside an SVG are addresses
    axes.pcolormesh(grid, cmap=colours, edgecolors="white", linewidth=0.5)
    axes.invert_yaxis()
    low, high = np.nanmin(grid), np.nanmax(grid)
    for place, value in values.items():
        down, across = rows.index(place[0]), columns.index(place[1])
        shade = 0.0 if value is None or high == low else (grid[down, across] - low) / (high - low)
        dark = value is not None and (1 - shade if definition.better == "lower" else shade) > 0.6
        text = MISSING if value is None else chosen.text(value)
        axes.text(across + 0.5, down + 0.5, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axes.set_yticks([n + 0.5 for n in range(len(rows))], [plain(row, LABEL_CHARACTERS) for row in rows])
    axes.set_xticks([n + 0.5 for n in range(len(columns))], [plain(column, LABEL_CHARACTERS) for column in columns])
    axes.tick_params(length=0)
    for label in (*axes.get_yticklabels(), *axes.get_xticklabels()):
        label.set_parse_math(False)
    unit = f" ({chosen.unit})" if chosen.unit else ""
    axes.set_xlabel(f"{definition.label}{unit}")

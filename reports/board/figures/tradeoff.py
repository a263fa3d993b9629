"""Trade-off: the first Pareto axis against the second, with error bars and the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.digests import slug
from reports.board.board import BoardRow, CellContent, Section
from reports.board.figures.drawing import ACCENT, COLOURS, FAINT, INK, LABEL_CHARACTERS, MARKERS, MOST_NAMES, save
from reports.board.formats.text import Scale, plain, scale
from reports.board.spec import Quantity

if TYPE_CHECKING:  # heavy, and only for types
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class _Point:
    row: BoardRow
    x: CellContent
    y: CellContent


NAME = "trade-off"
CAPTION = "Bars: 95 % interval, or one standard deviation over seeds. Rings: Pareto front."


def base_name(section: Section) -> str:
    """File name without ending, after what is drawn."""
    return "-against-".join(_short(axis) for axis in section.axes[:2])


def points(section: Section) -> list[_Point]:
    """The rows that have a value on the first two axes."""
    if len(section.axes) < 2:
        return []
    return [
        _Point(row, row.axes[1], row.axes[0])
        for row in section.rows
        if row.status == "ok" and row.axes[0].value is not None and row.axes[1].value is not None
    ]


def draw(section: Section) -> dict[str, bytes] | str:
    """The first Pareto axis (y) against the second (x), with error bars and the front; or why there is nothing."""
    if not points(section):
        return "no row has a value on both Pareto axes" if section.axes else "the board has no Pareto axes"
    return save(lambda axes: _scatter(axes, section))


def _scatter(axes: Axes, section: Section) -> None:
    """Colour shows the method, shape the quantization; rings mark the front."""
    found = points(section)
    y_axis, x_axis = section.axes[:2]
    x_scale = scale(x_axis.definition, [p.x.value or 0.0 for p in found])
    y_scale = scale(y_axis.definition, [p.y.value or 0.0 for p in found])
    methods = list(dict.fromkeys(p.row.labels["method"] for p in found))  # best first, as in the table
    quantizations = sorted({p.row.labels["quantization"] for p in found})
    # more methods than colours: the best keep theirs, the rest share a grey, and the front is named
    coloured = methods if len(methods) <= len(COLOURS) else methods[: len(COLOURS) - 1]
    colours = dict(zip(coloured, COLOURS, strict=False))
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(quantizations)}
    series: dict[tuple[str, str], list[_Point]] = {}
    for point in found:
        labels = point.row.labels
        series.setdefault((colours.get(labels["method"], FAINT), markers[labels["quantization"]]), []).append(point)
    for (colour, marker), members in series.items():
        _series(axes, members, x_scale, y_scale, {"marker": marker, "color": colour})
    front = [p for p in found if p.row.front]
    axes.scatter(
        [(p.x.value or 0.0) * x_scale.factor for p in front],
        [(p.y.value or 0.0) * y_scale.factor for p in front],
        s=100,
        facecolors="none",
        edgecolors=ACCENT,
        linewidths=1.3,
        zorder=4,
    )
    if len(coloured) < len(methods):
        colours["other methods"] = FAINT
        _name_the_front(axes, front[:MOST_NAMES], x_scale, y_scale)
    axes.set_xlabel(_title(x_axis, x_scale))
    axes.set_ylabel(_title(y_axis, y_scale))
    axes.grid(visible=True, color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.06, y=0.08)
    _legend(axes, colours, markers)


def _series(axes: Axes, members: Sequence[_Point], x_scale: Scale, y_scale: Scale, style: dict[str, Any]) -> None:
    """Points of one colour and shape, with their bars."""
    xs = [(p.x.value or 0.0) * x_scale.factor for p in members]
    ys = [(p.y.value or 0.0) * y_scale.factor for p in members]
    x_bars = tuple(zip(*(_ends(p.x, x_scale.factor) for p in members), strict=True))
    y_bars = tuple(zip(*(_ends(p.y, y_scale.factor) for p in members), strict=True))
    axes.errorbar(
        xs, ys, xerr=x_bars, yerr=y_bars, fmt="none", ecolor=style["color"], elinewidth=0.9, alpha=0.55, zorder=2
    )
    axes.scatter(xs, ys, s=30, linewidths=0, zorder=3, **style)


def _legend(axes: Axes, colours: dict[str, str], markers: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    def entry(name: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=plain(name, LABEL_CHARACTERS), **style)

    entries = [entry(name, marker="s", color=colour, markersize=6) for name, colour in colours.items()]
    entries.append(entry("", marker=""))
    entries += [entry(name, marker=shape, color=FAINT, markersize=5.5) for name, shape in markers.items()]
    entries.append(entry("Pareto front", marker="o", markerfacecolor="none", markeredgecolor=ACCENT, markersize=9))
    legend = axes.legend(handles=entries, frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _ends(shown: CellContent, factor: float) -> tuple[float, float]:
    """Length of the bar below and above: the interval, else one standard deviation, else nothing."""
    value = shown.value or 0.0
    if shown.low is not None and shown.high is not None:
        return max(0.0, value - shown.low) * factor, max(0.0, shown.high - value) * factor
    spread = (shown.sd or 0.0) * factor
    return spread, spread


def _name_the_front(axes: Axes, front: Sequence[_Point], x_scale: Scale, y_scale: Scale) -> None:
    for point in front:
        axes.annotate(
            plain(point.row.labels["method"], LABEL_CHARACTERS),
            ((point.x.value or 0.0) * x_scale.factor, (point.y.value or 0.0) * y_scale.factor),
            xytext=(7, 4),
            textcoords="offset points",
            fontsize=7.5,
            color=INK,
            parse_math=False,
        )


def _title(axis: Quantity, chosen: Scale) -> str:
    stage = f", {axis.stage}" if axis.stage else ""
    return f"{axis.definition.label}{stage}" + (f" ({chosen.unit})" if chosen.unit else "")


def _short(axis: Quantity) -> str:
    return "memory" if axis.definition.family == "memory" else slug(axis.metric)

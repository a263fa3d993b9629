"""Learning-rate curves: the validation loss of a method over the rates that were tried, tuning trials included."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from harness.metrics import METRICS
from harness.record import Record
from reports.board.board import BoardTable, Section
from reports.board.figures.drawing import COLOURS, FAINT, LABEL_CHARACTERS, MARKERS, save
from reports.board.formats.text import plain

if TYPE_CHECKING:  # heavy, and only for types
    from matplotlib.axes import Axes

FILE = "learning-rate-curves"
NAME = "learning-rate curves"
CAPTION = "Mean over seeds at each learning rate tried; bars: least and most. A method with one rate is not drawn."
METRICS_TRIED = ("validation_nll", "accuracy")
MOST_CURVES = 10

Curve = dict[float, list[float]]


def draw(table: BoardTable, section: Section) -> dict[str, bytes] | str:
    """A curve for each method and quantization that was run at two learning rates or more."""
    here = {config: row for row in section.rows for config in row.records}
    records = [table.records[i] for i in here]
    tried = [trial for trial in table.trials if trial.cell_view.role == "trial"]  # not the runs at a shared rate
    trials = [trial for trial in tried if any(_alike(trial, record) for record in records[:1])]
    for metric in METRICS_TRIED:
        curves = _curves([*records, *trials], metric)
        if curves:
            best = sorted(curves.items())[:MOST_CURVES]
            return save(partial(_paint, curves=dict(best), metric=metric))
    return "no method was run at two learning rates"


def _alike(one: Record, other: Record) -> bool:
    """Same model, task and hardware label: what a section is made of."""
    return all(one.cell_view.label(axis) == other.cell_view.label(axis) for axis in ("model", "task", "hardware"))


def _curves(records: list[Record], metric: str) -> dict[tuple[str, str], Curve]:
    """(method, quantization) to rate to the values of its seeds; only methods with two rates or more.

    The method is its registered name and its parameters: rows that differ in the rate alone form one curve.
    """
    found: dict[tuple[str, str, str], Curve] = {}
    for record in records:
        cell = record.cell_view
        rate, reading = cell.learning_rate, record.metrics.get(metric)
        if record.outcome.status != "ok" or not rate or reading is None or reading.value is None:
            continue
        place = (cell.name("method"), cell.label("quantization"), repr(sorted(cell.params.items())))
        found.setdefault(place, {}).setdefault(rate, []).append(reading.value)
    kept = {place: curve for place, curve in sorted(found.items()) if len(curve) > 1}
    names: dict[tuple[str, str], int] = {}
    out = {}
    for (method_name, quantization, _), curve in kept.items():
        names[method_name, quantization] = number = names.get((method_name, quantization), 0) + 1
        out[f"{method_name} ({number})" if number > 1 else method_name, quantization] = curve
    return out


def _paint(axes: Axes, curves: dict[tuple[str, str], Curve], metric: str) -> None:
    definition = METRICS[metric]
    factor, unit = (100.0, "%") if definition.unit == "fraction" else (1.0, definition.unit)
    for number, ((method, quantization), curve) in enumerate(curves.items()):
        rates = sorted(curve)
        means = [factor * math.fsum(curve[rate]) / len(curve[rate]) for rate in rates]
        below = [mean - factor * min(curve[rate]) for mean, rate in zip(means, rates, strict=True)]
        above = [factor * max(curve[rate]) - mean for mean, rate in zip(means, rates, strict=True)]
        name = method if quantization == "none" else f"{method} / {quantization}"
        axes.errorbar(
            rates,
            means,
            yerr=(below, above),
            marker=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            linewidth=1.2,
            markersize=5,
            label=plain(name, 2 * LABEL_CHARACTERS),
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the default would print raw TeX
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"{definition.label} ({unit})")
    axes.grid(visible=True, color=FAINT, alpha=0.25, linewidth=0.6)
    legend = axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)

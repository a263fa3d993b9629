"""A board as the page's script reads it. Ranks, ties, intervals and the front are those of :mod:`reports.board`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.metrics import MetricDef
from reports.apps.site.text import flat, line
from reports.board.board import BoardRow, BoardTable, CellContent, Section
from reports.board.formats.text import ColumnText, columns, mark_words, place, rank_text, scale, why_words

MOST_SETTINGS = 40

LIMITS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "memory",
        (
            "device_used_peak_bytes",
            "cuda_reserved_peak_bytes",
            "cuda_allocated_peak_bytes",
            "process_reserved_peak_bytes",
            "peak_rss_bytes",
        ),
    ),
    ("latency", ("tpot_ms", "latency_ms")),
    ("energy", ("energy_gross_j", "cpu_package_j")),
    ("cost", ("train_gpu_cost", "train_energy_cost")),
)
"""The reader's limits, and the quantities that can answer each, the most fitting first."""


class Texts:
    """Strings of a section, each kept once; a row refers to them by number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of ``text``."""
        return self.known.setdefault(text, len(self.known))


def board_data(table: BoardTable, pages: Mapping[str, str]) -> dict[str, Any]:
    """The whole board.

    Args:
        pages: record id to the name of its cell page.
    """
    shown = columns(table)
    return {
        "columns": [_column(column) for column in shown],
        "sections": [_section(table, section, shown, pages) for section in table.sections],
        "sort": table.board.sort,
        "rank": table.board.rank,
        "title": line(table.board.title),
    }


def _column(column: ColumnText) -> dict[str, Any]:
    definition = column.head.definition
    difference = column.head.column.difference is not None
    return {
        "key": column.key,
        "label": line(column.label, 80),
        "unit": column.unit,
        "meaning": line(column.meaning, 800),
        "better": definition.better if definition else "neither",
        "number": column.scale is not None,
        "factor": column.scale.factor if column.scale else 1.0,
        "weighable": definition is not None and not difference and definition.better != "neither",
    }


def _section(table: BoardTable, section: Section, shown: list[ColumnText], pages: Mapping[str, str]) -> dict[str, Any]:
    texts = Texts()
    limits = {name: _limit(section, table, metrics) for name, metrics in LIMITS}
    settings = _settings(table, section)
    rows = [_row(table, row, shown, limits, settings, pages, texts) for row in section.rows]
    return {
        "id": section.group,
        "title": line(section.title, 200),
        "conditions": [[name, line(text, 200)] for name, text in section.conditions],
        "caption": line(section.caption, 2000),
        "axes": [_axis(section, number) for number in range(len(section.axes))],
        "limits": {name: found for name, (found, _) in limits.items()},
        "settings": [name for name, _ in settings],
        "rows": rows,
        "texts": list(texts.known),
    }


def _axis(section: Section, number: int) -> dict[str, Any]:
    axis = section.axes[number]
    values = [row.axes[number].value for row in section.rows]
    chosen = scale(axis.definition, [value for value in values if value is not None])
    label = axis.definition.label + (f", {axis.stage}" if axis.stage else "")
    return {"label": label, "unit": chosen.unit, "factor": chosen.factor, "better": axis.definition.better}


def _limit(section: Section, table: BoardTable, metrics: Sequence[str]) -> tuple[dict[str, Any], str | int | None]:
    """Quantity that a limit of the reader applies to in this section, and its position in a row (column key or axis
    number).
    """
    reasons: set[str] = set()
    for metric in metrics:
        for definition, stage, where in _places(table, section):
            if definition.name != metric:
                continue
            held = [_held(row, where) for row in section.rows]
            if any(shown.value is not None for shown in held):
                label = definition.label + (f", {stage}" if stage else "")
                found = {
                    "metric": metric,
                    "label": label,
                    "unit": definition.unit,
                    "meaning": definition.definition,
                }
                return found, where
            reasons |= {
                why_words(shown.why) for shown, row in zip(held, section.rows, strict=True) if row.status == "ok"
            }
    return {"metric": None, "why": "; ".join(sorted(reasons - {""})) or "no column of this board holds it"}, None


def _places(table: BoardTable, section: Section) -> list[tuple[MetricDef, str | None, str | int]]:
    found: list[tuple[MetricDef, str | None, str | int]] = [
        (column.quantity.definition, column.stage, column.key)
        for column in table.board.columns
        if column.quantity is not None and column.difference is None
    ]
    return found + [(axis.definition, axis.stage, number) for number, axis in enumerate(section.axes)]


def _held(row: BoardRow, where: str | int) -> CellContent:
    return row.axes[where] if isinstance(where, int) else row.cells[where]


def _settings(table: BoardTable, section: Section) -> list[tuple[str, dict[str, str]]]:
    """Differing settings of the cells of a section: field name to configuration to text."""
    cells = {row.config: dict(flat(_without_seed(table.records[row.records[0]].cell))) for row in section.rows}
    names = sorted({name for cell in cells.values() for name in cell})
    differing = [name for name in names if len({cell.get(name, "") for cell in cells.values()}) > 1]
    return [
        (line(name, 80), {config: line(cell[name], 120) for config, cell in cells.items() if name in cell})
        for name in differing[:MOST_SETTINGS]
    ]


def _without_seed(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in cell.items() if name not in ("seed", "task")}


def _row(
    table: BoardTable,
    row: BoardRow,
    shown: list[ColumnText],
    limits: Mapping[str, tuple[dict[str, Any], str | int | None]],
    settings: list[tuple[str, dict[str, str]]],
    pages: Mapping[str, str],
    texts: Texts,
) -> dict[str, Any]:
    cells = [
        [
            line(table.records[identity].cell.get("seed"), 20),
            pages[identity],
            table.records[identity].outcome.status,
        ]
        for identity in row.records
        if identity in pages
    ]
    return {
        "id": row.config,
        "method": texts.number(line(row.labels["method"], 120)),
        "quantization": texts.number(line(row.labels["quantization"], 80)),
        "rank": row.rank,
        "front": row.front,
        "baseline": row.baseline,
        "status": row.status,
        "why": texts.number("" if row.status == "ok" else line(row.reason) or "no reason was recorded"),
        "marks": [texts.number(text) for text in mark_words(row)],
        "notes": texts.number(line("; ".join(row.notes), 600)),
        "cells": cells,
        "values": [_value(column, row, texts) for column in shown],
        "axes": [[shown.value, shown.low, shown.high, shown.sd] for shown in row.axes],
        "limits": {name: _held(row, where).value for name, (_, where) in limits.items() if where is not None},
        "settings": [texts.number(values.get(row.config, "–")) for _, values in settings],
    }


def _value(column: ColumnText, row: BoardRow, texts: Texts) -> Any:
    """A number's ``[value, main, aside, hint]``; the number of a reason where it is missing; a field's text."""
    if column.scale is None:
        if column.key == "rank":
            return texts.number(rank_text(row.rank))
        if column.key in ("method", "quantization", "model", "task", "hardware"):
            return texts.number(line(row.labels[column.key], 120))
        return texts.number(place(column, row).main)
    shown, at = row.cells[column.key], place(column, row)
    if shown.value is None and not shown.text:
        return texts.number(at.why)
    return [shown.value, at.main, texts.number(at.aside), texts.number(at.hint)]

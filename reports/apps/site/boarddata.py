"""A board as the page's script reads it. Ranks, ties, intervals and the front are those of :mod:`reports.board`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from harness.record import Record
from reports.apps.site.answer import (
    KEEPS_LEAST,
    LIMITS,
    answer,
    cautions,
    held,
    is_sound,
    kept,
    last_day,
    limit_of,
)
from reports.apps.site.rowpage import registered
from reports.apps.site.text import flat, line, page_name
from reports.board.board import BoardRow, BoardTable, Section
from reports.board.formats.text import ColumnText, columns, mark_words, place, rank_text, scale
from reports.data.effects import Evidence, Family, peers
from reports.data.frame import current, is_trial
from reports.data.samples import ARMS, SampleSource

MOST_SETTINGS = 40
MOST_TESTED_ROWS = 60
"""Rows of a section that the page of comparisons has tests for, the first ones of its table: 1,770 pairs a metric."""


class Texts:
    """Strings of a section, each kept once; a row refers to them by number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of ``text``."""
        return self.known.setdefault(text, len(self.known))


def board_data(
    table: BoardTable, pages: Mapping[str, str], families: Mapping[str, str] | None = None
) -> dict[str, object]:
    """The whole board.

    Args:
        pages: record id to the name of its cell page.
        families: registered name of a method to its kind.
    """
    shown = columns(table)
    return {
        "columns": [_column(column) for column in shown],
        "sections": [_section(table, section, shown, pages, families or {}) for section in table.sections],
        "sort": table.board.sort,
        "rank": table.board.rank,
        "title": line(table.board.title),
    }


def pairs_data(
    table: BoardTable, own: Sequence[tuple[str, Record]], samples: SampleSource
) -> list[dict[str, dict[str, object]]]:
    """Tests of the rows of every section against each other, as ``peft-matrix compare`` makes them of two rows.

    Args:
        own: the sweep's records with their ids.
        samples: record id to its scored items.

    Returns:
        For each section, column to ``rows`` (configurations) and ``tests``: of each pair of them, in the order of
        ``itertools.combinations``, the effect of the first less the second, the ends of its interval, p, the smallest
        effect found 8 times in 10, and whether it holds for these checkpoints only; null where the two have no
        items in common.
    """
    results = [one for one in current(record for _, record in own) if not is_trial(one[1])]
    evidence = Evidence(samples)
    scored = [head.column for head in table.heads if head.column.metric in ARMS and head.column.stage is None]
    found: list[dict[str, dict[str, object]]] = []
    for section in table.sections:
        of: dict[str, dict[str, object]] = {}
        found.append(of)
        ok = [row for row in section.rows if row.status == "ok"][:MOST_TESTED_ROWS]
        if len(ok) < 2:
            continue
        members = peers(results, [table.records[identity] for row in ok for identity in row.records])
        configs = [row.config for row in ok if row.config in members]
        for column in scored:
            assert column.metric is not None
            tests = _tests(evidence.families(members, column.metric), configs)
            if any(one is not None for one in tests):
                of[column.key] = {"rows": configs, "tests": tests}
    return found


def _tests(families: Sequence[Family], configs: Sequence[str]) -> list[list[float | None] | None]:
    of = {config: family for family in families for config in family.configs}
    tests: list[list[float | None] | None] = []
    for a, b in combinations(configs, 2):
        if a not in of or of[a] is not of.get(b):
            tests.append(None)
            continue
        one = of[a].effect(a, b)
        numbers = [one.effect, one.low, one.high, one.p, one.mde]
        checkpoint = float(one.kind == "checkpoint")
        tests.append([None if x is None else float(f"{x:.5g}") for x in numbers] + [checkpoint])
    return tests


def _column(column: ColumnText) -> dict[str, object]:
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


def _section(
    table: BoardTable,
    section: Section,
    shown: list[ColumnText],
    pages: Mapping[str, str],
    families: Mapping[str, str],
) -> dict[str, object]:
    texts = Texts()
    limits = {name: limit_of(section, table, name) for name, _ in LIMITS}
    found = answer(table, section)
    settings = _settings(table, section)
    rows = [_row(table, row, shown, limits, settings, pages, families, texts) for row in section.rows]
    return {
        "id": section.group,
        "title": line(section.title, 200),
        "conditions": [[name, line(text, 200)] for name, text in section.conditions],
        "caption": line(section.caption, 2000),
        "answer": {"kind": found.kind, "headline": found.headline, "reason": found.reason},
        "date": last_day(table, section),
        "axes": [_axis(section, number) for number in range(len(section.axes))],
        "limits": {name: found for name, (found, _) in limits.items()},
        "settings": [name for name, _ in settings],
        "rows": rows,
        "texts": list(texts.known),
    }


def _axis(section: Section, number: int) -> dict[str, object]:
    axis = section.axes[number]
    values = [row.axes[number].value for row in section.rows]
    chosen = scale(axis.definition, [value for value in values if value is not None])
    label = axis.definition.label + (f", {axis.stage}" if axis.stage else "")
    return {"label": label, "unit": chosen.unit, "factor": chosen.factor, "better": axis.definition.better}


def _settings(table: BoardTable, section: Section) -> list[tuple[str, dict[str, str]]]:
    """Differing settings of the cells of a section: field name to configuration to text."""
    cells = {row.config: dict(flat(_without_seed(table.records[row.records[0]].cell))) for row in section.rows}
    names = sorted({name for cell in cells.values() for name in cell})
    differing = [name for name in names if len({cell.get(name, "") for cell in cells.values()}) > 1]
    return [
        (line(name, 80), {config: line(cell[name], 120) for config, cell in cells.items() if name in cell})
        for name in differing[:MOST_SETTINGS]
    ]


def _without_seed(cell: Mapping[str, object]) -> dict[str, object]:
    return {name: part for name, part in cell.items() if name not in ("seed", "task")}


def _row(
    table: BoardTable,
    row: BoardRow,
    shown: list[ColumnText],
    limits: Mapping[str, tuple[dict[str, object], str | int | None]],
    settings: list[tuple[str, dict[str, str]]],
    pages: Mapping[str, str],
    families: Mapping[str, str],
    texts: Texts,
) -> dict[str, object]:
    cells = [
        [
            line(table.records[identity].cell_view.seed, 20),
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
        "page": page_name(row.config),
        "family": texts.number(line(families.get(registered(table, row), ""), 40)),
        "sound": is_sound(row),
        "cautions": [texts.number(text) for text in cautions(row, table.records)],
        "kept": None if (share := kept(row, table.records)) is None else round(share, 4),
        "forgets": share is not None and share < KEEPS_LEAST,
        "cells": cells,
        "values": [_value(column, row, texts) for column in shown],
        "axes": [[shown.value, shown.low, shown.high, shown.sd] for shown in row.axes],
        "limits": {name: held(row, where).value for name, (_, where) in limits.items() if where is not None},
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

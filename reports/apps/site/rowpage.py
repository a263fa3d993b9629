"""Pages of a row with all its seeds, and its line on the page of its method; changes found by ``regressions``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.record import Record
from harness.store.store import Store
from reports.apps.regressions.analyze import look, sentence
from reports.apps.regressions.detect import CellFinding, PooledFinding
from reports.apps.site.answer import card_row, cautions, row_name
from reports.apps.site.cellpage import main_settings, result
from reports.apps.site.text import line, page_name
from reports.board.board import BoardRow, BoardTable, Section
from reports.board.formats.text import MISSING, ColumnText, place, rank_text

MOST_POINTS = 200
"""Points of a curve on a row's page; a longer series is thinned. The cell's page has all of them."""
MOST_CHANGES = 30


def describe(
    table: BoardTable, section: Section, row: BoardRow, names: Mapping[str, str], shown_columns: Sequence[ColumnText]
) -> dict[str, object]:
    """Everything the template of a row's page shows.

    Args:
        names: record id to the name of its cell page.
        shown_columns: the table's columns (:func:`reports.board.formats.text.columns`), made once for all its rows.
    """
    shown = [column for column in shown_columns if column.scale is not None]
    facts = [(column.label, place(column, row), column.unit) for column in shown]
    records = [(names[i], table.records[i]) for i in row.records]
    results = [(page, record, dict(result(record))) for page, record in records]
    heads = list(dict.fromkeys(name for _, _, found in results for name in found))
    curves = [thinned(record) for _, record in records if len(record.series.get("loss", ())) > 1]
    return {
        "name": row_name(row),
        "section": line(section.title, 200),
        "group": section.group,
        "config": row.config,
        "row": {
            "status": row.status,
            "rank": "not ranked" if row.rank is None else f"rank {rank_text(row.rank)}",
            "reason": line(row.reason, 2000) if row.status != "ok" else "",
        },
        "cautions": cautions(row, table.records),
        "facts": [(line(label, 80), f"{at.text} {unit}".strip()) for label, at, unit in facts if at.main != MISSING],
        "settings": main_settings(records[0][1]) if records else [],
        "method_page": page_name(row.labels["method"]),
        "heads": heads,
        "seeds": [
            {
                "seed": line(record.cell_view.seed, 20),
                "page": page,
                "status": record.outcome.status,
                "texts": [found.get(head, MISSING) for head in heads],
            }
            for page, record, found in results
        ],
        "curves": json.dumps(curves, separators=(",", ":")) if curves else "",
        "notes": line("; ".join(row.notes), 600),
    }


def thinned(record: Record) -> tuple[str, int, list[float]]:
    """Seed, distance of the kept steps, and the training loss at them."""
    values = record.series["loss"]
    every = max(1, -(-len(values) // MOST_POINTS))
    return line(record.cell_view.seed, 20), every, [round(float(value), 5) for value in values[::every]]


def entry(table: BoardTable, section: Section, row: BoardRow, shown_columns: Sequence[ColumnText]) -> dict[str, Any]:
    """A row on the page of its method and in the search over all boards."""
    brief = card_row(table, section, row, list(shown_columns), {})
    return {
        "method": line(row.labels["method"], 120),
        "method_page": page_name(row.labels["method"]),
        "registered": registered(table, row),
        "quantization": line(row.labels["quantization"], 80),
        "table": line(section.title, 200),
        "page": page_name(row.config),
        "score": brief["score"],
        "memory": brief["memory"],
        "time": brief["time"],
        "rank": rank_text(row.rank),
        "learned": row.learned.verdict if row.learned else MISSING,
        "status": row.status,
    }


def registered(table: BoardTable, row: BoardRow) -> str:
    """The name under which the row's method is registered."""
    return table.records[row.records[0]].cell_view.name("method") if row.records else ""


def search_line(found: Mapping[str, Any]) -> list[str]:
    """One row of the search, as the script reads it."""
    names = ("board", "table", "method", "quantization", "status", "score", "rank")
    pages = [f"{found['folder']}/rows/{found['page']}.html", f"methods/{found['method_page']}.html"]
    return [*(found[name] for name in names), *pages]


def regressions(store: Store, sweep: str) -> dict[str, object]:
    """Changes over the records of a sweep, as sentences."""
    report = look(store.root, sweep=sweep)
    worse: list[CellFinding | PooledFinding] = [*report.pooled, *report.cells]
    parts: tuple[tuple[str, list[CellFinding | PooledFinding]], ...] = (
        ("Worse", worse),
        ("Better", [*report.improvements]),
    )
    changed = len(report.environment_changes)
    return {
        "summary": f"{len(worse)} got worse and {len(report.improvements)} better, beyond noise; "
        f"{changed} change{'s' if changed != 1 else ''} of the software or hardware.",
        "parts": [
            (title, [line(sentence(one).replace("`", ""), 600) for one in found[:MOST_CHANGES]])
            for title, found in parts
            if found
        ],
    }

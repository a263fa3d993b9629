"""A board as JSON: full precision, definitions, intervals, ranks, failures and the ids of all records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from reports.board.board import BoardRow, BoardTable, Section
from reports.board.figures import Drawing, LeftOut

LAYOUT = 1


def render(table: BoardTable, drawn: Sequence[Drawing] = (), left_out: Sequence[LeftOut] = ()) -> str:
    """The whole board; keys sorted, ``null`` for what is missing (``why`` says why)."""
    content = {
        "layout": LAYOUT,
        "board": table.board.model_dump(mode="json"),
        "columns": [
            {"key": head.key, "definition": asdict(head.definition) if head.definition else None}
            for head in table.heads
        ],
        "sections": [_section(section) for section in table.sections],
        "not_run": table.not_run,
        "figures": [{"name": one.name, "section": one.section, "kind": one.kind} for one in drawn],
        "figures_left_out": [asdict(one) for one in left_out],
        "about": {"facts": dict(table.about.facts), "digest": table.about.digest, "records": table.about.records},
    }
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _section(section: Section) -> dict[str, object]:
    return {
        "labels": dict(section.labels),
        "group": section.group,
        "conditions": dict(section.conditions),
        "axes": [axis.column for axis in section.axes],
        "caption": section.caption,
        "rows": [_row(row) for row in section.rows],
    }


def _row(row: BoardRow) -> dict[str, object]:
    values = asdict(row)
    values["failed"] = [dict(zip(("seed", "status", "stage", "reason"), failed, strict=True)) for failed in row.failed]
    return values

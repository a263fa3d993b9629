"""A board as CSV: one header row with units, full precision, one row per configuration."""

from __future__ import annotations

import csv
import io

from reports.board.board import BoardRow, BoardTable, CellContent, ColumnHeader, Section

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
MOST_CHARACTERS = 32_000  # a cell of a spreadsheet holds 32,767
LABELS = ("model", "method", "quantization", "task", "hardware")
SETTINGS = ("learning_rate", "steps", "batch_size", "train_items", "model_parameters", "date", "version")
"""Of the settings of a row, those that have a column; ``board.json`` has all of them."""


def neutral(text: str) -> str:
    """A text cell that no spreadsheet takes for a formula: those that look like one get a leading apostrophe.

    Text longer than a spreadsheet's cell is cut; the JSON file has all of it.
    """
    text = text.replace("\x00", "")[:MOST_CHARACTERS]
    return f"'{text}" if text.lstrip().startswith(_FORMULA) or text.startswith(_FORMULA) else text


def render(table: BoardTable) -> str:
    """The whole board. Missing values are empty; the column ``... why missing`` says why."""
    heads = [head for head in table.heads if head.definition is not None]
    names = [*LABELS, "group", "conditions", "rank first", "rank last", "pareto front", "baseline"]
    for head in heads:
        names += _header(head)
    names += ["learned", "learned effect", "learned low95", "learned high95", "learned measure", "learned above"]
    names += SETTINGS
    names += ["seeds ok", "seeds failed", "status", "stage", "reason", "notes", "records"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for section in table.sections:
        for row in section.rows:
            writer.writerow(_row(section, row, heads))
    return out.getvalue()


def _header(head: ColumnHeader) -> list[str]:
    assert head.definition is not None
    name, unit = head.key, head.definition.unit
    return [
        f"{name} [{unit}]",
        f"{name} sd [{unit}]",
        f"{name} low95 [{unit}]",
        f"{name} high95 [{unit}]",
        f"{name} seeds [1]",
        f"{name} why missing",
    ]


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _values(shown: CellContent) -> list[str]:
    numbers = [_number(v) for v in (shown.value, shown.sd, shown.low, shown.high)]
    return [*numbers, str(shown.seeds), neutral(shown.why)]


def _learned(row: BoardRow) -> list[str]:
    """The verdict with effect and interval, in the unit of its measure (a fraction, or nats); empty without one."""
    found = row.learned
    if found is None:
        return [""] * 6
    return [found.verdict, *map(_number, (found.effect, found.low, found.high)), found.measure, neutral(found.base)]


def _row(section: Section, row: BoardRow, heads: list[ColumnHeader]) -> list[str]:
    first, last = row.rank or ("", "")
    cells = [
        *(neutral(row.labels[axis]) for axis in LABELS),
        section.group,
        neutral("; ".join(f"{name}: {text}" for name, text in section.conditions)),
        str(first),
        str(last),
        str(row.front).lower(),
        str(row.baseline).lower(),
    ]
    for head in heads:
        cells += _values(row.cells[head.key])
    cells += _learned(row)
    failed = "; ".join(f"{seed}: {status}" for seed, status, _, _ in row.failed)
    reason = row.reason if row.status != "ok" else ""
    seeds = " ".join(str(seed) for seed in row.seeds)
    settings = ["" if (value := row.settings.get(name)) is None else str(value) for name in SETTINGS]
    tail = [*settings, seeds, failed, row.status, row.stage, reason, "; ".join(row.notes), " ".join(row.records)]
    return [*cells, *(neutral(text) for text in tail)]

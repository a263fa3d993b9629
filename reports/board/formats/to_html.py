"""A board as one self-contained HTML page: no request leaves it, and every text of a record is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from reports.board.board import MARK_WORDS, BoardRow, BoardTable, Section
from reports.board.figures import Drawing, LeftOut, for_page, tradeoff
from reports.board.formats.text import (
    MISSING,
    ColumnText,
    FormattedCell,
    columns,
    failure_line,
    leading,
    not_run_line,
    place,
    plain,
)
from reports.board.formats.to_markdown import not_drawn

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Cell:
    """One place of the page: what it shows and what it is sorted by ("" sorts last)."""

    column: ColumnText
    place: FormattedCell
    sort: str

    @property
    def missing(self) -> bool:
        """True if there is nothing but a reason."""
        return self.place.main == MISSING

    @property
    def tip(self) -> str:
        """Tooltip text."""
        return self.place.why if self.missing else self.place.hint


@dataclass(frozen=True)
class _Line:
    row: BoardRow
    cells: list[_Cell]
    notes: str
    leading: bool


@dataclass(frozen=True)
class _Part:
    section: Section
    lines: list[_Line]
    figures: list[_Figure]


@dataclass(frozen=True)
class _Figure:
    """A figure of a section; ``first`` ones are shown above the table, the others fold out below it."""

    kind: str
    caption: str
    label: str
    svg: Markup
    first: bool


def render(table: BoardTable, drawn: Sequence[Drawing] = (), left_out: Sequence[LeftOut] = ()) -> str:
    """The whole page.

    Args:
        drawn: what :func:`reports.board.figures.draw_all` gives for this board; ``left_out`` likewise.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = plain
    script = (_HERE / "board.js").read_text(encoding="utf-8")
    shown = columns(table)
    parts = [
        _Part(section, [_line(row, shown) for row in section.rows], _figures(section, number, drawn))
        for number, section in enumerate(table.sections)
    ]
    template = environment.from_string((_HERE / "board.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        board=table.board,
        about=table.about,
        columns=shown,
        asides=_aside_widths(table, shown),
        parts=parts,
        mark_words=MARK_WORDS,
        not_run=not_run_line(table),
        not_drawn=not_drawn(table, left_out),
        failures=[failure_line(failure) for failure in table.failures],
        style=Markup((_HERE / "board.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page + "\n"


def _line(row: BoardRow, shown: list[ColumnText]) -> _Line:
    cells = [_Cell(column, place(column, row), _sort_key(column, row)) for column in shown]
    return _Line(row, cells, "; ".join(row.notes), leading(row))


def _aside_widths(table: BoardTable, shown: list[ColumnText]) -> dict[str, int]:
    """Width in characters of the lighter text of every column of numbers, so that the numbers align."""
    rows = [row for section in table.sections for row in section.rows]
    return {c.key: max((len(place(c, row).aside) for row in rows), default=0) for c in shown if c.scale is not None}


def _sort_key(column: ColumnText, row: BoardRow) -> str:
    if column.scale is not None:
        value = row.cells[column.key].value
        return "" if value is None else repr(value)
    if column.key == "rank":
        return "" if row.rank is None else repr(row.rank[0] + row.rank[1] / 1e6)
    if column.key == "seeds":
        return str(len(row.seeds))
    return place(column, row).main.lower()


def _figures(section: Section, number: int, drawn: Sequence[Drawing]) -> list[_Figure]:
    found = []
    for order, one in enumerate(one for one in drawn if one.section == number):
        first = one.kind == tradeoff.NAME
        label = f"{one.kind}; the values are in the table below"
        if first:
            y, x = section.axes[:2]
            label = f"{y.definition.label} against {x.definition.label}; the values are in the table below"
        svg = for_page(one.files["svg"], prefix=f"figure{number + 1}-{order + 1}-")  # matplotlib escapes its text
        found.append(_Figure(one.kind, one.caption, label, Markup(svg), first))
    return found

"""A board as an HTML fragment for notebooks: tables without scripts and style sheets."""

from __future__ import annotations

from html import escape

from reports.board.board import BoardRow, BoardTable, Section
from reports.board.formats.text import (
    MISSING,
    REASON_CHARACTERS,
    ColumnText,
    columns,
    failure_line,
    leading,
    not_run_line,
    place,
    plain,
)


def render(table: BoardTable) -> str:
    """The board's tables, and below them the cells without a result."""
    shown = columns(table)
    parts = [f"<h3>{_text(table.board.title)}</h3>", *(_section(section, shown) for section in table.sections)]
    failures = [
        f"<li>{_text(w)}: <b>{_text(h)}</b>. {_text(why)}</li>" for w, h, why in map(failure_line, table.failures)
    ]
    if table.not_run:
        failures.insert(0, f"<li>{_text(not_run_line(table))}</li>")
    if failures:
        parts.append(f"<h4>Cells without a result</h4><ul>{''.join(failures)}</ul>")
    return f"<div>{''.join(parts)}</div>"


def _section(section: Section, shown: list[ColumnText]) -> str:
    head = "".join(f'<th title="{_text(column.meaning, 1000)}">{_text(column.header)}</th>' for column in shown)
    rows = "".join(f"<tr>{''.join(_cell(column, row) for column in shown)}</tr>" for row in section.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<h4>{_text(section.title)}</h4>{table}<p>{_text(section.caption, 1000)}</p>"


def _cell(column: ColumnText, row: BoardRow) -> str:
    content = place(column, row)
    text = _text(content.main)
    if column.key == "rank" and leading(row):
        text = f"<b>{text}</b>"
    if content.aside:
        text += f" <small>{_text(content.aside)}</small>"
    tip = content.why if content.main == MISSING else content.hint
    align = ' style="text-align: right"' if column.is_number else ""
    return f'<td title="{_text(tip)}"{align}>{text}</td>'


def _text(text: object, limit: int = REASON_CHARACTERS) -> str:
    return escape(plain(text, limit))

"""A board as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reports.board.board import BoardRow, BoardTable, Section
from reports.board.figures import Drawing, LeftOut
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

_SPECIAL = re.compile(r"([\\`*_{}\[\]|~#!])")


def escape(text: object, limit: int = REASON_CHARACTERS) -> str:
    """``text`` so that Markdown shows its characters and nothing else; no HTML, no link, no table cell ends."""
    shown = plain(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = _SPECIAL.sub(r"\\\1", shown)
    return re.sub(r"(?i)\b(https?|ftp|www)([:.])", r"\1&#8203;\2", shown)  # GitHub links bare addresses


def render(table: BoardTable, drawn: Sequence[Drawing] = (), left_out: Sequence[LeftOut] = ()) -> str:
    """The whole board; figures are linked by their file names, and those that could not be drawn are named."""
    shown = columns(table)
    lines = [f"# {escape(table.board.title)}", "", escape(table.board.summary, 2000), ""]
    for number, section in enumerate(table.sections):
        lines += _section(section, shown)
        here = [f"[{escape(one.kind)}]({one.name}.svg)" for one in drawn if one.section == number]
        lines += [f"Figures: {' · '.join(here)}", ""] if here else []
    lines += _failures(table)
    lines += _not_drawn(table, left_out)
    lines += ["## Columns", ""]
    lines += [f"- **{escape(column.header)}**: {escape(column.meaning, 1000)}" for column in shown]
    lines += ["", "## About this board", ""]
    lines += [f"- **{escape(name)}**: {escape(text, 2000)}" for name, text in table.about.facts]
    lines += [f"- **digest of the records**: `{table.about.digest[:16]}`", ""]
    return "\n".join(lines)


def _section(section: Section, shown: list[ColumnText]) -> list[str]:
    """A table; reasons for missing values follow below it, numbered in the order of reading."""
    notes: dict[str, int] = {}
    lines = [f"## {escape(section.title)}", ""]
    lines += [" · ".join(f"{escape(name)}: {escape(text)}" for name, text in section.conditions), ""]
    lines += ["| | " + " | ".join(escape(column.header) for column in shown) + " |"]
    lines += ["|:-:|" + "|".join("--:" if column.is_number else ":--" for column in shown) + "|"]
    for row in section.rows:
        lines.append(f"| {_flag(row)} | " + " | ".join(_place(column, row, notes) for column in shown) + " |")
    lines += ["", escape(section.caption, 1000), ""]
    lines += [f"{number}. {escape(text)}" for text, number in notes.items()]
    return [*lines, ""] if notes else lines


def not_drawn(table: BoardTable, left_out: Sequence[LeftOut]) -> list[str]:
    """Figures that could not be drawn, and why; one line for those that several sections lack alike."""
    sections: dict[tuple[str, str], list[str]] = {}
    for one in left_out:
        sections.setdefault((one.kind, one.why), []).append(table.sections[one.section].title)
    return [
        f"{kind}: {why}" + (f" ({'; '.join(titles)})" if len(titles) < len(table.sections) else "")
        for (kind, why), titles in sections.items()
    ]


def _not_drawn(table: BoardTable, left_out: Sequence[LeftOut]) -> list[str]:
    if not left_out:
        return []
    return ["## Figures not drawn", "", *(f"- {escape(line)}" for line in not_drawn(table, left_out)), ""]


def _flag(row: BoardRow) -> str:
    return "◆" if row.front else ""


def _place(column: ColumnText, row: BoardRow, notes: dict[str, int]) -> str:
    shown = place(column, row)
    text = escape(shown.main)
    if column.key == "rank" and leading(row):
        text = f"**{text}**"
    if shown.aside:
        text += f" {escape(shown.aside)}"
    reasons = [shown.why] if shown.main == MISSING and shown.why else []
    if column.key == "method":
        reasons = list(row.notes)
    return text + "".join(f" <sup>{notes.setdefault(reason, len(notes) + 1)}</sup>" for reason in reasons)


def _failures(table: BoardTable) -> list[str]:
    if not table.failures and not table.not_run:
        return []
    lines = ["## Cells without a result", ""]
    if table.not_run:
        lines += [not_run_line(table), ""]
    for failure in table.failures:
        which, how, why = failure_line(failure)
        lines.append(f"- {escape(which)}: **{escape(how)}**. {escape(why)}")
    return [*lines, ""]

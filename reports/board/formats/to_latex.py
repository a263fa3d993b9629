"""A board as LaTeX tables (package booktabs): all of it, or the columns and rows that a paper prints."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from harness.digests import slug
from harness.errors import UserError, did_you_mean
from reports.board.board import BoardRow, BoardTable, Section
from reports.board.formats.text import MISSING, ColumnText, columns, leading, place, plain

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    "◆": r"$\blacklozenge$",
}


def escape(text: object, limit: int = 200) -> str:
    """``text`` so that LaTeX prints its characters and obeys none of them."""
    return "".join(_SPECIAL.get(character, character) for character in plain(text, limit))


def render(table: BoardTable) -> str:
    r"""The whole board; ``\input`` it. Needs booktabs, amssymb and, for names beyond Latin, LuaLaTeX or XeLaTeX."""
    shown = [column for column in columns(table) if column.key != "status"]
    lines = ["% needs \\usepackage{booktabs,amssymb,textcomp} and T1 fonts"]
    lines.append(f"% records: {table.about.digest[:16]}")
    for section in table.sections:
        lines += _section(table, section, shown)
    return "\n".join(lines) + "\n"


def _section(table: BoardTable, section: Section, shown: list[ColumnText]) -> list[str]:
    conditions = ", ".join(f"{name} {text}" for name, text in section.conditions)
    caption = f"{table.board.title}: {section.title}. {conditions}. {section.caption}"
    alignment = "".join("r" if column.is_number else "l" for column in shown)
    rows = [row for row in section.rows if row.status == "ok"]
    left_out = len(section.rows) - len(rows)
    if left_out:
        caption += f" {left_out} more configuration{'s' if left_out > 1 else ''} ended without a result."
    return [
        "",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{escape(caption, 2000)}}}",
        rf"\begin{{tabular}}{{c{alignment}}}",
        r"\toprule",
        " & " + " & ".join(escape(column.header) for column in shown) + r" \\",
        r"\midrule",
        *(_row(row, shown) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _row(row: BoardRow, shown: list[ColumnText]) -> str:
    cells = []
    for column in shown:
        there = place(column, row)
        text = escape(there.main)
        if column.key == "rank" and leading(row):
            text = rf"\textbf{{{text}}}"
        cells.append(text + (rf" {{\footnotesize {escape(there.aside)}}}" if there.aside else ""))
    return f"{escape('◆') if row.front else ''} & " + " & ".join(cells) + r" \\"


LONG_ROWS = 40
"""Rows from which on a table breaks over pages (longtable, which needs a page of one column)."""
HEAD_CHARACTERS = 12
TEXT_SHARE = 0.44
"""Of the width, for columns of text."""
CHARACTER_PT, GAP_PT, POINTS_PER_INCH = 4.6, 6.0, 72.27
"""Width of a character of footnotesize (a digit of Computer Modern at 8 pt has 4.25), and of a gap between columns."""
COLUMN_IN, PAGE_IN = 3.3, 6.5
"""Width of a column of a paper of two columns, and of a page of one."""


def paper(table: BoardTable, keys: Sequence[str] = (), top: int | None = None) -> str:
    r"""Tables for a paper of one or two columns; needs booktabs, siunitx, longtable and array.

    Args:
        keys: columns to print, by key; none: method, quantization, the ranked score, and one each of memory and time.
        top: the first rows only.

    Raises:
        UserError: a column that the board does not have.
    """
    known = {column.key: column for column in columns(table)}
    for key in keys:
        if key not in known:
            raise UserError(f"the board has no column {key!r}", where="--columns", fix=did_you_mean(key, known))
    chosen = [known[key] for key in keys or _usual(table, known)]
    lines = ["% needs \\usepackage{booktabs,siunitx,longtable,array,amssymb,textcomp} and T1 fonts"]
    lines.append(f"% records: {table.about.digest[:16]}")
    for section in table.sections:
        lines += _paper_section(table, section, chosen, top)
    return "\n".join(lines) + "\n"


def paper_width_in(table: BoardTable, keys: Sequence[str] = (), top: int | None = None) -> float:
    """Inches that :func:`paper` needs, by a rule: 4.6 pt a character of footnotesize, 6 pt between columns.

    Columns of text wrap within 44 % of the width, so the numbers need the rest.
    """
    known = {column.key: column for column in columns(table)}
    widest = 0.0
    for section in table.sections:
        rows = [row for row in section.rows if row.status == "ok"][:top]
        chosen = [known[key] for key in keys or _usual(table, known)]
        numbers = [column for column in chosen if column.is_number]
        texts = [[place(column, row).main for row in rows] + _head_lines(column) for column in numbers]
        room = sum(max(map(len, lines)) * CHARACTER_PT for lines in texts) + GAP_PT * (len(chosen) - 1)
        widest = max(widest, room / (1 - TEXT_SHARE if len(numbers) < len(chosen) else 1))
    return widest / POINTS_PER_INCH


def _usual(table: BoardTable, known: dict[str, ColumnText]) -> list[str]:
    rows = [row for section in table.sections for row in section.rows]
    held = [key for key in known if key not in rows[0].cells or any(row.cells[key].value is not None for row in rows)]
    memory = [key for key in held if key.endswith("_bytes") and key.startswith("train.")][:1]
    return [key for key in ("method", "quantization", table.board.rank, *memory, "step_ms") if key in held]


def _paper_section(table: BoardTable, section: Section, chosen: list[ColumnText], top: int | None) -> list[str]:
    rows = [row for row in section.rows if row.status == "ok"][:top]
    names = sum(not column.is_number for column in chosen)
    width = f"{TEXT_SHARE / max(1, names):.2f}"
    kinds = [(_numbers(column, rows) if column.is_number else rf"p{{{width}\linewidth}}") for column in chosen]
    head = [
        " & ".join(_head(column) for column in chosen) + r" \\",
        r"\midrule",
    ]
    body = [" & ".join(_paper_cell(column, row) for column in chosen) + r" \\" for row in rows]
    caption = rf"\caption[{escape(section.title)}]{{{escape(section.title)}.{_bold_note(section.rows)}}}"
    label = rf"\label{{tab:{slug(table.board.name)}-{slug(section.title)}}}"
    setup = r"\footnotesize\setlength{\tabcolsep}{3pt}"
    columns_ = "@{}" + "".join(kinds) + "@{}"
    if len(rows) > LONG_ROWS:
        return [
            "",
            rf"{{{setup}",
            rf"\begin{{longtable}}{{{columns_}}}",
            rf"{caption} {label} \\",
            r"\toprule",
            *head,
            r"\endfirsthead",
            r"\toprule",
            *head,
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *body,
            r"\end{longtable}}",
        ]
    begin = [
        "",
        r"\begin{table}",
        rf"\centering{setup}",
        caption,
        label,
        rf"\begin{{tabular}}{{{columns_}}}",
        r"\toprule",
    ]
    return [*begin, *head, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def _bold_note(rows: Sequence[BoardRow]) -> str:
    first = [row for row in rows if leading(row)]
    if not first:
        return ""
    several = f"{len(first)} rows tie for first (bold)" if len(first) > 1 else "The best row is bold"
    return f" {several}."


def _head(column: ColumnText) -> str:
    text = r"\\".join(escape(one) for one in _head_lines(column))
    return rf"{{\shortstack[{'r' if column.is_number else 'l'}]{{{text}}}}}"


def _head_lines(column: ColumnText) -> list[str]:
    return textwrap.wrap(column.label, HEAD_CHARACTERS, break_long_words=False) + (
        [f"({column.unit})"] if column.unit else []
    )


_NUMBER = re.compile(r"[-+−]?[0-9,]*\.?[0-9]+")


def _numbers(column: ColumnText, rows: Sequence[BoardRow]) -> str:
    """An S column as wide as its widest number; a right-aligned one where some entry is no number."""
    texts = [place(column, row).main for row in rows]
    found = [text.replace(",", "").lstrip("+-−") for text in texts if _NUMBER.fullmatch(text)]
    if len(found) < sum(text != MISSING for text in texts) or not found:
        return "r"
    whole = max(len(text.partition(".")[0]) for text in found)
    part = max(len(text.partition(".")[2]) for text in found)
    sign = "-" if any(text.startswith(("-", "−")) for text in texts) else ""
    return f"S[table-format={sign}{whole}.{part},detect-weight,group-digits=none]"


def _paper_cell(column: ColumnText, row: BoardRow) -> str:
    text = place(column, row).main
    if column.is_number and _NUMBER.fullmatch(text):
        return text.replace(",", "").replace("−", "-").lstrip("+")
    if column.is_number:
        return rf"{{{escape(text)}}}"
    return rf"\raggedright\arraybackslash {'' if not leading(row) else chr(92) + 'bfseries '}{escape(text)}"

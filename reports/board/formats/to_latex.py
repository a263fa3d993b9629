"""A board as LaTeX tables (package booktabs), one per section."""

from __future__ import annotations

from reports.board.board import BoardRow, BoardTable, Section
from reports.board.formats.text import ColumnText, columns, leading, place, plain

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

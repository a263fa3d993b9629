"""A board in the terminal: a table that fits the width, the front marked, failures one line each."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.board.board import BoardRow, BoardTable, Section
from reports.board.formats.text import ColumnText, columns, failure_line, leading, not_run_line, place, plain

_KEEP_FIRST = ("rank", "method", "quantization")
_GAP = 2  # characters between columns


def print_board(table: BoardTable, console: Console) -> None:
    """Print every section of a board.

    Where the terminal is too narrow, columns are left out from the right and named below the table.
    """
    shown = [column for column in columns(table) if column.key != "status"]
    console.print(Text(plain(table.board.title, 200), style="bold"))
    if not table.sections:
        console.print("No records yet.", style="dim")
    for section in table.sections:
        _section(section, shown, console)
    if table.not_run:
        console.print(Text(not_run_line(table), style="yellow"))
    for failure in table.failures:
        which, how, why = failure_line(failure)
        line = Text.assemble((how, "yellow"), "  ", which, ": ", why)
        console.print(line, overflow="ellipsis", no_wrap=True)


def _section(section: Section, shown: list[ColumnText], console: Console) -> None:
    rows = [row for row in section.rows if row.status == "ok"]
    console.print()
    console.print(Text(plain(section.title, 120), style="bold cyan"))
    console.print(Text(" · ".join(f"{n}: {plain(t, 100)}" for n, t in section.conditions), style="dim"))
    if not rows:
        return
    cells = [[_text(column, row) for column in shown] for row in rows]
    used, left_out = _fit(shown, cells, console.width)
    view = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold", collapse_padding=True)
    view.add_column("", width=1)
    for index in used:
        column = shown[index]
        header = Text(column.label + (f"\n{column.unit}" if column.unit else ""))
        view.add_column(header, justify="right" if column.is_number else "left", no_wrap=True)
    for row, line in zip(rows, cells, strict=True):
        flag = Text("◆" if row.front else "", style="green")
        view.add_row(flag, *(line[index] for index in used), style="" if row.rank else "dim")
    console.print(view)
    if left_out:
        names = ", ".join(shown[index].label for index in left_out)
        console.print(Text(f"not shown at this width: {names}", style="dim"))
    console.print(Text(section.caption, style="dim"))
    shared = set.intersection(*(set(row.notes) for row in rows)) if len(rows) > 1 else set()
    if shared:
        console.print(
            Text(f"  every row: {'; '.join(plain(n, 200) for n in rows[0].notes if n in shared)}", style="dim")
        )
    for row in rows:
        notes = [plain(note, 200) for note in row.notes if note not in shared]
        if notes:
            name = f"{plain(row.labels['method'], 40)} / {plain(row.labels['quantization'], 20)}"
            console.print(Text(f"  {name}: {'; '.join(notes)}", style="dim"), overflow="ellipsis", no_wrap=True)


def _text(column: ColumnText, row: BoardRow) -> Text:
    there = place(column, row)
    style = "bold" if column.key == "rank" and leading(row) else ""
    text = Text(there.main if column.is_number else plain(there.main, 28), style=style)
    if there.aside and not column.head.column.difference:  # the interval of a difference is in the files
        text.append(f" {there.aside}", style="dim")
    return text


def _fit(shown: list[ColumnText], cells: list[list[Text]], width: int) -> tuple[list[int], list[int]]:
    """Columns that fit on a line, and those that do not; names and rank come before numbers."""
    left = width - 1 - _GAP
    used: list[int] = []
    left_out: list[int] = []
    order = sorted(range(len(shown)), key=lambda index: (shown[index].key not in _KEEP_FIRST, index))
    for index in order:
        column = shown[index]
        header = max(len(column.label), len(column.unit))
        needed = max([header, *(line[index].cell_len for line in cells)]) + _GAP
        if needed <= left and not (left_out and column.key not in _KEEP_FIRST):
            used.append(index)
            left -= needed
        else:
            left_out.append(index)
    return sorted(used), sorted(left_out)

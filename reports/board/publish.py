"""Build a board from a store: in memory (:func:`build_board`) or written in every format (:func:`publish_board`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.console import Console

from harness.record import Record
from harness.store.store import Damage, Store
from reports.board.board import BoardTable, build, load_board
from reports.board.checks import Smell, check_folder
from reports.board.feeds import atom, badge
from reports.board.figures import draw_all
from reports.board.formats import to_latex, to_markdown, to_notebook
from reports.board.formats.files import write_all
from reports.board.formats.to_terminal import print_board


@dataclass(frozen=True)
class Published:
    """A board that was written.

    Attributes:
        table: what every file was rendered from.
        files: the files written.
        damaged: record files that could not be read and are therefore not on the board.
        smells: what the eight checks found in the files just written.
    """

    table: BoardTable
    files: tuple[Path, ...]
    damaged: tuple[Damage, ...]
    smells: tuple[Smell, ...] = ()

    def print(self, console: Console) -> None:
        """Print the board in the width of the terminal."""
        print_board(self.table, console)


@dataclass(frozen=True)
class BuiltBoard:
    """A board in memory: shown in a notebook by itself, written by :meth:`save`.

    Attributes:
        table: rows, columns and failures; every format is rendered from it.
        records: the records it was built from.
        damaged: record files that could not be read and are therefore not on the board.
        sweep: name of the sweep it shows; "" where that is not one sweep.
    """

    table: BoardTable
    records: tuple[Record, ...]
    store: Store
    damaged: tuple[Damage, ...] = ()
    sweep: str = ""

    def save(self, folder: str | Path) -> Published:
        """Write the board as Markdown, CSV, JSON, LaTeX, HTML and figures, and check what was written.

        Raises:
            UserError: the folder cannot be written.
        """
        out = Path(folder)
        drawn, left_out = draw_all(self.table)
        further = {"feed.xml": atom(self.table, self.records).encode(), "badge.json": badge(self.table).encode()}
        files = write_all(self.table, out, drawn, left_out, further)
        smells = check_folder(out, self.store, built=(self.table, drawn, left_out))
        return Published(self.table, tuple(files), self.damaged, tuple(smells))

    def to_markdown(self) -> str:
        """The text of ``board.md``."""
        return to_markdown.render(self.table)

    def to_latex(self, columns: Sequence[str] = (), top: int | None = None) -> str:
        """Tables for a paper: these columns (by key; none: the usual ones), and the first ``top`` rows of each."""
        return to_latex.paper(self.table, columns, top)

    def latex_width_in(self, columns: Sequence[str] = (), top: int | None = None) -> float:
        """Inches that the tables of :meth:`to_latex` need, estimated."""
        return to_latex.paper_width_in(self.table, columns, top)

    def _repr_html_(self) -> str:
        return to_notebook.render(self.table)

    def __str__(self) -> str:
        console = Console(width=160, record=True, file=StringIO())
        print_board(self.table, console)
        return console.export_text()


def build_board(
    name: str,
    workspaces: Sequence[Path],
    *,
    results: str | Path,
    keys: Sequence[str] | None = None,
    title: str = "",
    summary: str = "",
    learned: Sequence[str] = (),
) -> BuiltBoard:
    """Build the board ``name`` from a store.

    Args:
        name: a board of a workspace or a built-in one.
        workspaces: folders whose boards come before the built-in ones.
        results: root of the store.
        keys: the planned cells; those without a record are counted on the board. None: all records.
        title: put before the board's own title.
        summary: in the place of the board's own title.
        learned: verdicts of the rows to keep, as shell-style patterns; none: what the board's file says.

    Raises:
        UserError: no such board, a mistake in its file, damaged samples, or a pattern that no verdict matches.
    """
    board = load_board(name, list(workspaces))
    if title or summary:
        board = board.titled(title, summary)
    if learned:
        board = board.model_copy(update={"rows": board.rows.of_verdicts(learned)})
    store = Store(results)
    records, damaged = store.records(keys)
    table = build(board, records, store, planned=keys)
    return BuiltBoard(table, tuple(records), store, tuple(damaged))


def publish_board(
    name: str,
    workspaces: Sequence[Path],
    *,
    results: str | Path,
    out: Path,
    keys: Sequence[str] | None = None,
    title: str = "",
    summary: str = "",
) -> Published:
    """Build the board ``name`` from a store, write it in every format, and check what was written.

    Args:
        name: a board of a workspace or a built-in one.
        workspaces: folders whose ``reports/boards`` come before the built-in ones.
        results: root of the store.
        out: folder for the files.
        keys: the planned cells; those without a record are counted on the board. None: all records.
        title: put before the board's own title.
        summary: in the place of the board's own title.

    Raises:
        UserError: no such board, a mistake in its file, damaged samples, or a folder that cannot be written.
    """
    return build_board(name, workspaces, results=results, keys=keys, title=title, summary=summary).save(out)

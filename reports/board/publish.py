"""Build a board from a store: in memory (:func:`build_board`) or written in every format (:func:`publish_board`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import count
from pathlib import Path

from rich.console import Console

from harness.errors import UserError
from harness.record import Record
from harness.store.indexed import read_records
from harness.store.store import Damage, Store, without_collection
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
        kept: folder of the board that was here before, if it shows cells that this one does not know.
    """

    table: BoardTable
    files: tuple[Path, ...]
    damaged: tuple[Damage, ...]
    smells: tuple[Smell, ...] = ()
    kept: Path | None = None

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

    def save(self, folder: str | Path, *, keep: bool = False) -> Published:
        """Write the board as Markdown, CSV, JSON, LaTeX, HTML and figures, and check what was written.

        Args:
            keep: first copy a board in the folder that shows other cells, as of earlier settings, to
                ``FOLDER.earlier-N``.

        Raises:
            UserError: the folder cannot be written.
        """
        out = Path(folder)
        kept = keep_other(out, self.table) if keep else None
        drawn, left_out = draw_all(self.table)
        further = {"feed.xml": atom(self.table, self.records).encode(), "badge.json": badge(self.table).encode()}
        files = write_all(self.table, out, drawn, left_out, further)
        smells = check_folder(out, self.store, built=(self.table, drawn, left_out))
        return Published(self.table, tuple(files), self.damaged, tuple(smells), kept)

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


def keep_other(folder: Path, table: BoardTable) -> Path | None:
    """Copy the board in ``folder`` to ``FOLDER.earlier-N`` if it shows cells that ``table`` neither shows nor plans.

    Returns:
        Where it is kept; None: there is no such board.

    Raises:
        UserError: it cannot be copied.
    """
    try:
        bill = json.loads((folder / "lbom.json").read_text(encoding="utf-8"))
        shown, names = {str(one["key"]) for one in bill["records"].values()}, set(map(str, bill["files"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if shown <= {*(table.planned or ()), *(record.key for record in table.records.values())}:
        return None
    names |= {"board.html", "lbom.json", "feed.xml", "badge.json"}
    present = sorted(name for name in names if name == Path(name).name and (folder / name).is_file())
    try:
        for number in count(1):
            place = folder.with_name(f"{folder.name}.earlier-{number}")
            if not place.exists():
                place.mkdir(parents=True)
                for name in present:
                    shutil.copyfile(folder / name, place / name)
                return place
            if (place / "lbom.json").is_file() and (place / "lbom.json").read_bytes() == (
                folder / "lbom.json"
            ).read_bytes():
                return place
    except OSError as error:
        raise UserError(
            f"the earlier board cannot be kept: {error.strerror or error}", where=str(folder), fix="Use another --out."
        ) from error
    return None


def _same_file(a: Path, b: Path) -> bool:
    return a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes()


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
    with without_collection():
        records, damaged = read_records(store, keys)
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

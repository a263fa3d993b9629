"""One call for the command line: read a store, build a board of some cells, write every format, be printable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from harness.store.store import Damage, Store
from reports.board.board import BoardTable, build, load_board
from reports.board.checks import Smell, check_folder
from reports.board.feeds import atom, badge
from reports.board.figures import draw_all
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


def publish_board(
    name: str,
    workspaces: Sequence[Path],
    *,
    results: str | Path,
    out: Path,
    keys: Sequence[str] | None = None,
    title: str = "",
) -> Published:
    """Build the board ``name`` from a store, write it in every format, and check what was written.

    Args:
        name: a board of a workspace or a built-in one.
        workspaces: folders whose ``reports/boards`` come before the built-in ones.
        results: root of the store.
        out: folder for the files.
        keys: the planned cells; those without a record are counted on the board. None: all records.
        title: put before the board's own title.

    Raises:
        UserError: no such board, a mistake in its file, damaged samples, or a folder that cannot be written.
    """
    board = load_board(name, list(workspaces))
    if title:
        board = board.model_copy(update={"title": f"{title}: {board.title}"})
    store = Store(results)
    records, damaged = store.records(keys)
    table = build(board, records, store, planned=keys)
    drawn, left_out = draw_all(table)
    further = {"feed.xml": atom(table, records).encode(), "badge.json": badge(table).encode()}
    files = write_all(table, out, drawn, left_out, further)
    smells = check_folder(out, store, built=(table, drawn, left_out))
    return Published(table, tuple(files), tuple(damaged), tuple(smells))

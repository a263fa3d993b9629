"""From a name that a user typed to a board and its cells: a sweep, a sweep known from records only, or imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runners.workspace import Workspace, workspace_above

if TYPE_CHECKING:
    from rich.console import Console

    from harness.spec import LoadedSweep


IMPORTED = "imported:"
Cells = Literal["planned", "recorded", "all"]


@dataclass(frozen=True)
class BoardTarget:
    """The board and the cells to show.

    Attributes:
        name: of the sweep, or ``imported:KIND``.
        board: name of the board.
        keys: keys of its cells; None: whatever the store holds under the name.
        summary: the sweep's own; "" where it has none or there is no file.
    """

    name: str
    board: str
    keys: tuple[str, ...] | None
    summary: str = ""

    @property
    def title(self) -> str:
        """Put before the board's own title; "" for imported results, whose board says what they are."""
        return "" if self.name.startswith(IMPORTED) else self.name


def target(sweep: str | Path | LoadedSweep, workspace: Workspace, cells: Cells) -> BoardTarget:
    """The board and the cells of a sweep.

    Args:
        sweep: a sweep, its name or file, the name of a sweep that only records tell of, or ``imported:KIND``.
        cells: ``planned``: those that the sweep plans now; ``recorded``: those that the store holds under its name;
            ``all``: no selection by key.

    Raises:
        UserError: no such sweep, and no record of one.
    """
    from reports.board.spec import find_boards
    from runners.tools.queries import recorded_keys, sweep_keys

    name = sweep if isinstance(sweep, str) else ""
    if name.startswith(IMPORTED):
        kind = name.removeprefix(IMPORTED)
        board = kind if kind in find_boards(list(workspace.roots)) else "imported"
        return BoardTarget(name, board, None if cells == "all" else tuple(recorded_keys(name, workspace.results)))
    if cells != "planned" and name and name not in workspace.sweeps() and not Path(name).is_file():
        keys = tuple(recorded_keys(name, workspace.results))  # raises where there is neither a file nor a record
        return BoardTarget(name, "default", None if cells == "all" else keys)
    loaded = load(sweep, workspace)
    if cells == "all":
        return BoardTarget(loaded.spec.name, loaded.spec.board, None, loaded.spec.summary)
    found = sweep_keys(loaded, workspace) if cells == "planned" else recorded_keys(loaded.spec.name, workspace.results)
    return BoardTarget(loaded.spec.name, loaded.spec.board, tuple(found), loaded.spec.summary)


def load(sweep: str | Path | LoadedSweep, workspace: Workspace, changes: Sequence[str] = ()) -> LoadedSweep:
    """A sweep by its name, its file, or as it is. ``changes``: values of the file to set, as ``training.steps=10``."""
    from runners.running.run import load_sweep

    return load_sweep(str(sweep), workspace, changes) if isinstance(sweep, str | Path) else sweep


Location = str | Path | None
"""A folder or URL of records; None: that of the workspace."""


def open_workspace(
    results: Location = None, data_root: str | Path | None = None, *, sweep: str | Path | LoadedSweep | None = None
) -> Workspace:
    """The workspace that a sweep's file lies in, else that of the current folder, with these overrides.

    Args:
        results: store URL or folder.
        data_root: folder of local data sets.
        sweep: a name says nothing about the place; a file inside a workspace belongs to that workspace: its tasks are
            found and its results folder is used, whatever the current folder.
    """
    named = str(results) if results is not None else None
    data = Path(data_root) if data_root is not None else None
    return Workspace.discover(start=_home(sweep), results=named, data_root=data)


def _home(sweep: str | Path | LoadedSweep | None) -> Path | None:
    """The workspace folder above the sweep's file; None where the sweep has no file or lies in no workspace."""
    if sweep is None:
        return None
    file = Path(sweep) if isinstance(sweep, str | Path) else sweep.path
    if file is None or file.suffix not in (".yaml", ".yml") or not file.is_file():
        return None
    return workspace_above(file.resolve().parent)


def make_console(quiet: bool) -> Console:
    """Where progress is printed."""
    from rich.console import Console

    return Console(quiet=quiet)

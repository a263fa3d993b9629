"""Where the API's functions find their workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runners.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console

Location = str | Path | None
"""A folder or URL of records; None: that of the workspace."""


def open_workspace(results: Location = None, data_root: str | Path | None = None) -> Workspace:
    """The workspace of the current folder, with these overrides."""
    named = str(results) if results is not None else None
    return Workspace.discover(results=named, data_root=Path(data_root) if data_root is not None else None)


def make_console(quiet: bool) -> Console:
    """Where progress is printed."""
    from rich.console import Console

    return Console(quiet=quiet)

"""The static site of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from peft_matrix.targets import target

if TYPE_CHECKING:
    from reports.apps.site import Site
    from runners.workspace import Workspace


def build_site_of(
    workspace: Workspace,
    out: Path,
    sweeps: Sequence[str] = (),
    *,
    claims: Path | None = None,
    planned: bool = False,
) -> Site:
    """Build the site of these sweeps, or of all that the store holds.

    Args:
        claims: a file with what ``reproduce --json`` printed, for the page of claims.
        planned: also count cells that a sweep's file plans and that have no record.

    Raises:
        UserError: no records, no such sweep, or a folder that cannot be written.
    """
    from harness.methods.catalog import METHODS
    from harness.store import index
    from reports.apps.site import Part, build_site
    from reports.board.board import load_board

    store = workspace.open_store()
    names = list(dict.fromkeys(sweeps)) or sorted(set(index.load(store).flat.rows.column("sweep").to_pylist()))
    if not names:
        raise UserError("no records to show", where=store.root, fix="Run a sweep first, or name another --results.")
    parts = []
    for name in names:
        known = name in workspace.sweeps() or Path(name).is_file()
        shown = target(name, workspace, "planned" if planned and known else "all")
        board = load_board(shown.board, list(workspace.roots)).titled("", shown.summary)
        parts.append(Part(shown.name, board, shown.keys))
    methods = {
        name: {"summary": told.summary, "paper": told.paper, "family": told.family}
        for name in METHODS
        for told in (METHODS.get(name).declaration,)
    }
    return build_site(parts, store, out, claims=claims, methods=methods)

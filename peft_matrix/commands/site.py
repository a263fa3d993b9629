"""The command that builds the site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import UserError
from peft_matrix.commands.boards import IMPORTED
from peft_matrix.commands.common import AsJson, DataRoot, Results, open_workspace, print_json

if TYPE_CHECKING:
    from harness.store.store import Store
    from runners.workspace import Workspace


def site(
    sweeps: Annotated[
        list[str] | None, typer.Argument(help="Sweeps to show. Default: all that the store holds.")
    ] = None,
    results: Results = None,
    data_root: DataRoot = None,
    out: Annotated[Path, typer.Option(help="New folder, or that of an earlier site.")] = Path("site"),
    claims: Annotated[Path | None, typer.Option(help="What 'reproduce --json' printed, for the claims page.")] = None,
    planned: Annotated[
        bool, typer.Option("--planned", help="Also count planned cells of the sweep's file that have no record.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build static pages of the boards: no server, no network, open index.html."""
    built = build(open_workspace(results, data_root), out, sweeps, claims=claims, planned=planned)
    if as_json:
        print_json({"out": str(built.out), "files": list(built.files), "rows": built.rows, "cells": built.cells})
        return
    for damage in built.damaged:
        typer.echo(f"Left out, damaged: {damage.path}: {damage.reason}", err=True)
    typer.echo(f"{built.boards} boards, {built.rows} rows, {built.cells} cells, {len(built.files)} files.")
    typer.echo(f"Site: {built.out / 'index.html'}")


def build(
    workspace: Workspace,
    out: Path,
    sweeps: list[str] | None = None,
    *,
    claims: Path | None = None,
    planned: bool = False,
) -> Any:
    """Build the site of these sweeps, or of all that the store holds."""
    from reports.apps.site import build_site

    store = workspace.open_store()
    names = list(dict.fromkeys(sweeps or _held(store)))
    return build_site([_part(name, workspace, planned) for name in names], store, out, claims=claims)


def _held(store: Store) -> list[str]:
    from harness.store import index

    names = sorted(set(index.load(store).flat.rows.column("sweep").to_pylist()))
    if not names:
        raise UserError("no records to show", where=store.root, fix="Run a sweep first, or name another --results.")
    return names


def _part(name: str, workspace: Workspace, planned: bool) -> Any:
    """The sweep with its board: what its file says; for records of a sweep without a file, the one that fits them."""
    from reports.apps.site import Part
    from reports.board.board import find_boards, load_board
    from runners.running.run import load_sweep
    from runners.tools.queries import recorded_keys, sweep_keys

    roots = list(workspace.roots)
    if name.startswith(IMPORTED):
        kind = name.removeprefix(IMPORTED)
        return Part(name, load_board(kind if kind in find_boards(roots) else "imported", roots))
    if name not in workspace.sweeps() and not Path(name).is_file():
        recorded_keys(name, workspace.results)  # says so where there is neither a file nor a record
        return Part(name, load_board("default", roots))
    loaded = load_sweep(name, workspace)
    keys = sweep_keys(loaded, workspace) if planned else None
    return Part(loaded.spec.name, load_board(loaded.spec.board, roots), keys)


VERBS = (site,)

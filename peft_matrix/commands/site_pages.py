"""The command that builds the site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_matrix.commands.common import AsJson, DataRoot, Results, print_json


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
    from peft_matrix import api

    built = api.site(out, *(sweeps or ()), results=results, data_root=data_root, claims=claims, planned=planned)
    if as_json:
        print_json({"out": str(built.out), "files": list(built.files), "rows": built.rows, "cells": built.cells})
        return
    for damage in built.damaged:
        typer.echo(f"Left out, damaged: {damage.path}: {damage.reason}", err=True)
    typer.echo(f"{built.boards} boards, {built.rows} rows, {built.cells} cells, {len(built.files)} files.")
    typer.echo(f"Site: {built.out / 'index.html'}")


VERBS = (site,)

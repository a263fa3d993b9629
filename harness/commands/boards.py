"""Verbs that read records and draw: leaderboards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.common import AsJson, DataRoot, Results, console, open_workspace


def board(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep or path to its YAML.")],
    results: Results = None,
    data_root: DataRoot = None,
    board_name: Annotated[
        str | None, typer.Option("--board", help="Board to draw; default: what the sweep says.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files. Default: RESULTS/boards/SWEEP")] = None,
    from_records: Annotated[
        bool, typer.Option("--from-records", help="What the store holds under this sweep's name; needs no data.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the leaderboard of a sweep and write it as Markdown, CSV, JSON, LaTeX, HTML and figures."""
    from reports.publish import publish_board
    from runners.listing import recorded_keys, sweep_keys
    from runners.run import load_sweep

    workspace = open_workspace(results, data_root)
    loaded = load_sweep(sweep, workspace)
    name = loaded.spec.name
    folder = out or board_folder(workspace.results, name)
    keys = recorded_keys(name, workspace.results) if from_records else sweep_keys(loaded, workspace)
    published = publish_board(
        board_name or loaded.spec.board, workspace.roots, results=workspace.results, keys=keys, out=folder, title=name
    )
    if as_json:
        typer.echo((folder / "board.json").read_text(encoding="utf-8"), nl=False)
        return
    published.print(console())
    for damage in published.damaged:
        typer.echo(f"Left out, damaged: {damage.path}: {damage.reason}", err=True)
    typer.echo(f"Page: {folder / 'board.html'}    (also board.md, .csv, .json, .tex and figures)")


def board_folder(results: str, sweep: str) -> Path:
    """Boards lie beside the records; for records at a URL, in the current folder."""
    return (Path("results") if "://" in results else Path(results)) / "boards" / sweep


VERBS = (board,)

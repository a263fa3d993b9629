"""Commands for boards: draw, check, import, publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import EXIT_FAILED_CELLS, UserError
from peft_matrix.commands.common import AsJson, DataRoot, Results, console, open_workspace, print_json

if TYPE_CHECKING:
    from runners.workspace import Workspace

IMPORTED = "imported:"


def board(
    sweep: Annotated[str, typer.Argument(help="A sweep's name or YAML, or imported:KIND.")],
    results: Results = None,
    data_root: DataRoot = None,
    board_name: Annotated[
        str | None, typer.Option("--board", help="Board to draw. Default: the sweep's board.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files. Default: RESULTS/boards/SWEEP")] = None,
    from_records: Annotated[
        bool, typer.Option("--from-records", help="Use all records with this sweep's name; needs no data.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print a leaderboard and write it as Markdown, CSV, JSON, LaTeX, HTML and figures, and check it.

    ``imported:KIND`` instead of a sweep draws what 'peft-matrix import KIND' brought in.
    """
    from reports.board.checks import print_found
    from reports.board.publish import publish_board

    workspace = open_workspace(results, data_root)
    name, drawn_as, keys = _what(sweep, workspace, from_records)
    folder = out or board_folder(workspace, name)
    published = publish_board(
        board_name or drawn_as,
        workspace.roots,
        results=workspace.results,
        keys=keys,
        out=folder,
        title="" if name.startswith(IMPORTED) else name,
    )
    if as_json:
        typer.echo((folder / "board.json").read_text(encoding="utf-8"), nl=False)
        return
    published.print(console())
    for damage in published.damaged:
        typer.echo(f"Left out, damaged: {damage.path}: {damage.reason}", err=True)
    typer.echo(f"Page: {folder / 'board.html'}    (also board.md, .csv, .json, .tex, lbom.json and figures)")
    if published.smells:
        print_found(published.smells)
        raise typer.Exit(EXIT_FAILED_CELLS)


def _what(sweep: str, workspace: Workspace, from_records: bool) -> tuple[str, str, list[str]]:
    """Name, board and cells to draw: of a sweep, or of another tool's results."""
    from reports.board.spec import find_boards
    from runners.running.run import load_sweep
    from runners.tools.queries import recorded_keys, sweep_keys

    if sweep.startswith(IMPORTED):  # there is no sweep file: what was imported is all there is
        kind = sweep.removeprefix(IMPORTED)
        known = kind in find_boards(list(workspace.roots))
        return sweep, kind if known else "imported", recorded_keys(sweep, workspace.results)
    loaded = load_sweep(sweep, workspace)
    name = loaded.spec.name
    keys = recorded_keys(name, workspace.results) if from_records else sweep_keys(loaded, workspace)
    return name, loaded.spec.board, keys


def check(
    what: Annotated[str, typer.Argument(help="Folder of a board, or name of a sweep whose board was drawn.")],
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Check a board's files against the records for the eight leaderboard smells. Exit code 1 if any is found."""
    from harness.store.store import Store
    from reports.board.checks import check_folder, print_found

    workspace = open_workspace(results, None)
    folder = Path(what) if Path(what).is_dir() else board_folder(workspace, what)
    found = check_folder(folder, Store(workspace.results))
    if as_json:
        print_json([{"smell": one.smell, "where": one.where, "what": one.what} for one in found])
    elif found:
        print_found(found)
    else:
        typer.echo(f"{folder}: none of the eight smells.")
    if found:
        raise typer.Exit(EXIT_FAILED_CELLS)


def board_folder(workspace: Workspace, sweep: str) -> Path:
    """Boards are written next to the records; for records at a URL, to ./results."""
    return workspace.beside("boards") / sweep.replace(":", "-")


def import_(
    kind: Annotated[str, typer.Argument(help="peft-method-comparison, lm-eval or optimum-benchmark.")],
    paths: Annotated[list[Path], typer.Argument(help="Result files, or folders of them.")],
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Import results of another tool as records marked as imported; list the fields that were not mapped."""
    from harness.store.store import Store
    from reports.apps.importers import import_results

    workspace = open_workspace(results, None)
    done = import_results(kind, paths, Store(workspace.results))
    if as_json:
        unmapped = {name: {"why": why, "records": n} for name, (why, n) in done.unmapped.items()}
        print_json({"records": len(done.records), "added": done.added, "unmapped": unmapped, "lacks": done.lacks})
        return
    typer.echo(f"{kind}: {len(done.records)} records, {done.added} new, marked as imported (not run here).")
    typer.echo("Not in the files:")
    for lack in done.lacks:
        typer.echo(f"  {lack}")
    typer.echo("Fields that no record holds:")
    for name, (why, n) in done.unmapped.items():
        typer.echo(f"  {name} ({n} records): {why}")
    typer.echo(f"Records: {workspace.results}    Board: peft-matrix board {IMPORTED}{kind}")


def publish(
    repo: Annotated[str, typer.Argument(help="Repository on the Hugging Face Hub: OWNER/NAME.")],
    to: Annotated[str, typer.Option(help="hf-dataset (the records) or hf-space (pages, static).")],
    folder: Annotated[
        Path | None, typer.Option(help="Folder to upload. Default: the records, or their boards for hf-space.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Upload. Without it, only list the files.")] = False,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Upload records or pages to the Hugging Face Hub. A dry run unless --push; the token comes from HF_TOKEN."""
    from reports.apps.upload import upload

    store = open_workspace(results, None).open_store()
    if folder is None and store.folder is None:
        raise UserError(
            "only files of this machine can be sent to the Hub",
            where=store.root,
            fix="Copy the records first (peft-matrix results merge URL --into FOLDER), or name --folder.",
        )
    named = folder or (store.folder or Path()) / ("" if to == "hf-dataset" else "boards")
    done = upload(to, repo, named, push=push)
    if as_json:
        shown = {"target": done.target, "repo": done.repo, "sent": done.sent, "files": dict(done.files)}
        print_json({**shown, "left_out": list(done.left_out)})
        return
    if done.left_out:
        some = ", ".join(done.left_out[:5]) + (", ..." if len(done.left_out) > 5 else "")
        typer.echo(
            f"Not published, since no board, site or store wrote them: {len(done.left_out)} files ({some})", err=True
        )
    size = sum(done.files.values())
    what = f"{len(done.files):,} files, {size / 2**20:.1f} MiB"
    if done.sent:
        typer.echo(f"Sent to {done.target} {done.repo}: {what}. {done.address}")
    else:
        for name in list(done.files)[:20]:
            typer.echo(f"  {name}")
        typer.echo(f"Dry run, nothing was sent. --push would send {what} to {done.target} {done.repo}.")


VERBS = (board, check, import_, publish)

"""Commands for boards and pages: draw, check, import, publish, site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.errors import EXIT_FAILED_CELLS
from peft_matrix.commands.common import AsJson, DataRoot, Results, Set, chosen, console, print_json
from peft_matrix.targets import IMPORTED, open_workspace

ONE_COLUMN_IN, ONE_PAGE_IN = 3.3, 6.5
"""Width of a column of a paper of two columns, and of a page of one."""


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
    learned: Annotated[
        list[str] | None,
        typer.Option(help="Only rows with this verdict: learned, 'no evidence', worse or degenerate. Repeatable."),
    ] = None,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print tables for a paper (booktabs, siunitx) and write nothing.")
    ] = False,
    columns: Annotated[str | None, typer.Option(help="With --latex: keys of the columns, separated by commas.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="With --latex: the first rows only.")] = None,
    changes: Set = None,
    as_json: AsJson = False,
) -> None:
    """Print a leaderboard and write it as Markdown, CSV, JSON, LaTeX, HTML and figures, and check it.

    ``imported:KIND`` instead of a sweep draws what 'peft-matrix import KIND' brought in.
    """
    from peft_matrix import api
    from peft_matrix.console import print_smells

    stored = api.load(results, data_root=data_root, sweep=sweep)
    asked = chosen(sweep, changes)
    found = stored.board(asked, board=board_name, planned=not from_records, learned=learned or ())
    if latex:
        keys = [key.strip() for key in (columns or "").split(",") if key.strip()]
        typer.echo(found.to_latex(keys, top), nl=False)
        if (width_in := found.latex_width_in(keys, top)) > ONE_COLUMN_IN:
            where = "a page of one column (6.5 in)" if width_in <= ONE_PAGE_IN else "no page: leave out columns"
            typer.echo(f"The widest table needs about {width_in:.1f} in and fits {where}.", err=True)
        return
    folder = out or board_folder(results, found.sweep, sweep)
    published = found.save(folder, keep=True)
    planned = found.table.planned
    others = (
        [] if from_records or planned is None or sweep.startswith(IMPORTED) else stored.other_settings(asked, planned)
    )
    if as_json:
        typer.echo((folder / "board.json").read_text(encoding="utf-8"), nl=False)
        _print_others(others, (found.sweep, sweep), published.kept, edited=not changes, err=True)
        return
    published.print(console())
    for damage in published.damaged:
        typer.echo(f"Left out, damaged: {damage.path}: {damage.reason}", err=True)
    typer.echo(
        f"Page: {folder / 'board.html'}    (also board.md, .csv, .json, .tex, figures; lbom.json: versions and digests)"
    )
    _print_others(others, (found.sweep, sweep), published.kept, edited=not changes, err=False)
    if published.smells:
        print_smells(published.smells)
        raise typer.Exit(EXIT_FAILED_CELLS)


def _print_others(
    others: Sequence[Mapping[str, Any]], named: tuple[str, str], kept: Path | None, *, edited: bool, err: bool
) -> None:
    """Records of other settings of the sweep's cells, by what differs, and where the board of them is.

    Args:
        named: the sweep's name, and how it was named on the command line.
        edited: its file is what changed, and no option.
    """
    name, typed = named
    by_difference = Counter("; ".join(one["differ"]) or "cells that the sweep does not plan" for one in others)
    for differ, n in by_difference.most_common():
        records = "1 record" if n == 1 else f"{n} records"
        typer.echo(f"Not on this board: {records} of {name} with other settings: {differ}", err=err)
    if others:
        typer.echo(f"All of them on one board: peft-matrix board {typed} --from-records", err=err)
    if others and edited:
        typer.echo(
            f"To move them away: peft-matrix results archive --sweep {typed} --earlier-settings --to DIR", err=err
        )
    if kept is not None:
        typer.echo(f"The board that was here shows other cells; it is kept: {kept / 'board.html'}", err=err)


def check(
    what: Annotated[str, typer.Argument(help="Folder of a board, or a sweep whose board was drawn.")],
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Check a board's files against the records: the eight leaderboard smells, unsound numbers. Exit code 1 if any."""
    from peft_matrix import api
    from peft_matrix.console import print_smells

    named = api.load_sweep(what).spec.name if what.endswith((".yaml", ".yml")) else what
    folder = Path(what) if Path(what).is_dir() else board_folder(results, named, what)
    found = api.check_board(folder, results=results)
    if as_json:
        print_json([{"smell": one.smell, "where": one.where, "what": one.what} for one in found])
    elif found:
        print_smells(found)
    else:
        typer.echo(f"{folder}: no smells, nothing unsound.")
    if found:
        raise typer.Exit(EXIT_FAILED_CELLS)


def board_folder(results: str | None, name: str, sweep: str = "") -> Path:
    """Boards are written next to the records; for records at a URL, to ./results."""
    return open_workspace(results, sweep=sweep).beside("boards") / name.replace(":", "-")


def import_(
    kind: Annotated[str, typer.Argument(help="peft-method-comparison, lm-eval or optimum-benchmark.")],
    paths: Annotated[list[Path], typer.Argument(help="Result files, or folders of them.")],
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Import results of another tool as records marked as imported; list the fields that were not mapped."""
    from peft_matrix import api

    done = api.import_results(kind, paths, results=results)
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
    typer.echo(f"Records: {open_workspace(results).results}    Board: peft-matrix board {IMPORTED}{kind}")


def publish(
    repo: Annotated[str, typer.Argument(help="Repository on the Hugging Face Hub: OWNER/NAME.")],
    to: Annotated[str, typer.Option(help="hf-dataset (the records) or hf-space (pages, static).")],
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder to upload. Default: the records, or for hf-space their site, which is built first."),
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Upload. Without it, only list the files.")] = False,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Upload records or pages to the Hugging Face Hub. A dry run unless --push; the token comes from HF_TOKEN."""
    from peft_matrix import api

    done = api.publish(repo, to=to, folder=folder, push=push, results=results)
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
    """Build static pages of the boards: no server, no network, open index.html. Exit code 1 if a referee objects."""
    from peft_matrix import api
    from peft_matrix.console import print_smells

    built = api.site(out, *(sweeps or ()), results=results, data_root=data_root, claims=claims, planned=planned)
    if as_json:
        told = [{"sweep": name, "where": one.where, "what": one.what} for name, one in built.objections]
        sizes = {"out": str(built.out), "files": list(built.files), "rows": built.rows, "cells": built.cells}
        print_json({**sizes, "objections": told})
        if built.objections:
            raise typer.Exit(EXIT_FAILED_CELLS)
        return
    for damage in built.damaged:
        typer.echo(f"Left out, damaged: {damage.path}: {damage.reason}", err=True)
    typer.echo(f"{built.boards} boards, {built.rows} rows, {built.cells} cells, {len(built.files)} files.")
    typer.echo(f"Site: {built.out / 'index.html'}")
    if built.objections:
        print_smells([replace(one, where=f"{name}: {one.where}") for name, one in built.objections])
        raise typer.Exit(EXIT_FAILED_CELLS)


VERBS = (board, site, check, import_, publish)

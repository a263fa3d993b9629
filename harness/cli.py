"""The front door: verbs only. Every heavy import stands inside a verb, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import EXIT_BAD_INPUT, EXIT_FAILED_CELLS, EXIT_INTERRUPTED, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from runners.workspace import Workspace

app = typer.Typer(
    name="peft-matrix",
    help="Sweep models x fine-tuning methods x quantization x hardware; record accuracy, memory, time and energy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SweepName = Annotated[str, typer.Argument(help="Name of a sweep (see 'peft-matrix plan --list') or path to its YAML.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Results = Annotated[str | None, typer.Option(help="Folder or URL of the records. Default: ./results")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of local data sets that override the Hub.")]
Only = Annotated[str | None, typer.Option(help="Only cells whose label matches this pattern ('*lora*') or key.")]
Rerun = Annotated[
    list[str] | None, typer.Option(help="Run these again: stale, all, or a status such as error. Repeatable.")
]


@app.command()
def run(
    sweep: SweepName,
    results: Results = None,
    data_root: DataRoot = None,
    only: Only = None,
    rerun: Rerun = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells at once; default: what the sweep says.")] = None,
) -> None:
    """Run what is missing of a sweep. A second run of a finished sweep does nothing."""
    from runners.run import load_sweep, run_sweep

    workspace = _workspace(results, data_root)
    loaded = load_sweep(sweep, workspace)
    try:
        summary = run_sweep(loaded, workspace, _console(), only=only, rerun=rerun or (), workers=workers)
    except KeyboardInterrupt:
        typer.echo("Stopped. What is finished is kept; run again to continue.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.outcomes.items())) or "nothing to run"
    kept = len(summary.plan.done) + len(summary.plan.stale)
    typer.echo(f"{sweep}: {counts}" + (f"; {kept} already done" if kept else ""))
    typer.echo(f"Records: {workspace.results}    Leaderboard: peft-matrix board {sweep}")
    if summary.failed:
        raise typer.Exit(EXIT_FAILED_CELLS)


@app.command()
def plan(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep or path to its YAML.")] = "",
    results: Results = None,
    data_root: DataRoot = None,
    only: Only = None,
    rerun: Rerun = None,
    as_json: AsJson = False,
    list_sweeps: Annotated[bool, typer.Option("--list", help="List the sweeps there are.")] = False,
) -> None:
    """Say what would happen to each cell of a sweep, and why. Runs nothing."""
    from harness import hardware
    from runners.listing import print_plan, sweeps
    from runners.run import load_sweep, make_plan

    workspace = _workspace(results, data_root)
    if list_sweeps or not sweep:
        _table(sweeps(workspace), as_json)
        return
    made = make_plan(load_sweep(sweep, workspace), workspace, machine=hardware.probe(), only=only, rerun=rerun or ())
    if as_json:
        _json(made.as_json())
    else:
        print_plan(made, _console())


@app.command()
def status(sweep: SweepName, results: Results = None, data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """How the cells of a sweep stand: counts by status, and every failure with its reason."""
    from runners.listing import print_status
    from runners.listing import status as status_of
    from runners.run import load_sweep

    workspace = _workspace(results, data_root)
    stands = status_of(load_sweep(sweep, workspace), workspace)
    if as_json:
        _json(stands)
    else:
        print_status(stands, _console())


@app.command()
def show(
    cell: Annotated[str, typer.Argument(help="A cell's label, key, or the beginning of either.")],
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Show one record: what was run, every stage's time and memory, every metric, the end of the log."""
    from runners.listing import find_record, print_record

    record = find_record(cell, _workspace(results, None))
    if as_json:
        _json({"id": record.id, **record.content()})
    else:
        print_record(record, _console())


@app.command()
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

    workspace = _workspace(results, data_root)
    loaded = load_sweep(sweep, workspace)
    name = loaded.spec.name
    folder = out or _board_folder(workspace.results, name)
    keys = recorded_keys(name, workspace.results) if from_records else sweep_keys(loaded, workspace)
    published = publish_board(
        board_name or loaded.spec.board, workspace.roots, results=workspace.results, keys=keys, out=folder, title=name
    )
    if as_json:
        typer.echo((folder / "board.json").read_text(encoding="utf-8"), nl=False)
        return
    published.print(_console())
    for damage in published.damaged:
        typer.echo(f"Left out, damaged: {damage.path}: {damage.reason}", err=True)
    typer.echo(f"Page: {folder / 'board.html'}    (also board.md, .csv, .json, .tex and figures)")


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the fine-tuning methods."""
    from runners.listing import methods as rows

    _table(rows(), as_json)


@app.command()
def quantizers(as_json: AsJson = False) -> None:
    """List the quantizers, and whether each runs on this machine."""
    from runners.listing import quantizers as rows

    _table(rows(), as_json)


@app.command()
def tasks(data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """List the tasks, the built-in ones and those of the workspace."""
    from runners.listing import tasks as rows

    _table(rows(_workspace(None, data_root)), as_json)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the built-in models and the ways to name any other."""
    from runners.listing import models as rows

    _table(rows(), as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, and what to install for the rest."""
    from runners.listing import doctor as rows

    _table(rows(), as_json)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="New or empty folder.")]) -> None:
    """Lay out a workspace of your own, with a task and a sweep to start from."""
    from runners.scaffold import lay_out

    for path in lay_out(folder):
        typer.echo(f"  {path}")
    typer.echo(f"Next: cd {folder} && peft-matrix run first")


# --- helpers ----------------------------------------------------------------------------------------
def _workspace(results: str | None, data_root: Path | None) -> Workspace:
    from runners.workspace import Workspace

    return Workspace.discover(results=results, data_root=data_root)


def _board_folder(results: str, sweep: str) -> Path:
    """Boards lie beside the records; for records at a URL, in the current folder."""
    return (Path("results") if "://" in results else Path(results)) / "boards" / sweep


def _console() -> Console:
    from rich.console import Console

    return Console()


def _json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def _table(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _json(rows)
        return
    from runners.listing import print_rows

    print_rows(rows, _console())


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, Ctrl-C is exit code 130."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        typer.echo(f"peft-matrix: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            typer.echo(f"peft-matrix: {error.format_message()} See 'peft-matrix --help'.", err=True)
            sys.exit(EXIT_BAD_INPUT)
        raise
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

"""Commands for a sweep: run, plan, status, show, init."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import EXIT_FAILED_CELLS, EXIT_INTERRUPTED, UserError
from peft_matrix.commands.common import (
    AsJson,
    DataRoot,
    Only,
    Rerun,
    Results,
    SweepName,
    console,
    open_workspace,
    print_json,
    print_table,
)

Workers = Annotated[int | None, typer.Option(min=1, help="Number of cells at once. Default: the sweep's setting.")]
Hours = Annotated[
    float | None,
    typer.Option(
        min=0, help="Time budget in hours: the most important cells first; cells that do not fit are not run."
    ),
]


def run(
    sweep: SweepName,
    results: Results = None,
    data_root: DataRoot = None,
    only: Only = None,
    rerun: Rerun = None,
    workers: Workers = None,
    hours: Hours = None,
    executor: Annotated[str, typer.Option(help="Executor: local, ray or slurm.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster to join: auto, or HOST:PORT.")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(help="Option of sbatch as NAME=VALUE (partition=gpu). Repeatable.")
    ] = None,
) -> None:
    """Run the missing cells of a sweep. A finished sweep is not run again."""
    from runners.executors.backends import Choice
    from runners.running.run import load_sweep, run_sweep

    workspace = open_workspace(results, data_root)
    loaded = load_sweep(sweep, workspace)
    choice = Choice(executor, address, _pairs(slurm or [], "--slurm"), workers)
    try:
        summary = run_sweep(loaded, workspace, console(), only=only, rerun=rerun or (), choice=choice, hours=hours)
    except KeyboardInterrupt:
        typer.echo("Stopped. What is finished is kept; run again to continue.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.outcomes.items()))
    if summary.not_run:
        counts += f"{', ' if counts else ''}{len(summary.not_run)} not_run"
        for reason, n in sorted(Counter(f"{one.kind}: {one.reason}" for one in summary.not_run).items()):
            typer.echo(f"  not_run {n} x {reason}")
    counts = counts or "nothing to run"
    kept = len(summary.plan.done) + len(summary.plan.stale)
    typer.echo(f"{sweep}: {counts}" + (f"; {kept} already done" if kept else ""))
    typer.echo(f"Records: {workspace.results}    Leaderboard: peft-matrix board {sweep}")
    if summary.failed:
        raise typer.Exit(EXIT_FAILED_CELLS)


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` options by name."""
    from harness.errors import UserError

    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"{text!r} is not NAME=VALUE", where=option)
        pairs[name.replace("-", "_")] = value
    return pairs


def plan(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep or path to its YAML.")] = "",
    results: Results = None,
    data_root: DataRoot = None,
    only: Only = None,
    rerun: Rerun = None,
    hours: Hours = None,
    workers: Workers = None,
    as_json: AsJson = False,
    list_sweeps: Annotated[bool, typer.Option("--list", help="List the available sweeps.")] = False,
) -> None:
    """Dry run: show the status of every cell of a sweep, with the reason."""
    from harness import hardware
    from peft_matrix.console import print_plan
    from runners.running.run import load_sweep, make_plan
    from runners.tools.queries import sweeps

    workspace = open_workspace(results, data_root)
    if list_sweeps or not sweep:
        print_table(sweeps(workspace), as_json)
        return
    loaded = load_sweep(sweep, workspace)
    slots = workers or loaded.spec.limits.workers or 1
    machine = hardware.probe()
    made = make_plan(loaded, workspace, machine=machine, only=only, rerun=rerun or (), hours=hours, slots=slots)
    if as_json:
        print_json(made.as_json())
    else:
        print_plan(made, console())


def status(sweep: SweepName, results: Results = None, data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """Count the cells of a sweep by status, and list every failure with its reason."""
    from peft_matrix.console import print_status
    from runners.running.run import load_sweep
    from runners.tools.queries import status as status_of

    workspace = open_workspace(results, data_root)
    stands = status_of(load_sweep(sweep, workspace), workspace)
    if as_json:
        print_json(stands)
    else:
        print_status(stands, console())


def show(
    cell: Annotated[str, typer.Argument(help="A cell's label, key, or the beginning of either.")],
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Show one record: settings, time and memory of every stage, every metric, the end of the log."""
    from peft_matrix.console import print_record
    from runners.tools.queries import find_record

    record = find_record(cell, open_workspace(results, None))
    if as_json:
        print_json({"id": record.id, **record.content()})
    else:
        print_record(record, console())


def fetch(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep or path to its YAML.")] = "",
    to: Annotated[Path | None, typer.Option(help="New or empty folder, or the folder of an earlier fetch.")] = None,
    verify: Annotated[Path | None, typer.Option(help="Only check a fetched folder against its manifest.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Download a sweep's models and data, with digests, into a folder that works without a network."""
    from runners.running.run import load_sweep
    from runners.tools import fetch as fetching

    if verify is not None:
        typer.echo(f"{verify}: {fetching.verify(verify):,} files are as they were fetched.")
        return
    if to is None or not sweep:
        raise UserError("a sweep and a folder are needed", where="fetch", fix="peft-matrix fetch SWEEP --to DIR")
    workspace = open_workspace(None, data_root)
    loaded = load_sweep(sweep, workspace)
    done = fetching.fetch(loaded, workspace, to, lambda line: typer.echo(line, err=True))
    for origin in done.origins:
        typer.echo(f"  {origin}")
    size = f"{done.files:,} files, {done.size / 2**20:.1f} MiB"
    typer.echo(f"{size}. On the other machine: cd {to} && peft-matrix run {loaded.spec.name}")


def init(folder: Annotated[Path, typer.Argument(help="New or empty folder.")]) -> None:
    """Create a workspace with an example task and sweep."""
    from runners.tools.init_workspace import lay_out

    for path in lay_out(folder):
        typer.echo(f"  {path}")
    typer.echo(f"Next: cd {folder} && peft-matrix run first")


VERBS = (run, plan, status, show, fetch, init)

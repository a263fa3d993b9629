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
    Set,
    SweepName,
    bytes_of,
    chosen,
    console,
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
    changes: Set = None,
    workers: Workers = None,
    hours: Hours = None,
    quiet: Annotated[
        bool | None, typer.Option("-q/-v", "--quiet/--verbose", help="Print the last two lines only, or all.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="Executor: local (default), ray or slurm.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join: auto, or HOST:PORT.")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(help="Option of sbatch as NAME=VALUE (partition=gpu). Repeatable.")
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="Show cells live in tensorboard, trackio, mlflow or wandb; none: in none. Repeatable."),
    ] = None,
) -> None:
    """Run the missing cells of a sweep. A finished sweep is not run again."""
    from peft_matrix import api

    options = {name.replace("-", "_"): value for name, value in _pairs(slurm or [], "--slurm").items()}
    try:
        done = api.run(
            chosen(sweep, changes),
            results=results,
            data_root=data_root,
            only=only,
            rerun=rerun or (),
            hours=hours,
            workers=workers,
            executor=executor,
            address=address,
            slurm=options,
            quiet=quiet,
            trackers=tracker,
        )
    except KeyboardInterrupt:
        typer.echo("Stopped. What is finished is kept; run again to continue.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    summary = done.summary
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.outcomes.items()))
    if summary.not_run:
        counts += f"{', ' if counts else ''}{len(summary.not_run)} not_run"
        for reason, n in sorted(Counter(f"{one.kind}: {one.reason}" for one in summary.not_run).items()):
            typer.echo(f"  not_run {n} x {reason}")
    counts = counts or "nothing to run"
    kept = len(summary.plan.done) + len(summary.plan.stale)
    typer.echo(f"{sweep}: {counts}" + (f"; {kept} already done" if kept else ""))
    typer.echo(f"Records: {done.results.location}    Leaderboard: peft-matrix board {sweep}")
    if summary.failed:
        raise typer.Exit(EXIT_FAILED_CELLS)


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` options by name."""
    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"{text!r} is not NAME=VALUE", where=option)
        pairs[name] = value
    return pairs


def plan(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep or path to its YAML.")] = "",
    results: Results = None,
    data_root: DataRoot = None,
    only: Only = None,
    rerun: Rerun = None,
    changes: Set = None,
    hours: Hours = None,
    workers: Workers = None,
    as_json: AsJson = False,
    list_sweeps: Annotated[bool, typer.Option("--list", help="List the available sweeps.")] = False,
    fits: Annotated[
        str, typer.Option(help="Show which cells fit devices of this memory, for example 24GiB, on one or sharded.")
    ] = "",
) -> None:
    """Dry run: show the status of every cell of a sweep, with the reason."""
    from peft_matrix import api, listings
    from peft_matrix.console import print_fits, print_plan

    capacity = bytes_of(fits) if fits else None
    if list_sweeps or not sweep:
        print_table(listings.sweeps(), as_json)
        return
    planned = api.plan(
        chosen(sweep, changes),
        results=results,
        data_root=data_root,
        only=only,
        rerun=rerun or (),
        hours=hours,
        workers=workers,
    )
    if capacity is not None:
        rows = planned.fits(capacity)
        print_json(rows) if as_json else print_fits(rows, fits, console())
    elif as_json:
        print_json(planned.plan.as_json())
    else:
        print_plan(planned.plan, console())


def status(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep or path to its YAML. Without it: what runs now.")] = "",
    results: Results = None,
    data_root: DataRoot = None,
    changes: Set = None,
    as_json: AsJson = False,
) -> None:
    """Count the cells of a sweep by status; show what runs now and every failure with its reason."""
    from peft_matrix import api
    from peft_matrix.console import print_running, print_status

    if not sweep:
        drivers = api.running(results=results)
        if as_json:
            print_json(drivers)
        elif drivers:
            print_running(drivers, console())
        else:
            typer.echo("Nothing runs on these records.")
        return
    stands = api.status(chosen(sweep, changes), results=results, data_root=data_root)
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
    from peft_matrix import api
    from peft_matrix.console import print_record

    record = api.record(cell, results=results)
    others = api.other_settings(record, results=results)
    if as_json:
        print_json({"id": record.id, **record.content(), "other_settings": others})
        return
    print_record(record, console())
    for one in others:
        differ = "; ".join(one["differ"]) or "the same settings in another form"
        typer.echo(f"Also {one['key']} of {one['finished'][:10]} under this label, with other settings: {differ}")


def logs(
    cell: Annotated[str, typer.Argument(help="A cell's label, key, or the beginning of either.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the cell ends.")] = False,
    results: Results = None,
) -> None:
    """Print the whole log of a cell's worker, of a running cell as far as it has come."""
    from peft_matrix import api

    for part in api.follow_logs(cell, results=results) if follow else [api.logs(cell, results=results)]:
        typer.echo(part, nl=False)


def fetch(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep or path to its YAML.")] = "",
    to: Annotated[Path | None, typer.Option(help="New or empty folder, or the folder of an earlier fetch.")] = None,
    verify: Annotated[Path | None, typer.Option(help="Only check a fetched folder against its manifest.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Download a sweep's models and data, with digests, into a folder that works without a network."""
    from peft_matrix import api

    if verify is not None:
        typer.echo(f"{verify}: {api.verify_fetched(verify):,} files are as they were fetched.")
        return
    if to is None or not sweep:
        raise UserError("a sweep and a folder are needed", where="fetch", fix="peft-matrix fetch SWEEP --to DIR")
    done = api.fetch(sweep, to, data_root=data_root, say=lambda line: typer.echo(line, err=True))
    for origin in done.origins:
        typer.echo(f"  {origin}")
    size = f"{done.files:,} files, {done.size / 2**20:.1f} MiB"
    typer.echo(f"{size}. On the other machine: cd {to} && peft-matrix run {done.sweep}")


def init(folder: Annotated[Path, typer.Argument(help="New or empty folder.")]) -> None:
    """Create a workspace with an example task and sweep."""
    from peft_matrix import api

    for path in api.init(folder):
        typer.echo(f"  {path}")
    typer.echo(f"Next: cd {folder} && peft-matrix run first")


def export_(
    cell: Annotated[str, typer.Argument(help="A cell's label, key, or the beginning of either.")],
    to: Annotated[Path, typer.Option(help="New or empty folder.")],
    form: Annotated[str, typer.Option("--as", help="adapter (plain peft), merged (transformers) or gguf.")] = "adapter",
    gguf: Annotated[str, typer.Option("--type", help="Type of a GGUF file's matrices: f32, f16, q8_0, ...")] = "f16",
    results: Results = None,
) -> None:
    """Write the weights that a cell trained, with a model card. Needs 'keep: all' or 'keep: best' in the sweep."""
    from peft_matrix import api

    for path in api.export_cell(cell, to, form=form, gguf=gguf, results=results):
        typer.echo(f"  {path}")
    typer.echo(f"Next: peft-matrix push {to} OWNER/NAME    (a dry run)")


def push(
    folder: Annotated[Path, typer.Argument(help="Folder that 'export' wrote.")],
    repo: Annotated[str, typer.Argument(help="Model repository on the Hugging Face Hub: OWNER/NAME.")],
    send: Annotated[bool, typer.Option("--push", help="Upload. Without it, only list the files.")] = False,
) -> None:
    """Upload an exported model to the Hugging Face Hub. A dry run unless --push; the token comes from HF_TOKEN."""
    from peft_matrix import api

    done = api.push(folder, repo, send=send)
    for name, size in done.files.items():
        typer.echo(f"  {name} ({size:,} bytes)")
    what = f"{len(done.files)} files, {sum(done.files.values()) / 2**20:.1f} MiB"
    typer.echo(
        f"Sent to {repo}: {what}. {done.address}"
        if done.sent
        else f"Dry run, nothing was sent. --push would send {what} to {repo}."
    )


VERBS = (run, plan, status, show, logs, fetch, init, export_, push)

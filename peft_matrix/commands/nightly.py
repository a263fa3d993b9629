"""Commands for records over time: regressions and nightly runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import EXIT_FAILED_CELLS, EXIT_INTERRUPTED
from peft_matrix.commands.common import AsJson, DataRoot, Results, SweepName, print_json


def regressions(
    sweep: Annotated[str | None, typer.Option(help="Only records of this sweep.")] = None,
    results: Results = None,
    accept: Annotated[
        str | None, typer.Option(help="Accept a change: cells matching this pattern get a new baseline.")
    ] = None,
    metric: Annotated[str, typer.Option(help="With --accept: the metric.")] = "*",
    why: Annotated[str, typer.Option(help="With --accept: the reason, stored with the decision.")] = "",
    false_alarms: Annotated[
        bool, typer.Option("--false-alarms", help="Also estimate the false-alarm rate by shuffling the nights.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what got significantly worse or better over the records of a store. Exit code 1 if anything got worse."""
    from peft_matrix import analysis
    from peft_matrix.console import regressions_text

    if accept is not None:
        typer.echo(f"Recorded in {analysis.accept_baseline(accept, why=why, metric=metric, results=results)}")
        return
    report = analysis.regressions(sweep=sweep, results=results)
    rate = analysis.false_alarm_rate(sweep=sweep, results=results) if false_alarms else None
    if as_json:
        extra = {} if rate is None else {"false_alarm_rate": [rate.estimate, rate.low, rate.high]}
        print_json({**report.as_json(), **extra})
    else:
        typer.echo(regressions_text(report), nl=False)
        if false_alarms:
            typer.echo(_rate_text(rate))
    if report.alarmed:
        raise typer.Exit(EXIT_FAILED_CELLS)


def _rate_text(rate: object) -> str:
    low, high = getattr(rate, "low", None), getattr(rate, "high", None)
    if low is None or high is None:
        return "False alarms: not measured, no series has six values of one environment."
    return f"False alarms on identical nights: {getattr(rate, 'estimate', 0):.1%} [{low:.1%}, {high:.1%}] of nights."


def nightly(
    sweep: SweepName,
    results: Results = None,
    data_root: DataRoot = None,
    again: Annotated[bool, typer.Option("--again", help="Rerun every cell, not only stale ones.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for summary, board and site. Default: RESULTS/nightly")
    ] = None,
    no_confirm: Annotated[bool, typer.Option("--no-confirm", help="Do not confirm suspected cells by reruns.")] = False,
) -> None:
    """Run stale cells, find regressions, confirm them by reruns, and write board, site and summary.

    Exit code 0: a quiet night; 1: a cell failed or got worse; 2: the input is wrong; 130: stopped.
    """
    from peft_matrix import analysis

    try:
        night = analysis.nightly(
            sweep, results=results, data_root=data_root, again=again, out=out, confirm=not no_confirm
        )
    except KeyboardInterrupt:
        typer.echo("Stopped. What is finished is kept; the next night continues.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    typer.echo(night.text, nl=False)
    typer.echo(f"Summary: {night.folder / 'summary.md'}    Site: {night.folder / 'site' / 'index.html'}")
    if not night.quiet:
        raise typer.Exit(EXIT_FAILED_CELLS)


def bisect(
    sweep: SweepName,
    cell: Annotated[str, typer.Option(help="Key or label of the cell that got worse.")],
    good: Annotated[Path, typer.Option(help="Lock file of the good environment: NAME==VERSION lines.")],
    bad: Annotated[Path, typer.Option(help="Lock file of the bad environment.")],
    metric: Annotated[
        str, typer.Option(help="Metric that got worse, e.g. step_ms or train.peak_rss_bytes.")
    ] = "accuracy",
    runs: Annotated[int, typer.Option(min=5, help="Runs of each side per tested environment.")] = 5,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Find the package version that made a cell worse, by runs in virtual environments between two lock files."""
    from peft_matrix import analysis

    found = analysis.bisect(
        sweep,
        cell=cell,
        good=good,
        bad=bad,
        metric=metric,
        runs=runs,
        data_root=data_root,
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        print_json(found.as_json())
    else:
        typer.echo(found.sentence())


VERBS = (regressions, nightly, bisect)

"""Commands for records over time: regressions and nightly runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import EXIT_FAILED_CELLS, EXIT_INTERRUPTED
from peft_matrix.commands.common import AsJson, DataRoot, Results, SweepName, console, open_workspace, print_json

if TYPE_CHECKING:
    from harness.store.store import Store
    from reports.apps.regressions.detect import Report
    from runners.workspace import Workspace


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
    from reports.apps.regressions import analyze
    from reports.apps.regressions.report import to_markdown

    workspace = open_workspace(results, None)
    root = workspace.results
    if accept is not None:
        _accept(workspace.open_store(), accept, metric, why)
        return
    report = analyze.look(root, sweep=sweep)
    rate = analyze.false_alarms(analyze.read(root, sweep=sweep)) if false_alarms else None
    if as_json:
        extra = {} if rate is None else {"false_alarm_rate": [rate.estimate, rate.low, rate.high]}
        print_json({**report.as_json(), **extra})
    else:
        typer.echo(to_markdown(report), nl=False)
        if false_alarms:
            typer.echo(_rate_text(rate))
    if report.alarmed:
        raise typer.Exit(EXIT_FAILED_CELLS)


def _rate_text(rate: object) -> str:
    low, high = getattr(rate, "low", None), getattr(rate, "high", None)
    if low is None or high is None:
        return "False alarms: not measured, no series has six values of one environment."
    return f"False alarms on identical nights: {getattr(rate, 'estimate', 0):.1%} [{low:.1%}, {high:.1%}] of nights."


def _accept(store: Store, cells: str, metric: str, why: str) -> None:
    from datetime import UTC, datetime

    from harness.errors import UserError
    from reports.apps.regressions import decisions

    if len(why.strip()) < 3:
        raise UserError("--accept needs a reason", where="--accept", fix="Add --why '...' (at least 3 characters).")
    since = datetime.now(UTC).isoformat(timespec="seconds")
    decision = decisions.Decision(cells=cells, metric=metric, since=since, why=why)
    typer.echo(f"Recorded in {decisions.record(store, decision)}")


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
    from reports.apps.regressions import analyze
    from reports.apps.regressions.detect import missing
    from reports.apps.regressions.report import to_markdown
    from runners.running.run import load_sweep, run_sweep

    workspace = open_workspace(results, data_root)
    loaded = load_sweep(sweep, workspace)
    name = loaded.spec.name
    before = _final(workspace)
    try:
        summary = run_sweep(loaded, workspace, console(), rerun=("all",) if again else ("stale",))
    except KeyboardInterrupt:
        typer.echo("Stopped. What is finished is kept; the next night continues.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    report = analyze.look(workspace.results, sweep=name)
    after = _final(workspace)
    left = [(c.key, c.label) for c in summary.plan.run if not after.get(c.key, set()) - before.get(c.key, set())]
    report.cells += missing(left, report.cells)
    if not no_confirm:
        _confirm(report, sweep, workspace, name)
    folder = out or workspace.beside("nightly")
    folder.mkdir(parents=True, exist_ok=True)
    ran = ", ".join(f"{n} {status}" for status, n in sorted(summary.outcomes.items())) or "nothing was stale"
    text = to_markdown(report).replace("# Regressions\n", f"# Night of {name}\n\nRan: {ran}.\n", 1)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    (folder / "regressions.json").write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    _publish(name, workspace, loaded.spec.board, folder)
    typer.echo(text, nl=False)
    typer.echo(f"Summary: {folder / 'summary.md'}    Site: {folder / 'site' / 'index.html'}")
    if summary.failed or report.alarmed:
        raise typer.Exit(EXIT_FAILED_CELLS)


def _final(workspace: Workspace) -> dict[str, set[str]]:
    """Key of every cell to the ids of its final records."""
    from harness.record import FINAL_STATUSES

    entries = workspace.open_store().entries()
    return {key: {e.id for e in group if e.status in FINAL_STATUSES} for key, group in entries.items()}


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
    from harness import stats
    from harness.errors import UserError
    from harness.metrics import METRICS
    from runners.tools import bisect as bisecting

    workspace = open_workspace(None, data_root)
    quantity = METRICS.get(metric.rpartition(".")[2])
    if quantity is None:
        raise UserError(f"unknown quantity {metric!r}", where="--metric", fix="docs/metrics.md lists them.")
    further = ("--data-root", str(workspace.data_root)) if workspace.data_root else ()
    found = bisecting.bisect(
        bisecting.read_lock(good),
        bisecting.read_lock(bad),
        bisecting.Environments(workspace.cache / "bisect", workspace.sweep(sweep), cell, metric, further),
        runs=runs,
        floor=stats.RELATIVE_FLOORS.get(quantity.name, stats.RELATIVE_FLOORS.get(quantity.family, 0.0)),
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        print_json(found.as_json())
    else:
        typer.echo(found.sentence())


def _confirm(report: Report, sweep: str, workspace: Workspace, name: str) -> None:
    """Rerun suspected cells alternately, so that a slow drift of the machine affects all of them alike."""
    from reports.apps.regressions import analyze
    from reports.apps.regressions.confirm_reruns import RERUNS, confirm, provisional
    from runners.running.run import load_sweep, run_sweep

    suspected = provisional(report.cells)
    if not suspected:
        return
    keys = sorted({finding.key for finding in suspected})
    for _ in range(RERUNS):
        for key in keys:
            run_sweep(load_sweep(sweep, workspace), workspace, console(), only=key, rerun=("all",))
    judged = confirm(suspected, analyze.read(workspace.results, sweep=name))
    others = [finding for finding in report.cells if finding not in suspected]
    report.cells = others + [finding for finding in judged if finding.kind != "noise"]


def _publish(name: str, workspace: Workspace, board: str, out: Path) -> None:
    """The sweep's board, and the site of the whole store."""
    from peft_matrix.commands.site import build
    from reports.board.publish import publish_board
    from runners.tools.queries import recorded_keys

    keys = recorded_keys(name, workspace.results)
    publish_board(board, workspace.roots, results=workspace.results, keys=keys, out=out / "board", title=name)
    build(workspace, out / "site")


VERBS = (regressions, nightly, bisect)

"""Verbs that look at records over time: regressions, and the night that makes and judges them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.common import AsJson, DataRoot, Results, SweepName, console, open_workspace, print_json
from harness.errors import EXIT_FAILED_CELLS

if TYPE_CHECKING:
    from reports.regressions.detect import Report
    from runners.workspace import Workspace


def regressions(
    sweep: Annotated[str | None, typer.Option(help="Only records of this sweep.")] = None,
    results: Results = None,
    accept: Annotated[
        str | None, typer.Option(help="Record a decision: for cells matching this pattern a new baseline begins.")
    ] = None,
    metric: Annotated[str, typer.Option(help="With --accept: the metric it is for.")] = "*",
    why: Annotated[str, typer.Option(help="With --accept: the reason, kept with the decision.")] = "",
    false_alarms: Annotated[
        bool, typer.Option("--false-alarms", help="Also measure how often identical nights would alarm.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What got worse, or better, over the records of a store; exit code 1 if anything got worse."""
    from reports.regressions import looking
    from reports.regressions.report import to_markdown

    root = open_workspace(results, None).results
    if accept is not None:
        _accept(root, accept, metric, why)
        return
    report = looking.look(root, sweep=sweep)
    rate = looking.false_alarms(looking.read(root, sweep=sweep)) if false_alarms else None
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


def _accept(root: str, cells: str, metric: str, why: str) -> None:
    from datetime import UTC, datetime

    from harness.errors import UserError
    from reports.regressions import decisions

    if len(why.strip()) < 3:
        raise UserError("a baseline moves only with a reason", where="--accept", fix="Say it: --why '...'.")
    since = datetime.now(UTC).isoformat(timespec="seconds")
    decision = decisions.Decision(cells=cells, metric=metric, since=since, why=why)
    typer.echo(f"Recorded in {decisions.record(Path(root), decision)}")


def nightly(
    sweep: SweepName,
    results: Results = None,
    data_root: DataRoot = None,
    again: Annotated[bool, typer.Option("--again", help="Run every cell again, not only what is stale.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for summary, board and site. Default: RESULTS/nightly")
    ] = None,
    no_confirm: Annotated[bool, typer.Option("--no-confirm", help="Do not run suspected cells again.")] = False,
) -> None:
    """Run what is stale, find what moved, confirm it by runs again, rebuild the board, and say it in a summary."""
    from reports.regressions import looking
    from reports.regressions.report import to_markdown
    from runners.run import load_sweep, run_sweep

    workspace = open_workspace(results, data_root)
    loaded = load_sweep(sweep, workspace)
    name = loaded.spec.name
    rerun = ("all",) if again else ("stale",)
    summary = run_sweep(loaded, workspace, console(), rerun=rerun)
    report = looking.look(workspace.results, sweep=name)
    if not no_confirm:
        _confirm(report, sweep, workspace, name)
    folder = out or Path("results" if "://" in workspace.results else workspace.results) / "nightly"
    folder.mkdir(parents=True, exist_ok=True)
    ran = ", ".join(f"{n} {status}" for status, n in sorted(summary.outcomes.items())) or "nothing was stale"
    text = to_markdown(report).replace("# Regressions\n", f"# Night of {name}\n\nRan: {ran}.\n", 1)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    (folder / "regressions.json").write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    _publish(name, workspace, loaded.spec.board, folder / "board")
    typer.echo(text, nl=False)
    typer.echo(f"Summary: {folder / 'summary.md'}")
    if summary.failed or report.alarmed:
        raise typer.Exit(EXIT_FAILED_CELLS)


def _confirm(report: Report, sweep: str, workspace: Workspace, name: str) -> None:
    """Run suspected cells again, in turns, so that a slow drift of the machine falls on all of them alike."""
    from reports.regressions import looking
    from reports.regressions.confirm import RERUNS, confirm, provisional
    from runners.run import load_sweep, run_sweep

    suspected = provisional(report.cells)
    if not suspected:
        return
    keys = sorted({finding.key for finding in suspected})
    for _ in range(RERUNS):
        for key in keys:
            run_sweep(load_sweep(sweep, workspace), workspace, console(), only=key, rerun=("all",))
    judged = confirm(suspected, looking.read(workspace.results, sweep=name))
    others = [finding for finding in report.cells if finding not in suspected]
    report.cells = others + [finding for finding in judged if finding.kind != "noise"]


def _publish(name: str, workspace: Workspace, board: str, out: Path) -> None:
    from reports.publish import publish_board
    from runners.listing import recorded_keys

    keys = recorded_keys(name, workspace.results)
    publish_board(board, workspace.roots, results=workspace.results, keys=keys, out=out, title=name)


VERBS = (regressions, nightly)

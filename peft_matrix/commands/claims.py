"""The command that judges papers' claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import EXIT_FAILED_CELLS
from peft_matrix.commands.common import AsJson, DataRoot, Results, console, open_workspace, print_json, print_table

if TYPE_CHECKING:
    from runners.workspace import Workspace

REPORT = "reproduction.md"


def reproduce(
    claims: Annotated[list[Path] | None, typer.Argument(help="Claim files or folders. Default: the built-in.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only judge the stored records; run nothing.")] = False,
    run: Annotated[
        bool, typer.Option("--run", help="First run the missing sweeps, as far as this machine can.")
    ] = False,
    results: Results = None,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="Write the report (Markdown and JSON) into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge claims of papers from the stored records. Without --check or --run: list what would have to run."""
    from reports.apps.reproduction import run as answering
    from reports.apps.reproduction.claims import BUILT_IN, load_claims
    from reports.apps.reproduction.report import as_rows, to_markdown

    workspace = open_workspace(results, data_root)
    asked = load_claims(claims or [BUILT_IN])
    failed = 0
    if run:
        failed = _run(asked, workspace)
    elif not check:
        _print_plan(asked, workspace, as_json)
        return
    judged = answering.answer(asked, answering.library(_stores(workspace)))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / REPORT).write_text(to_markdown(judged), encoding="utf-8")
        typer.echo(f"Report: {out / REPORT}", err=True)
    if as_json:
        print_json(as_rows(judged))
    else:
        _print_table(as_rows(judged))
    if failed:
        raise typer.Exit(EXIT_FAILED_CELLS)


def _stores(workspace: Workspace) -> list[str]:
    """The workspace's own records, and those committed as reference."""
    reference = Path("results/reference")
    committed = sorted(str(p) for p in reference.iterdir() if p.is_dir()) if reference.is_dir() else []
    return list(dict.fromkeys([workspace.results, *committed]))


def _run(asked: Any, workspace: Workspace) -> int:
    """Count parameters and bytes, run the sweeps, and return the number of failed cells."""
    from harness.store.store import Store
    from reports.apps.reproduction import run as answering
    from runners.running.counts import count_missing
    from runners.running.run import load_sweep, run_sweep

    wanted = {key: count.model_dump(mode="json") for key, count in answering.counts_of(asked).items()}
    made = count_missing(wanted, Store(workspace.results), sweep=answering.COUNTS)
    typer.echo(f"{made} counted, {len(wanted) - made} already done", err=True)
    failed = 0
    for name in answering.sweeps_of(asked):
        summary = run_sweep(load_sweep(name, workspace), workspace, console())
        failed += summary.failed
    return failed


def _print_plan(asked: Any, workspace: Workspace, as_json: bool) -> None:
    from harness import hardware
    from reports.apps.reproduction import run as answering
    from runners.running.run import load_sweep, make_plan

    found = answering.library(_stores(workspace))
    counts = answering.counts_of(asked)
    rows: list[dict[str, Any]] = [
        {
            "evidence": "counts from shapes",
            "to run": sum(found.count(count) is None for count in counts.values()),
            "done": sum(found.count(count) is not None for count in counts.values()),
            "not here": 0,
        }
    ]
    machine = hardware.probe()
    for name in answering.sweeps_of(asked):
        plan = make_plan(load_sweep(name, workspace), workspace, machine=machine)
        rows.append(
            {
                "evidence": f"sweep {name}",
                "to run": len(plan.run),
                "done": len(plan.done) + len(plan.stale),
                "not here": len(plan.elsewhere) + len(plan.unsupported),
            }
        )
    for _, claim in asked:
        if claim.evidence is None:
            rows.append({"evidence": f"claim {claim.id}: no sweep of this project yet", "needs": _needs(claim.needs)})
    print_table(rows, as_json)


def _needs(needs: Any) -> str:
    hours = f"{needs.gpu_hours:g} GPU-hours" if needs.gpu_hours is not None else ""
    memory = f"{needs.memory_gib:g} GiB" if needs.memory_gib is not None else ""
    return ", ".join(text for text in (hours, memory, needs.why) if text)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from reports.apps.reproduction.report import number

    table = Table(box=None, header_style="bold")
    table.add_column("claim", no_wrap=True)
    for title in ("printed", "measured", "verdict", "flags", "proxies"):
        table.add_column(title, overflow="fold")
    for row in rows:
        printed = " / ".join(number(p["value"]) for p in row["printed"] if p["value"] is not None) or row["form"]
        measured = "–" if row["measured"] is None else number(row["measured"])
        if row["interval"]:
            measured += f" [{number(row['interval'][0])}, {number(row['interval'][1])}]"
        proxies = ", ".join(f"{p['setup']} {p['verdict'].removeprefix('proxy_')}" for p in row["proxies"])
        table.add_row(row["claim"], printed, measured, row["verdict"], ", ".join(row["flags"]), proxies)
    console().print(table)


VERBS = (reproduce,)

"""Commands that compare: two configurations, and records with published claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import EXIT_FAILED_CELLS
from peft_matrix.commands.common import AsJson, DataRoot, Results, console, print_json, print_table


def compare(
    a: Annotated[str, typer.Argument(help="A configuration: the beginning of its cells' label, or a pattern.")],
    b: Annotated[str, typer.Argument(help="The one it is compared with.")],
    metric: Annotated[str, typer.Option(help="Any metric of docs/metrics.md.")] = "accuracy",
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Compare two configurations: effect, interval, p, smallest detectable effect, and a summary sentence."""
    from peft_matrix import analysis

    found = analysis.compare(a, b, metric=metric, results=results)
    if as_json:
        print_json(found.as_json())
        return
    out = console()
    out.print(found.sentence, highlight=False, markup=False)
    if found.mde is not None and "Smallest effect" not in found.sentence:
        out.print(f"Smallest effect this comparison finds 8 times in 10: {found.mde:.3g}.", highlight=False)
    out.print(f"{found.method}; {found.n}.", highlight=False)
    if found.differ:
        out.print(f"Settings that differ: {'; '.join(found.differ)}.", highlight=False, markup=False)
    for warning in found.warnings:
        out.print(f"Note: {warning}.", highlight=False, markup=False)


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
    from peft_matrix import analysis
    from peft_matrix.console import print_verdicts

    named = claims or []
    if not (run or check):
        print_table(analysis.reproduce_plan(*named, results=results, data_root=data_root), as_json)
        return
    verdicts = analysis.reproduce(
        *named, run=run, results=results, data_root=data_root, say=lambda line: typer.echo(line, err=True)
    )
    if out is not None:
        typer.echo(f"Report: {verdicts.save(out)}", err=True)
    if as_json:
        print_json(verdicts.rows())
    else:
        print_verdicts(verdicts.rows(), console())
    if verdicts.failed:
        raise typer.Exit(EXIT_FAILED_CELLS)


VERBS = (compare, reproduce)

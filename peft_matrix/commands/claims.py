"""The command that judges papers' claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import EXIT_FAILED_CELLS
from peft_matrix.commands.common import AsJson, DataRoot, Results, console, print_json, print_table


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


VERBS = (reproduce,)

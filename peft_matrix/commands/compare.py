"""The command that compares two configurations."""

from __future__ import annotations

from typing import Annotated

import typer

from peft_matrix.commands.common import AsJson, Results, console, print_json


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
    if found.mde is not None:
        out.print(f"Smallest effect this comparison finds 8 times in 10: {found.mde:.3g}.", highlight=False)
    out.print(f"{found.method}; {found.n}.", highlight=False)
    for warning in found.warnings:
        out.print(f"Note: {warning}.", highlight=False, markup=False)


VERBS = (compare,)

"""Shared by the commands: options, the workspace, and the two ways to print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from harness.spec import LoadedSweep

SweepName = Annotated[str, typer.Argument(help="Name of a sweep (see 'peft-matrix plan --list') or path to its YAML.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Results = Annotated[str | None, typer.Option(help="Folder or URL of the records. Default: the workspace's results")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of local data sets that override the Hub.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--set", help="Set a value of the sweep: training.steps=10. Part of the cells' identity. Repeatable."
    ),
]
Only = Annotated[str | None, typer.Option(help="Only cells whose label matches this pattern ('*lora*') or key.")]
Rerun = Annotated[
    list[str] | None,
    typer.Option(help="Rerun cells with this status: stale, all, or a status such as error. Repeatable."),
]


def chosen(sweep: str, changes: list[str] | None) -> str | LoadedSweep:
    """The sweep as it was named, or with values set."""
    from peft_matrix import api

    return api.load_sweep(sweep, changes=changes) if changes else sweep


def console() -> Console:
    """Console for human-readable output."""
    from rich.console import Console

    return Console()


def print_json(value: object) -> None:
    """Print JSON to standard output."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def print_table(rows: list[dict[str, object]], as_json: bool) -> None:
    """Print rows as a table or as JSON."""
    if as_json:
        print_json(rows)
        return
    from peft_matrix.console import print_rows

    print_rows(rows, console())


def bytes_of(text: str) -> float:
    """Bytes in a size such as ``24GiB`` (2^30) or ``80 GB`` (10^9).

    Raises:
        UserError: not a positive number with one of the units MiB, GiB, TiB, MB, GB or TB.
    """
    from harness.errors import UserError

    units = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MGT]i?B)\s*", text)
    if found is None or not float(found[1]):
        raise UserError(
            f"{text!r} is not an amount of memory", fix="Write a number and a unit, for example 24GiB or 80GB."
        )
    return float(found[1]) * units[found[2]]

"""Commands for quantization: compatibility, and side environments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import UserError
from peft_matrix.commands.common import AsJson, console, print_json, print_table


def compat(
    device: Annotated[str, typer.Option(help="cpu, cuda, or a pattern.")] = "*",
    method: Annotated[str, typer.Option(help="Only methods that match this pattern.")] = "*",
    quantizer: Annotated[str, typer.Option(help="Only quantizers that match this pattern.")] = "*",
    kind: Annotated[str, typer.Option(help="causal-lm or sequence-classification.")] = "causal-lm",
    out: Annotated[Path | None, typer.Option(help="Write the table as Markdown into this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which method trains, merges and scores on which quantizer and device, or why not.

    Name a method or a quantizer to read the answers in the terminal. Without either the whole table is printed as
    Markdown, which is wide: docs/compat.md has it.
    """
    from peft_matrix import listings

    chosen = {"device": device, "kind": kind, "method": method, "quantizer": quantizer}
    if as_json:
        print_json(listings.compat(**chosen))
    if out is not None:
        out.write_text(listings.compat_page(**chosen), encoding="utf-8")
    elif not as_json and (method, quantizer) != ("*", "*"):
        print_table(listings.compat_groups(**chosen), as_json=False)
    elif not as_json:
        console().print(listings.compat_page(**chosen), highlight=False, markup=False, soft_wrap=True)


def env(
    action: Annotated[str, typer.Argument(help="list, or create.")] = "list",
    name: Annotated[str | None, typer.Argument(help="Environment to create.")] = None,
    as_json: AsJson = False,
) -> None:
    """List or build the side environments of back ends whose packages conflict with ours."""
    from peft_matrix import listings

    if action == "list":
        print_table(listings.environments(), as_json)
    elif action == "create" and name is not None:
        listings.create_environment(name, lambda line: typer.echo(line, err=True))
    else:
        known = ", ".join(row["environment"] for row in listings.environments())
        raise UserError(
            f"cannot {action!r} an environment" + ("" if name else " without its name"),
            fix=f"Try 'peft-matrix env list' or 'peft-matrix env create NAME'. There are: {known}.",
        )


VERBS = (compat, env)

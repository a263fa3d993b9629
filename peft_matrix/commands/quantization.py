"""Commands for quantization: compatibility, and side environments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from peft_matrix.commands.common import AsJson, console, open_workspace, print_json, print_table


def compat(
    device: Annotated[str, typer.Option(help="cpu, cuda, or a pattern.")] = "*",
    method: Annotated[str, typer.Option(help="Only methods that match this pattern.")] = "*",
    quantizer: Annotated[str, typer.Option(help="Only quantizers that match this pattern.")] = "*",
    kind: Annotated[str, typer.Option(help="causal-lm or sequence-classification.")] = "causal-lm",
    out: Annotated[Path | None, typer.Option(help="Write the table as Markdown into this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which method trains, merges and scores on which quantizer and device, or why not."""
    from harness.errors import UserError
    from runners.tools import compat as table

    known: dict[str, Literal["causal-lm", "sequence-classification"]] = {
        "causal-lm": "causal-lm",
        "sequence-classification": "sequence-classification",
    }
    if kind not in known:
        raise UserError(f"unknown model kind {kind!r}", where="--kind", fix=f"One of: {', '.join(known)}.")
    found = table.pairs(device=device, kind=known[kind], method=method, quantizer=quantizer)
    if not found:
        raise UserError("no pair matches", fix="See: peft-matrix methods; peft-matrix quantizers.")
    if out is not None:
        out.write_text(table.to_markdown(found), encoding="utf-8")
    if as_json:
        print_json(table.as_rows(found))
    elif out is None:
        console().print(table.to_markdown(found), highlight=False, markup=False, soft_wrap=True)


def env(
    action: Annotated[str, typer.Argument(help="list, or create.")] = "list",
    name: Annotated[str | None, typer.Argument(help="Environment to create.")] = None,
    as_json: AsJson = False,
) -> None:
    """List or build the side environments of back ends whose packages conflict with ours."""
    from harness.errors import UserError
    from runners import environments

    cache = open_workspace(None, None).cache
    if action == "list":
        print_table(environments.rows(cache), as_json)
    elif action == "create" and name is not None:
        environments.create(name, cache, lambda line: typer.echo(line, err=True))
    else:
        known = ", ".join(environments.names())
        raise UserError(
            f"cannot {action!r} an environment" + ("" if name else " without its name"),
            fix=f"Try 'peft-matrix env list' or 'peft-matrix env create NAME'. There are: {known}.",
        )


VERBS = (compat, env)

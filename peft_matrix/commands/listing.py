"""Commands that list methods, quantizers, tasks, models, and this machine's capabilities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from peft_matrix.commands.common import AsJson, DataRoot, console, print_table

SHORT = ("method", "family", "summary", "evidence")
"""Columns of the methods of a family; ``methods NAME`` and --json show the rest."""


def methods(
    name: Annotated[str | None, typer.Argument(help="Show everything about this method.")] = None,
    family: Annotated[str | None, typer.Option(help="Only methods of this family, for example optimizer.")] = None,
    trains_on: Annotated[
        str | None, typer.Option(help="Only methods that train on this kind of base, for example nf4.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the fine-tuning methods, with the task and model on which a committed record shows that each learns."""
    from peft_matrix import listings
    from peft_matrix.console import print_methods

    rows = listings.methods(name, family=family, trains_on=trains_on)
    if as_json:
        print_table(rows, as_json)
    elif name is not None:
        (row,) = rows
        print_table([{"field": key, "value": _value(key, value)} for key, value in row.items()], as_json)
    elif family is not None or trains_on is not None:
        print_table([{key: _value(key, row[key]) for key in SHORT} for row in rows], as_json)
    else:
        print_methods(rows, console())


def _value(key: str, value: Any) -> object:
    if key == "evidence":
        return _in_words(value)
    if key == "refuses":
        return _by_reason(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {content}" for name, content in value.items()) or "none"
    return value


def _by_reason(refused: Mapping[str, str]) -> str:
    """Quantizers under the reason they share, which is one for many of them."""
    reasons = {reason: [name for name, why in refused.items() if why == reason] for reason in refused.values()}
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()) or "none"


def _in_words(evidence: Mapping[str, object]) -> str:
    return f"{evidence['task']}, {evidence['model']}" if evidence["learned"] else f"none: {evidence['why']}"


def objectives(as_json: AsJson = False) -> None:
    """List what a cell can be trained for: supervised, preference and distillation objectives."""
    from peft_matrix import listings

    print_table(listings.objectives(), as_json)


def recipes(as_json: AsJson = False) -> None:
    """List what can be done to the training rows: choose, order, weight, rewrite."""
    from peft_matrix import listings

    print_table(listings.recipes(), as_json)


def quantizers(as_json: AsJson = False) -> None:
    """List the quantizers, and whether each runs on this machine."""
    from peft_matrix import listings

    print_table(listings.quantizers(), as_json)


def tasks(
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the page of the built-in tasks to this file (docs/tasks.md).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks, the built-in ones and those of the workspace."""
    from peft_matrix import listings

    if out is not None:
        out.write_text(listings.tasks_page(), encoding="utf-8")
        return
    print_table(listings.tasks(data_root=data_root), as_json)


def models(as_json: AsJson = False) -> None:
    """List the built-in models and the ways to name any other."""
    from peft_matrix import listings

    print_table(listings.models(), as_json)


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine supports, and what to install for the rest."""
    from peft_matrix import listings

    print_table(listings.doctor(), as_json)


def schema(
    kind: Annotated[str, typer.Argument(help="sweep, task, board or workspace.")],
) -> None:
    """Print the JSON Schema of a sweep, task, board or workspace file, for editors. All keys: docs/keys.md."""
    from peft_matrix import keys
    from peft_matrix.commands.common import print_json

    print_json(keys.schema(kind))


VERBS = (methods, objectives, recipes, quantizers, tasks, models, doctor, schema)

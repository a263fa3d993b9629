"""Commands that list methods, quantizers, tasks, models, and this machine's capabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_matrix.commands.common import AsJson, DataRoot, open_workspace, print_table


def methods(as_json: AsJson = False) -> None:
    """List the fine-tuning methods."""
    from runners.tools.queries import methods as rows

    print_table(rows(), as_json)


def quantizers(as_json: AsJson = False) -> None:
    """List the quantizers, and whether each runs on this machine."""
    from runners.tools.queries import quantizers as rows

    print_table(rows(), as_json)


def tasks(
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the page of the built-in tasks to this file (docs/tasks.md).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks, the built-in ones and those of the workspace."""
    from runners.tools.queries import tasks as rows

    if out is not None:
        from tasks.catalog import to_markdown

        out.write_text(to_markdown(), encoding="utf-8")
        return
    print_table(rows(open_workspace(None, data_root)), as_json)


def models(as_json: AsJson = False) -> None:
    """List the built-in models and the ways to name any other."""
    from runners.tools.queries import models as rows

    print_table(rows(), as_json)


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine supports, and what to install for the rest."""
    from runners.tools.queries import doctor as rows

    print_table(rows(), as_json)


VERBS = (methods, quantizers, tasks, models, doctor)

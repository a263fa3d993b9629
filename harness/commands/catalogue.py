"""Verbs that list what there is: methods, quantizers, tasks, models, this machine."""

from __future__ import annotations

from harness.commands.common import AsJson, DataRoot, open_workspace, print_table


def methods(as_json: AsJson = False) -> None:
    """List the fine-tuning methods."""
    from runners.listing import methods as rows

    print_table(rows(), as_json)


def quantizers(as_json: AsJson = False) -> None:
    """List the quantizers, and whether each runs on this machine."""
    from runners.listing import quantizers as rows

    print_table(rows(), as_json)


def tasks(data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """List the tasks, the built-in ones and those of the workspace."""
    from runners.listing import tasks as rows

    print_table(rows(open_workspace(None, data_root)), as_json)


def models(as_json: AsJson = False) -> None:
    """List the built-in models and the ways to name any other."""
    from runners.listing import models as rows

    print_table(rows(), as_json)


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, and what to install for the rest."""
    from runners.listing import doctor as rows

    print_table(rows(), as_json)


VERBS = (methods, quantizers, tasks, models, doctor)

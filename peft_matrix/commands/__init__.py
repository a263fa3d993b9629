"""The commands, grouped by subject. Each is a few lines; imports happen when a command runs.

:data:`VERBS` and :data:`GROUPS` are the whole list, in the order in which ``--help`` shows them.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from peft_matrix.commands import boards, compare, listing, nightly, quantization, results, sweeps

VERBS: tuple[Callable[..., object], ...] = (
    *sweeps.VERBS,
    *boards.VERBS,
    *compare.VERBS,
    *nightly.VERBS,
    *quantization.VERBS,
    *listing.VERBS,
)

GROUPS: tuple[typer.Typer, ...] = (results.app,)
"""Command groups (``peft-matrix results ...``)."""

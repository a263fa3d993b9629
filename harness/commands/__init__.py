"""The verbs, grouped by what they act on. Each is a few lines; what it needs is imported when it runs.

:data:`VERBS` and :data:`GROUPS` are the whole list, in the order in which ``--help`` shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from harness.commands import accuracy, boards, catalogue, claims, history, quantization, results, site, sweeps

VERBS: tuple[Callable[..., Any], ...] = (
    *sweeps.VERBS,
    *boards.VERBS,
    *site.VERBS,
    *accuracy.VERBS,
    *claims.VERBS,
    *history.VERBS,
    *quantization.VERBS,
    *catalogue.VERBS,
)

GROUPS: tuple[typer.Typer, ...] = (results.app,)
"""Verbs with verbs of their own."""

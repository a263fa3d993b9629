"""The verbs, grouped by what they act on. Each is a few lines; what it needs is imported when it runs.

:data:`VERBS` is the whole list, in the order in which ``--help`` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.commands import accuracy, boards, catalogue, claims, history, quantization, site, sweeps

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

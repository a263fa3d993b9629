"""Default lengths and intervals for parts of a method that depend on the length of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENEWALS = 4
"""Number of subspace updates in a run that is too short for its paper's gap."""
SHARE = 0.25
"""Of the cell's steps. The papers spend a separate run on the search; here all rows have the same number of steps."""


def search_length(params: Mapping[str, Any], name: str, steps: int, share: float = SHARE) -> int:
    """Steps of a search: the parameter ``name``, or where that is None a share of all ``steps``, at least one.

    Args:
        params: of the method.
        name: the parameter with the length, an integer or None.
        steps: of the cell.
        share: what None means.
    """
    stated = params[name]
    return int(stated) if stated is not None else max(1, round(share * steps))


def gap(stated: int | None, paper: int, steps: int) -> int:
    """Steps between two renewals of a subspace.

    Args:
        stated: the sweep's; None: the paper's, or less in a run in which that would renew it fewer than
            :data:`RENEWALS` times.
        paper: the paper's gap.
        steps: of the loop.
    """
    return int(stated) if stated is not None else max(1, min(paper, steps // RENEWALS))


def never_renewed(params: Mapping[str, Any], steps: int, *, name: str = "update_gap") -> str | None:
    """The remark on a run that a stated gap exceeds."""
    stated = params.get(name)
    if stated is None or int(stated) < steps:
        return None
    return f"its subspace is taken once and never renewed in this run: {name} is {stated}, the run has {steps} steps"

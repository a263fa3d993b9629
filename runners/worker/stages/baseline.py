"""Stage ``baseline``: score the base model on the skills it should keep, before anything is attached.

The same items are scored again in ``retain``, so that forgetting is a paired difference within the cell.
"""

from __future__ import annotations

from runners.worker.context import Context
from runners.worker.stages.retain import score_skills


def run(ctx: Context) -> None:
    """Record ``base_retained_accuracy`` and keep its items under the arm ``base``."""
    score_skills(ctx, arm="base", metric="base_retained_accuracy")

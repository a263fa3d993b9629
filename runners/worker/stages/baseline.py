"""Stage ``baseline``: score the base model on the skills it should keep, before anything is attached.

The same items are scored again in ``retain``, so that forgetting is a paired difference within the cell.
"""

from __future__ import annotations

from runners.worker import preferences
from runners.worker.context import Context
from runners.worker.lm_eval_suite import score_standard
from runners.worker.stages.retain import score_skills, score_texts


def run(ctx: Context) -> None:
    """Record the base's skills, bits per byte and lm-eval scores; their items are kept under the arm ``base``."""
    preferences.remember_base(ctx)
    score_skills(ctx, arm="base", metric="base_retained_accuracy")
    if ctx.evaluation.retention:
        score_texts(ctx, arm="base", metric="base_held_out_bits_per_byte")
        score_standard(ctx, arm="base", metric="base_lm_eval_accuracy")

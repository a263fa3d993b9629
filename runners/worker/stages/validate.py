"""Stage ``validate``: the score by which tuning chooses, on the validation split; the last stage of a trial."""

from __future__ import annotations

from harness.errors import UserError
from runners.worker.context import Context
from runners.worker.scoring import mean_nll


def run(ctx: Context) -> None:
    """Record the mean negative log-likelihood of the right answers.

    Raises:
        UserError: the task has no validation split, so nothing can be tuned on it.
    """
    if not ctx.splits.validation:
        raise UserError(
            f"the task {ctx.task.definition.name!r} has no validation split to tune on",
            fix="Give it one, or take 'tune' out of the sweep.",
        )
    value, n = mean_nll(ctx, ctx.task, ctx.splits.validation)
    ctx.record("validation_nll", value, source="scorer", n=n)

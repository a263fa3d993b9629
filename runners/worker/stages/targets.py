"""Stage ``targets``: what other models say about the training rows, before the method is attached. Billed by itself.

The reference of a preference loss is the base as it is here, so that its log-probabilities are exact for every method
and nothing of it is in memory while the method trains.
"""

from __future__ import annotations

from harness.errors import UserError
from runners.worker import trainrows
from runners.worker.context import Context
from runners.worker.othermodels import Models


def run(ctx: Context) -> None:
    """Let the objective rewrite the items and write reference or teacher values into the rows.

    Raises:
        Unsupported: a teacher whose tokens cannot be compared.
        UserError: no rows are left.
    """
    models = Models(ctx, trainrows.named(ctx, "objective"))
    try:
        if trainrows.rewrites(ctx):
            ctx.splits.train = list(ctx.objective.rewrite(ctx.splits.train, models))
            if not ctx.splits.train:
                raise UserError(f"the objective {ctx.objective.declaration.name} leaves no rows to train on")
            trainrows.encode_answers(ctx)
        if not ctx.loop_rows:
            trainrows.encode_loop(ctx, models)
        ctx.objective.prepare(ctx.loop_rows, models)
    finally:
        ctx.facts["objective"] = {**ctx.objective.facts(), **models.close()}

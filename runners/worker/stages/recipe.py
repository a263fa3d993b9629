"""Stage ``recipe``: which rows are trained on, in which order and with which weight. Billed by itself."""

from __future__ import annotations

from harness.errors import UserError
from runners.worker import trainrows
from runners.worker.context import Context
from runners.worker.othermodels import Models


def run(ctx: Context) -> None:
    """Call the recipe's hooks on the training items and on their encoded rows.

    Raises:
        UserError: the recipe leaves no rows.
    """
    models = Models(ctx, trainrows.named(ctx, "recipe"))
    try:
        ctx.splits.train = list(ctx.recipe.items(ctx.splits.train, models))
        if not ctx.splits.train:
            raise UserError(f"the recipe {ctx.recipe.declaration.name} leaves no rows to train on")
        trainrows.encode_answers(ctx)
        if not trainrows.rewrites(ctx):
            trainrows.encode_loop(ctx, models)
    finally:
        ctx.facts["recipe"] = {**ctx.recipe.facts(), **models.close()}

"""From the training items to the rows the loop reads, through the cell's recipe and objective."""

from __future__ import annotations

from typing import Any

from harness.digests import digest
from harness.errors import UserError
from harness.objectives.base import DEFAULT, Objective, Row
from harness.recipes.base import Desk, Recipe
from runners.worker.context import Context
from runners.worker.encoding import encode_examples, encode_training

ROLES = ("teacher", "reference")


def named(ctx: Context, axis: str) -> dict[str, dict[str, Any]]:
    """The other models that the cell's objective or recipe names: role to its model, quantization and place."""
    said = ctx.job.cell.get(axis) or {}
    return {role: {**said[role], "at": f"{axis}.{role}"} for role in ROLES if role in said}


def rewrites(ctx: Context) -> bool:
    """Whether the objective puts other items in the place of the task's."""
    return type(ctx.objective).rewrite is not Objective.rewrite


def has_recipe(ctx: Context) -> bool:
    """Whether anything is done to the rows."""
    return type(ctx.recipe) is not Recipe and bool(ctx.recipe.declaration.changes)


def asks_models(ctx: Context) -> bool:
    """Whether the objective needs to know what other models say of the rows."""
    return rewrites(ctx) or type(ctx.objective).prepare is not Objective.prepare


def encode_answers(ctx: Context) -> None:
    """``ctx.train_rows``: the items with their right answers, which calibration reads whatever is trained for."""
    ctx.train_rows, cut = encode_training(ctx.tokenizer, ctx.splits.train, ctx.kind, ctx.training.max_length)
    ctx.facts |= {"train_items": len(ctx.train_rows), "train_items_cut": cut}


def encode_loop(ctx: Context, desk: Desk | None = None) -> None:
    """``ctx.loop_rows``: what the training loop reads. Plain supervised rows are ``ctx.train_rows`` themselves.

    Raises:
        UserError: there are fewer rows than a batch holds.
    """
    items = ctx.splits.train
    if ctx.objective.declaration.name == DEFAULT and not has_recipe(ctx):
        ctx.loop_rows = ctx.train_rows
        return
    examples = ctx.objective.examples(items)
    rows, cut = encode_examples(ctx.tokenizer, examples, items, ctx.kind, ctx.training.max_length)
    if desk is not None and has_recipe(ctx):
        rows = ctx.recipe.rows(rows, items, desk)
    if len(rows) < ctx.training.batch_size:
        raise UserError(
            f"{len(rows)} rows are left to train on, and a batch holds {ctx.training.batch_size}",
            fix="Take more training items, a smaller batch, or a recipe that leaves more.",
        )
    ctx.loop_rows = rows
    ctx.facts["rows"] = {"n": len(rows), "sequences_cut": cut, "digest": rows_digest(rows)}


def rows_digest(rows: list[Row]) -> str:
    """Digest of the token ids and labels of the rows, in the order in which the loop is given them."""
    return digest([[[s["input_ids"], s["labels"]] for s in row["sequences"]] for row in rows])

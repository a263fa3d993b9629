"""Stage ``prepare``: data-driven initialisations see their batches. Billed as its own span, time and energy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from harness.errors import Unsupported, UserError
from harness.methods.base import Batch
from harness.objectives.base import Row, TokenSequence
from runners.worker import few_shot, trainrows
from runners.worker.batches import calibration_batches
from runners.worker.context import Context
from runners.worker.encoding import encode_training
from runners.worker.lm_eval_suite import check_start
from runners.worker.othermodels import Models
from runners.worker.sandbox import check_allowed
from runners.worker.scoring import new_tokens, samples_of
from runners.worker.stages.load import data_root
from tasks.data import load_split

GENERAL_TEXTS = 256
"""Texts that a method which keeps general knowledge may see."""


def run(ctx: Context) -> None:
    """Draw the method's examples, or call its ``calibrate`` and ``search``.

    Raises:
        UserError: the task has fewer training items than the method shows as examples.
        Unsupported: the task's completions leave no room for a prompt, or lm-eval would score without the start token
            that the model expects; checked before training.
    """
    for task in (ctx.task, *ctx.retain):
        if task.definition.wants_completions and not ctx.random_weights:
            new_tokens(ctx, task)
            samples_of(ctx, task)
        if task.definition.program and not ctx.random_weights:
            check_allowed(ctx)
    check_start(ctx)
    ctx.examples = few_shot.draw(ctx.method, ctx.splits.train)
    if ctx.examples is not None:
        ctx.facts["examples"] = ctx.examples.facts
    if ctx.trains:
        check_budget(ctx)
        if not ctx.loop_rows:
            trainrows.encode_loop(ctx)
        seen = ctx.searched
        with seen.timed(ctx.device):
            rows = general_rows(ctx) if ctx.method.wants_text else None
            found = ctx.method.calibrate(ctx.model, lambda n: seen.counting(calibration_batches(ctx, n, rows)))
            chosen = ctx.method.search(
                ctx.model, lambda n: seen.counting(calibration_batches(ctx, n)), validation_batches(ctx)
            )
        if found:
            ctx.facts["calibration"] = found
        if chosen:
            ctx.facts["search"] = chosen


def general_rows(ctx: Context) -> list[TokenSequence]:
    """Training rows of the sweep's held-out texts: what a method calibrates on that must keep general knowledge.

    Raises:
        Unsupported: the sweep names no such text.
    """
    name = ctx.method.declaration.name
    if not ctx.held_out:
        raise Unsupported(
            f"{name} with these parameters calibrates on general text: name one under evaluation.held_out, "
            "for example wikitext-2; its training split is read"
        )
    text = ctx.held_out[0]
    items = load_split(text, "train", data_root=data_root(ctx), max_items=GENERAL_TEXTS, seed=ctx.seed)
    longest = ctx.training.max_length
    if ctx.kind == "causal-lm":
        rows, cut = encode_training(ctx.tokenizer, items, ctx.kind, longest)
    else:  # the label is not read
        texts = [ctx.tokenizer(item.prompt + item.answer)["input_ids"] for item in items]
        cut = sum(len(ids) > longest for ids in texts)
        rows = [{"input_ids": ids[:longest], "labels": 0} for ids in texts]
    ctx.facts["calibrated_on"] = {"task": text.definition.name, "split": "train", "texts": len(rows), "cut": cut}
    return rows


def check_budget(ctx: Context) -> None:
    """Raise if a search leaves no step for the training loop.

    Raises:
        Unsupported: so it is.
    """
    taken = ctx.method.search_steps
    if taken and ctx.method.loop_steps < 1:
        raise Unsupported(
            f"{ctx.method.declaration.name} takes {taken} of the cell's {ctx.steps} steps for its search, and none is "
            "left to train: raise the steps or lower the search's"
        )


def validation_batches(ctx: Context) -> Callable[[int], Iterable[Batch]] | None:
    """Batches of the validation split, which tuning reads too; None where the task has none."""
    if not ctx.splits.validation:
        return None
    rows, cut = encode_training(ctx.tokenizer, ctx.splits.validation, ctx.kind, ctx.training.max_length)
    ctx.facts |= {"validation_items_read": len(rows), "validation_items_cut": cut}
    return lambda n: calibration_batches(ctx, n, rows)


def apply_recipe(ctx: Context) -> None:
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


def read_targets(ctx: Context) -> None:
    """Let the objective rewrite the items and write reference or teacher values into the rows.

    The reference of a preference loss is the base before the method is attached, so its log-probabilities are exact for
    every method and nothing of it is in memory while the method trains.

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
        ctx.objective.prepare(
            cast("list[Row]", ctx.loop_rows), models
        )  # the default objective, without them, asks none
    finally:
        ctx.facts["objective"] = {**ctx.objective.facts(), **models.close()}

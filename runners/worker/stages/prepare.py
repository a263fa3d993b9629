"""Stage ``prepare``: data-driven initialisations see their batches. Billed as its own span, time and energy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from harness.errors import Unsupported
from harness.methods.base import Batch
from runners.worker import few_shot
from runners.worker.batches import calibration_batches
from runners.worker.context import Context
from runners.worker.encoding import encode_training
from runners.worker.lm_eval_suite import check_start
from runners.worker.sandbox import check_allowed
from runners.worker.scoring import new_tokens, samples_of


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
    ctx.examples = few_shot.draw(ctx)
    if ctx.trains:
        check_budget(ctx)
        seen = ctx.searched
        with seen.timed(ctx.device):
            found = ctx.method.calibrate(ctx.model, lambda n: seen.counting(calibration_batches(ctx, n)))
            chosen = ctx.method.search(
                ctx.model, lambda n: seen.counting(calibration_batches(ctx, n)), validation_batches(ctx)
            )
        if found:
            ctx.facts["calibration"] = found
        if chosen:
            ctx.facts["search"] = chosen


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
    rows, _ = encode_training(ctx.tokenizer, ctx.splits.validation, ctx.kind, ctx.training.max_length)
    return lambda n: calibration_batches(ctx, n, rows)

"""Stage ``prepare``: data-driven initialisations see their batches. Billed as its own span, time and energy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from harness.methods.base import Batch
from runners.worker import examples
from runners.worker.batches import calibration_batches
from runners.worker.context import Context
from runners.worker.encoding import encode_training
from runners.worker.sandbox import check_allowed
from runners.worker.scoring import new_tokens, samples_of
from runners.worker.standard import check_start


def run(ctx: Context) -> None:
    """Draw the method's examples, or call its ``calibrate`` and ``search``.

    Raises:
        UserError: the task has fewer training items than the method shows as examples.
        Unsupported: the task's completions leave no room for a prompt, or lm-eval would score without the start token
            that the model expects; said before anything is trained.
    """
    for task in (ctx.task, *ctx.retain):
        if task.definition.wants_completions and not ctx.random_weights:
            new_tokens(ctx, task)
            samples_of(ctx, task)
        if task.definition.program and not ctx.random_weights:
            check_allowed(ctx)
    check_start(ctx)
    ctx.examples = examples.draw(ctx)
    if ctx.trains:
        ctx.method.calibrate(ctx.model, lambda n: calibration_batches(ctx, n))
        if found := ctx.method.search(ctx.model, lambda n: calibration_batches(ctx, n), validation_batches(ctx)):
            ctx.facts["search"] = found


def validation_batches(ctx: Context) -> Callable[[int], Iterable[Batch]] | None:
    """Batches of the validation split, which tuning reads too; None where the task has none."""
    if not ctx.splits.validation:
        return None
    rows, _ = encode_training(ctx.tokenizer, ctx.splits.validation, ctx.kind, ctx.training.max_length)
    return lambda n: calibration_batches(ctx, n, rows)

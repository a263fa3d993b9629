"""Stage ``prepare``: data-driven initialisations see their batches. Billed as its own span, time and energy."""

from __future__ import annotations

from runners.worker.batches import calibration_batches
from runners.worker.context import Context
from runners.worker.sandbox import check_allowed
from runners.worker.scoring import new_tokens, samples_of
from runners.worker.standard import check_start


def run(ctx: Context) -> None:
    """Call the method's ``calibrate``.

    Raises:
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
    if ctx.trains:
        ctx.method.calibrate(ctx.model, lambda n: calibration_batches(ctx, n))

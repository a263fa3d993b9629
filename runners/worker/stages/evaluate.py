"""Stage ``evaluate``: the test split, read once, on the very model that was trained."""

from __future__ import annotations

from harness.errors import UserError
from harness.metrics import METRICS
from runners.worker import preferences, prompt_variants
from runners.worker.context import RANDOM_WEIGHTS, Context
from runners.worker.scoring import mean_nll, score
from tasks.scoring import Scored, summarise


def run(ctx: Context) -> None:
    """Record the validation NLL and the test metrics of the adapted arm; nothing of a model with random weights."""
    if ctx.random_weights:
        for name in sorted({"validation_nll", "accuracy", "answer_nll", *ctx.task.definition.metrics}):
            ctx.record_missing(name, "not_applicable", source="scorer", note=RANDOM_WEIGHTS)
        prompt_variants.nothing(ctx)
        return
    if ctx.splits.validation:
        value, n = mean_nll(ctx, ctx.task, ctx.splits.validation)
        ctx.record("validation_nll", value, source="scorer", n=n)
    else:
        ctx.record_missing("validation_nll", "not_applicable", source="scorer", note="no validation split")
    scored = score(ctx, ctx.task, ctx.splits.test)
    ctx.keep_samples("adapted", ctx.task.definition.name, scored)
    record_summary(ctx, scored)
    preferences.record_divergence(ctx)
    prompt_variants.run(ctx, scored)
    prompt_variants.in_every_format(ctx, scored)


def record_summary(ctx: Context, scored: list[Scored], *, prefix: str = "") -> None:
    """Record every summary of the scored items that is a defined metric, under ``prefix`` + name."""
    source = f"scorer, parser {ctx.task.definition.parser}"
    for name, summary in summarise(scored, ctx.task.definition.metrics).items():
        if prefix + name not in METRICS:
            continue
        if summary.value is None:
            ctx.record_missing(prefix + name, "not_applicable", source=source)
        else:
            details = {"standard_error": summary.standard_error}
            ctx.record(prefix + name, summary.value, source=source, n=summary.n, details=details)


def validate(ctx: Context) -> None:
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

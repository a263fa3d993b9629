"""Dependence of answers on the form of the question: options in other orders, other prompts."""

from __future__ import annotations

from pathlib import Path

from runners.worker.context import RANDOM_WEIGHTS, Context
from runners.worker.scoring import score
from tasks.data import load_split
from tasks.formats import formats_of, in_format
from tasks.prompt_variants import as_given, asked_as, orders, over_orders, relisted
from tasks.scored import Scored
from tasks.scoring import summarise

ORDERS = ("option_order_accuracy", "option_order_changes")
PROMPTS = ("prompt_accuracy", "prompt_spread")


def run(ctx: Context, given: list[Scored]) -> None:
    """Score the test items again as the sweep asks; ``given`` are their scores under the task's own prompt."""
    if ctx.evaluation.option_orders:
        _orders(ctx, given)
    if ctx.evaluation.prompt_variants:
        _prompts(ctx, given)


def nothing(ctx: Context) -> None:
    """Say of a model with random weights why there is no value."""
    asked = (ORDERS if ctx.evaluation.option_orders else ()) + (PROMPTS if ctx.evaluation.prompt_variants else ())
    for name in asked:
        ctx.record_missing(name, "not_applicable", source="scorer", note=RANDOM_WEIGHTS)


def _orders(ctx: Context, given: list[Scored]) -> None:
    task, n = ctx.task, ctx.evaluation.option_orders
    if task.options is None:
        for name in ORDERS:
            ctx.record_missing(
                name, "not_applicable", source="scorer", note="the prompt lists no options, so they have no order"
            )
        return
    drawn = {item.id: orders(item, n) for item in ctx.splits.test}
    arms = []
    for k in range(n):
        items = [item for item in ctx.splits.test if len(drawn[item.id]) > k]
        if not items:
            break
        scored = score(ctx, task, [relisted(task, item, drawn[item.id][k]) for item in items])
        arms.append([as_given(item, drawn[item.id][k], s) for item, s in zip(items, scored, strict=True)])
        ctx.keep_samples(f"order-{k + 1}", task.definition.name, arms[-1])
    source = f"scorer, up to {n} additional orders of each item's options"
    for name, found in zip(ORDERS, over_orders(given, arms), strict=True):
        if found.value is None:
            ctx.record_missing(name, "not_applicable", source=source)
        else:
            ctx.record(name, found.value, source=source, n=found.n, details={"standard_error": found.standard_error})


def _prompts(ctx: Context, given: list[Scored]) -> None:
    task = ctx.task
    variants = task.prompts
    own = summarise(given)["accuracy"].value
    why = "no answer is right or wrong" if own is None else "" if variants else "the task has one prompt only"
    if own is None or why:
        for name in PROMPTS:
            ctx.record_missing(name, "not_applicable", source="scorer", note=why)
        return
    accuracies = [own]
    for k, prompt in enumerate(variants, start=1):
        items = load_split(
            asked_as(task, prompt),
            "test",
            data_root=Path(ctx.job.data_root) if ctx.job.data_root else None,
            max_items=ctx.job.cell["task"]["test_items"],
            seed=ctx.seed,
        )
        scored = score(ctx, task, items)
        ctx.keep_samples(f"prompt-{k}", task.definition.name, scored)
        value = summarise(scored)["accuracy"].value
        assert value is not None  # as under the task's own prompt, these items are judged
        accuracies.append(value)
    source, details = f"scorer, {len(accuracies)} prompts", {"accuracies": accuracies}
    n = len(accuracies)
    ctx.record("prompt_accuracy", sum(accuracies) / n, source=source, n=n, details=details)
    ctx.record("prompt_spread", max(accuracies) - min(accuracies), source=source, n=n, details=details)


SCORES = ("accuracy", "accuracy_norm")


def in_every_format(ctx: Context, given: list[Scored]) -> None:
    """Record ``FORMAT_accuracy`` and ``FORMAT_accuracy_norm`` of every format, and the best of them.

    The best is the highest of all these scores on the test items themselves, so it is a little too high rather than
    too low: a gain over it is not overstated. Nothing is recorded of a method that trains, combines or shows examples.

    Args:
        given: the test items as scored in the cell's own format.
    """
    if not ctx.job.cell["task"].get("format") or ctx.produces or ctx.examples is not None:
        return
    found: dict[str, float] = {}
    for name in formats_of(ctx.task):
        scored = given
        if name != ctx.task.format:
            task = in_format(ctx.task, name)
            items = load_split(
                task,
                "test",
                data_root=Path(ctx.job.data_root) if ctx.job.data_root else None,
                max_items=ctx.job.cell["task"]["test_items"],
                seed=ctx.seed,
            )
            scored = score(ctx, task, items)
            ctx.keep_samples(f"format-{name}", task.definition.name, scored)
        for metric, summary in summarise(scored).items():
            if metric in SCORES and summary.value is not None:
                details = {"standard_error": summary.standard_error}
                ctx.record(f"{name}_{metric}", summary.value, source="scorer", n=summary.n, details=details)
                found[f"{name}_{metric}"] = summary.value
    best = max(found, key=lambda name: found[name])
    ctx.record("best_format_accuracy", found[best], source="scorer", n=len(given), details={"best": best, **found})

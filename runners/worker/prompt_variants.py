"""Dependence of answers on the form of the question: options in other orders, other prompts."""

from __future__ import annotations

from pathlib import Path

from runners.worker.context import RANDOM_WEIGHTS, Context
from runners.worker.scoring import score
from tasks.data import load_split
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

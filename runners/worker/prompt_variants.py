"""Further scoring of the test items: options in other orders, other prompts, worked examples in front, confidence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from harness import stats
from runners.worker import few_shot
from runners.worker.context import RANDOM_WEIGHTS, Context
from runners.worker.likelihood import answer_logps
from runners.worker.scoring import score, with_examples
from tasks.data import load_split
from tasks.formats import formats_of, in_format
from tasks.prompt_variants import as_given, asked_as, orders, over_orders, relisted
from tasks.scored import Scored, mean_of
from tasks.scoring import summarise

ORDERS = ("option_order_accuracy", "option_order_changes")
PROMPTS = ("prompt_accuracy", "prompt_spread")
IN_CONTEXT = ("in_context_accuracy", "in_context_gain")
CONFIDENCE = ("generation_calibration_error", "generation_confidence_auroc")


def run(ctx: Context, given: list[Scored]) -> None:
    """Score the test items again as the sweep asks; ``given`` are their scores under the task's own prompt."""
    if ctx.evaluation.option_orders:
        _orders(ctx, given)
    if ctx.evaluation.prompt_variants:
        _prompts(ctx, given)
    if ctx.evaluation.in_context:
        _in_context(ctx, given)
    if ctx.evaluation.answer_confidence:
        _confidence(ctx, given)


def nothing(ctx: Context) -> None:
    """Say of a model with random weights why there is no value."""
    e = ctx.evaluation
    wanted = ((e.option_orders, ORDERS), (e.prompt_variants, PROMPTS), (e.in_context, IN_CONTEXT))
    asked = [name for use, names in (*wanted, (e.answer_confidence, CONFIDENCE)) if use for name in names]
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


def _in_context(ctx: Context, given: list[Scored]) -> None:
    """Accuracy with the sweep's number of worked examples in front, and what they add to that without."""
    k, own = ctx.evaluation.in_context, summarise(given)["accuracy"].value
    if why := _no_examples(ctx, own):
        for name in IN_CONTEXT:
            ctx.record_missing(name, "not_applicable", source="scorer", note=why)
        return
    shown = few_shot.chosen(ctx.splits.train, k, ctx.seed)
    scored = score(replace(ctx, examples=shown), ctx.task, ctx.splits.test)
    ctx.keep_samples("in-context", ctx.task.definition.name, scored)
    found = summarise(scored)["accuracy"]
    assert own is not None
    assert found.value is not None  # as without examples, these items are judged
    source, details = f"scorer, {k} examples", {"standard_error": found.standard_error, **shown.facts}
    ctx.record("in_context_accuracy", found.value, source=source, n=found.n, details=details)
    gains = [float(bool(a.correct)) - float(bool(b.correct)) for a, b in zip(scored, given, strict=True)]
    paired = mean_of(gains)
    details = {"standard_error": paired.standard_error}
    ctx.record("in_context_gain", found.value - own, source=source, n=paired.n, details=details)


def _no_examples(ctx: Context, own: float | None) -> str:
    """Reason why no worked examples can be shown; "" if they can."""
    if ctx.examples is not None:
        return "the method shows examples itself"
    if own is None or ctx.task.definition.kind not in ("multiple-choice", "generation"):
        return "examples are read by a language model that answers in words"
    if len(ctx.splits.train) < ctx.evaluation.in_context:
        return f"the cell has {len(ctx.splits.train)} training items"
    return ""


def _confidence(ctx: Context, given: list[Scored]) -> None:
    """Calibration of generated answers: one more pass over prompts and completions, greedy or sampled as they were."""
    why = ""
    if ctx.task.definition.kind != "generation" or any(s.correct is None for s in given):
        why = "no completion is right or wrong"
    elif ctx.task.definition.program:
        why = "a program is judged by its tests, several samples an item"
    if why:
        for name in CONFIDENCE:
            ctx.record_missing(name, "not_applicable", source="scorer", note=why)
        return
    asked = with_examples(ctx, ctx.task, ctx.splits.test)
    answered = [(item, s) for item, s in zip(asked, given, strict=True) if s.prediction]
    with torch.inference_mode():
        found = answer_logps(ctx, [(item.prompt, s.prediction) for item, s in answered], end=False)
    stated = [math.exp(logp / max(1, n)) for logp, n in zip(found.logps, found.lengths, strict=True)]
    right = [bool(s.correct) for _, s in answered]
    source = "scorer, geometric mean of token probabilities"
    details: dict[str, Any] = {"empty": len(given) - len(answered)}
    if not answered:
        for name in CONFIDENCE:
            ctx.record_missing(name, "not_applicable", source=source, note="every completion is empty")
        return
    error = stats.calibration_error(stated, right)
    details["bins"] = [list(b) for b in error.bins]
    ctx.record(CONFIDENCE[0], error.error, source=source, n=error.n, details=details)
    value = auroc(stated, right)
    if value is None:
        ctx.record_missing(CONFIDENCE[1], "not_applicable", source=source, note="all answers are right, or all wrong")
    else:
        ctx.record(CONFIDENCE[1], value, source=source, n=len(right))


def auroc(stated: list[float], right: list[bool]) -> float | None:
    """Chance that a right answer has the higher confidence (Mann-Whitney U over the pairs); None without both kinds."""
    positive, negative = sum(right), len(right) - sum(right)
    if not positive or not negative:
        return None
    ranks = scipy.stats.rankdata(stated)
    total = float(np.sum(ranks[np.asarray(right)]))
    return (total - positive * (positive + 1) / 2) / (positive * negative)


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

"""Stage ``retain``: what the adapted model still can of what the base could."""

from __future__ import annotations

from pathlib import Path

from runners.worker import preferences
from runners.worker.context import RANDOM_WEIGHTS, Context
from runners.worker.lm_eval_suite import score_standard
from runners.worker.scoring import score
from tasks.data import load_split
from tasks.scoring import Scored, summarise
from tasks.task import Task

SKILL_ITEMS = 100
"""Test items of each retained skill; enough to see forgetting, few enough to cost little."""
TEXTS = 200
"""Test texts of each held-out task."""


def run(ctx: Context) -> None:
    """Record ``retained_accuracy``, ``held_out_bits_per_byte`` and ``lm_eval_accuracy``; items under ``retained``."""
    score_skills(ctx, arm="retained", metric="retained_accuracy")
    score_texts(ctx, arm="retained", metric="held_out_bits_per_byte")
    score_standard(ctx, arm="retained", metric="lm_eval_accuracy")


def score_skills(ctx: Context, *, arm: str, metric: str) -> None:
    """Mean accuracy over the tasks that the task or the sweep names under ``retain``, every skill weighing the same."""
    source = f"mean over {len(ctx.retain)} skills, {SKILL_ITEMS} test items each"
    if not ctx.retain:
        named = ", ".join(skill.name for skill in ctx.evaluation.retain)
        note = f"a {ctx.kind} model cannot be asked {named}" if named else "no skills to retain are named"
        ctx.record_missing(metric, "not_applicable", source="retention", note=note)
        return
    if ctx.random_weights:
        ctx.record_missing(metric, "not_applicable", source="retention", note=RANDOM_WEIGHTS)
        return
    if not ctx.evaluation.retention:
        ctx.record_missing(metric, "not_measured", source="retention")
        return
    by_skill: dict[str, float] = {}
    items = 0
    for task in ctx.retain:
        scored = _scored(ctx, task, arm, SKILL_ITEMS)
        value = summarise(scored)["accuracy"].value
        assert value is not None  # skills are tasks whose items are judged right or wrong
        by_skill[task.definition.name] = value
        items += len(scored)
    ctx.record(metric, sum(by_skill.values()) / len(by_skill), source=source, n=items, details=by_skill)


def score_texts(ctx: Context, *, arm: str, metric: str) -> None:
    """Mean over the held-out tasks of the bits that the model needs for a byte of their texts."""
    if not ctx.held_out:
        return  # an option: a sweep that does not ask for it has no such quantity
    source = f"mean over {len(ctx.held_out)} tasks, {TEXTS} test texts each at most"
    if ctx.kind != "causal-lm" or ctx.random_weights:
        note = RANDOM_WEIGHTS if ctx.random_weights else "a classifier gives a text no probability"
        ctx.record_missing(metric, "not_applicable", source="retention", note=note)
        return
    by_task: dict[str, float] = {}
    texts = 0
    for task in ctx.held_out:
        scored = _scored(ctx, task, arm, TEXTS)
        value = summarise(scored, ("bits_per_byte",))["bits_per_byte"].value
        assert value is not None  # texts always have a likelihood
        by_task[task.definition.name] = value
        texts += len(scored)
    ctx.record(metric, sum(by_task.values()) / len(by_task), source=source, n=texts, details=by_task)


def _scored(ctx: Context, task: Task, arm: str, items: int) -> list[Scored]:
    """The first ``items`` test items, scored and kept under ``arm``; the same ones for every cell."""
    root = Path(ctx.job.data_root) if ctx.job.data_root else None
    scored = score(ctx, task, load_split(task, "test", data_root=root, max_items=items, seed=0))
    ctx.keep_samples(arm, task.definition.name, scored)
    return scored


def run_on_base(ctx: Context) -> None:
    """Score the base on the skills it should keep, before anything is attached.

    `retain` scores the same items again, so that forgetting is a paired difference within the cell.
    Records the base's skills, bits per byte and lm-eval scores; their items are kept under the arm ``base``."""
    preferences.remember_base(ctx)
    score_skills(ctx, arm="base", metric="base_retained_accuracy")
    if ctx.evaluation.retention:
        score_texts(ctx, arm="base", metric="base_held_out_bits_per_byte")
        score_standard(ctx, arm="base", metric="base_lm_eval_accuracy")

"""Stage ``retain``: what the adapted model still can of what the base could."""

from __future__ import annotations

from pathlib import Path

from runners.worker.context import RANDOM_WEIGHTS, Context
from runners.worker.scoring import score
from runners.worker.standard import score_standard
from tasks.data import load_split
from tasks.scoring import summarise

SKILL_ITEMS = 100
"""Test items of each retained skill; enough to see forgetting, few enough to cost little."""


def run(ctx: Context) -> None:
    """Record ``retained_accuracy`` and ``lm_eval_accuracy``; their items are kept under the arm ``retained``."""
    score_skills(ctx, arm="retained", metric="retained_accuracy")
    score_standard(ctx, arm="retained", metric="lm_eval_accuracy")


def score_skills(ctx: Context, *, arm: str, metric: str) -> None:
    """Mean accuracy over the tasks named in the task's ``retain``, every skill weighing the same."""
    source = f"mean over {len(ctx.retain)} skills, {SKILL_ITEMS} test items each"
    if not ctx.retain:
        ctx.record_missing(metric, "not_applicable", source="retention", note="the task names no skills to retain")
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
        test = load_split(
            task,
            "test",
            data_root=Path(ctx.job.data_root) if ctx.job.data_root else None,
            max_items=SKILL_ITEMS,
            seed=0,
        )
        scored = score(ctx, task, test)
        ctx.keep_samples(arm, task.definition.name, scored)
        value = summarise(scored)["accuracy"].value
        assert value is not None  # skills are tasks whose items are judged right or wrong
        by_skill[task.definition.name] = value
        items += len(scored)
    ctx.record(metric, sum(by_skill.values()) / len(by_skill), source=source, n=items, details=by_skill)

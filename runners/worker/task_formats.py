"""A model that nothing trained, scored in every format of its task, where the sweep names the format it trains in."""

from __future__ import annotations

from pathlib import Path

from runners.worker.context import Context
from runners.worker.scoring import score
from tasks.data import load_split
from tasks.formats import formats_of, in_format
from tasks.scored import Scored
from tasks.scoring import summarise

SCORES = ("accuracy", "accuracy_norm")


def run(ctx: Context, given: list[Scored]) -> None:
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

"""Stage ``attach``: the method takes hold of the model, and its promise about trainable parameters is checked."""

from __future__ import annotations

import torch

from harness.errors import CheckFailed
from harness.quantizers.measure import logical_parameters
from runners.worker import earlier
from runners.worker.context import Context
from runners.worker.scoring import probe_logits
from runners.worker.stages.quantize import load_base


def run(ctx: Context) -> None:
    """Attach the method; record trainable and total parameters.

    Raises:
        CheckFailed: ``trainable-count``: the method trains another number of parameters than its formula says.
            A silently ignored option shows here. ``handover``: an adapter that is trained on is not the one that the
            earlier stage saved.
        Unsupported: the earlier stage saved other parameters than this method trains.
    """
    if ctx.scores_only:
        note = f"trained by the cell {ctx.job.earlier[-1]['key']}"
        ctx.record_missing("trainable_parameters", "not_applicable", source="attach", note=note)
        return
    started = ctx.model
    if earlier.continues(ctx):
        before = probe_logits(ctx, started)
        ctx.model = load_base(ctx)
    expected = ctx.method.expected_trainable(ctx.model)
    total = logical_parameters(ctx.model)
    torch.manual_seed(ctx.seed)
    ctx.model = ctx.method.attach(ctx.model)
    if earlier.continues(ctx):
        earlier.take_over(ctx.model, started)
        ctx.facts["handover_error_relative"] = earlier.check_taken_over(before, probe_logits(ctx, ctx.model))
    trainable = sum(p.numel() for p in ctx.model.parameters() if p.requires_grad)
    if expected is not None and trainable != expected:
        raise CheckFailed("trainable-count", f"{trainable} parameters train, {expected} were declared")
    ctx.record("trainable_parameters", trainable, source="count of requires_grad")
    active = ctx.method.active_parameters(ctx.model)
    if active is not None:
        ctx.record("active_parameters", active, source="the method's formula")
    ctx.record("total_parameters", total, source="count over tensors, packed weights unpacked")

"""Stage ``merge``: fold the adapter into the base and score the result again, as a separate arm.

A merged model is another model wherever the base is quantized, so no merged number is ever copied.
"""

from __future__ import annotations

import statistics

from safetensors.torch import save_file

from harness.compatibility import merge_refusal
from harness.meters.attribution import intruder_dimensions
from harness.methods.modules import linears
from harness.quantizers.layers import plain_linears
from runners.worker.context import RANDOM_WEIGHTS, Context
from runners.worker.latency import record_not_merged
from runners.worker.scoring import probe_logits, score
from runners.worker.stages.evaluate import record_summary
from runners.worker.stages.inspection import ORIGINAL_FOLDER
from runners.worker.stages.probe import probe_arm
from runners.worker.stages.quantize import load_base, quantize

METRIC_NAMES = ("merged_accuracy", "merge_error_max", "merge_error_mean")


def run(ctx: Context) -> None:
    """Record the merged arm and the logit differences, or the reason why there are none."""
    reason = _why_not(ctx)
    if ctx.probes.intruder_dimensions and reason is not None:
        record_intruders(ctx, merged=False)
    if reason is not None:
        for name in METRIC_NAMES:
            if name not in ctx.metrics:  # merged before it was quantized: the errors are known
                ctx.record_missing(
                    name, "not_measured" if not ctx.evaluation.merged else "not_supported", source="merge", note=reason
                )
        record_not_merged(ctx, "not_measured" if not ctx.evaluation.merged else "not_supported", reason)
        return
    fold(ctx)
    if ctx.probes.intruder_dimensions:
        record_intruders(ctx, merged=True)
    if ctx.random_weights:
        ctx.record_missing("merged_accuracy", "not_applicable", source="merge", note=RANDOM_WEIGHTS)
    else:
        scored = score(ctx, ctx.task, ctx.splits.test)
        ctx.keep_samples("merged", ctx.task.definition.name, scored)
        record_summary(ctx, scored, prefix="merged_")
    probe_arm(ctx, "merged")


def fold(ctx: Context) -> None:
    """Merge the adapter into its base, and record by how much the logits of the probe batch moved."""
    before = probe_logits(ctx, ctx.model)
    ctx.model = ctx.method.merge(ctx.model)
    ctx.model.eval()
    difference = (before - probe_logits(ctx, ctx.model)).abs()
    ctx.record("merge_error_max", difference.max().item(), source="probe batch logits", n=difference.numel())
    ctx.record("merge_error_mean", difference.mean().item(), source="probe batch logits", n=difference.numel())


def record_intruders(ctx: Context, *, merged: bool) -> None:
    """``intruder_dimensions`` of a model whose own weights were trained, or whose adapter is folded in.

    A second copy of the base is loaded. Layers that the tuned model no longer has under their name are left out.
    """
    source = "singular vectors of every linear layer, tuned and base"
    floating = ctx.base == "fp" and ctx.quantizes_before
    if not floating or not ctx.trains or not (merged or ctx.method.promise.in_place):
        why = "nothing was trained" if not ctx.trains else "it takes merged weights in floating point"
        ctx.record_missing("intruder_dimensions", "not_applicable", source=source, note=why)
        return
    base = load_base(ctx)
    tuned = dict(ctx.model.named_parameters())
    found = [
        intruder_dimensions(base.get_parameter(f"{layer.name}.weight"), tuned[f"{layer.name}.weight"].detach())
        for layer in linears(base)
        if f"{layer.name}.weight" in tuned
    ]
    if not found:
        ctx.record_missing("intruder_dimensions", "not_applicable", source=source, note="no layer of the base is left")
        return
    ctx.record("intruder_dimensions", statistics.fmean(found), source=source, n=len(found))


def _why_not(ctx: Context) -> str | None:
    if not ctx.evaluation.merged:
        return "the sweep does not ask for it"
    if ctx.scores_only:
        return "the cell that trained it is merged and scored on its own task"
    if not ctx.produces:
        return "nothing was trained"
    if ctx.method.promise.in_place:
        return "trained in place: there is nothing to merge, the adapted arm is the merged one"
    if not ctx.quantizes_before:
        return "merged before it was quantized: the adapted arm is the merged one"
    return merge_refusal(type(ctx.method), type(ctx.quantizer), ctx.method.params)


def full_precision(ctx: Context) -> None:
    """Score the trained model as it is, merge its adapter, and write the weights down for the layer errors."""
    if ctx.random_weights:
        ctx.record_missing("before_quantization_accuracy", "not_applicable", source="scorer", note=RANDOM_WEIGHTS)
    else:
        scored = score(ctx, ctx.task, ctx.splits.test)
        ctx.keep_samples("before_quantization", ctx.task.definition.name, scored)
        record_summary(ctx, scored, prefix="before_quantization_")
    if ctx.trains and not ctx.method.promise.in_place:
        fold(ctx)
    folder = ctx.folder / ORIGINAL_FOLDER
    folder.mkdir(exist_ok=True)
    weights = {f"{name}.weight": linear.weight.detach() for name, linear in plain_linears(ctx.model)}
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")


def compress(ctx: Context) -> None:
    """Calibrate and quantize the merged model: nothing else is in this span."""
    ctx.model.requires_grad_(False)
    ctx.model = quantize(ctx, ctx.model)

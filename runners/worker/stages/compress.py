"""The stages of ``moment: after_merge``: score and merge in full precision, then quantize what is deployed.

The row's accuracy, retention, latency and bytes are those of the merged and quantized model, which differs from the
trained one; the accuracy before quantization is recorded too.
"""

from __future__ import annotations

from safetensors.torch import save_file

from harness.quantizers.layers import plain_linears
from runners.worker.context import RANDOM_WEIGHTS, Context
from runners.worker.scoring import score
from runners.worker.stages.evaluate import record_summary
from runners.worker.stages.inspection import ORIGINAL_FOLDER
from runners.worker.stages.merge import fold
from runners.worker.stages.quantize import quantize


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


def run(ctx: Context) -> None:
    """Calibrate and quantize the merged model: nothing else is in this span."""
    ctx.model.requires_grad_(False)
    ctx.model = quantize(ctx, ctx.model)

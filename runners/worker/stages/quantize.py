"""Stage ``quantize``: the base model into memory, at the cell's bit width where it is quantized before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runners.worker import earlier, model_files
from runners.worker.batches import calibration_batches
from runners.worker.context import Context
from runners.worker.loading import from_pretrained

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedModel


def run(ctx: Context) -> None:
    """Load and quantize the base (only load it if it is quantized after the merge), with what earlier stages left."""
    ctx.model = earlier.unmerged(ctx, load_base(ctx))
    model_files.verify(ctx)


def load_base(ctx: Context) -> Any:
    """A fresh base model, quantized as the cell says (full precision if it quantizes after the merge).

    What earlier stages hand over merged is part of it.
    The seed is set first: a fresh classification head is drawn here and must be the same in every load.
    """
    before = ctx.job.cell["quantization"]["moment"] == "before_training"
    model = from_pretrained(ctx, ctx.path, **(ctx.quantizer.load_kwargs() if before else {}))
    if not getattr(model, "is_quantized", False):
        model = model.to(ctx.device)
    model.eval()
    if before:
        model = quantize(ctx, model)
    return earlier.merged(ctx, model)


def quantize(ctx: Context, model: PreTrainedModel) -> Any:
    """Calibrate and apply the cell's quantizer to a loaded model; what it did goes into the facts."""
    ctx.quantizer.calibrate(model, lambda n: calibration_batches(ctx, n))
    model = ctx.quantizer.apply(model)
    ctx.facts["quantizer"] = ctx.quantizer.facts()
    model.eval()
    return model

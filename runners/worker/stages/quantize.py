"""Stage ``quantize``: the base model into memory, at the cell's bit width where it is quantized before training."""

from __future__ import annotations

from typing import Any

import torch

from harness.models import skeleton
from runners.worker import model_files
from runners.worker.batches import calibration_batches
from runners.worker.context import Context
from runners.worker.stages.load import hub_revision


def run(ctx: Context) -> None:
    """Load and quantize the base (only load it if it is quantized after the merge)."""
    ctx.model = load_base(ctx)
    model_files.verify(ctx)


def load_base(ctx: Context) -> Any:
    """A fresh base model, quantized as the cell says (full precision if it quantizes after the merge).

    The seed is set first: a fresh classification head is drawn here and must be the same in every load.
    """
    before = ctx.job.cell["quantization"]["moment"] == "before_training"
    model = from_pretrained(ctx, ctx.path, **(ctx.quantizer.load_kwargs() if before else {}))
    if not getattr(model, "is_quantized", False):
        model = model.to(ctx.device)
    model.eval()
    if before:
        model = quantize(ctx, model)
    return model


def quantize(ctx: Context, model: Any) -> Any:
    """Calibrate and apply the cell's quantizer to a loaded model; what it did goes into the facts."""
    ctx.quantizer.calibrate(model, lambda n: calibration_batches(ctx, n))
    model = ctx.quantizer.apply(model)
    ctx.facts["quantizer"] = ctx.quantizer.facts()
    model.eval()
    return model


def from_pretrained(ctx: Context, path: str, **kwargs: Any) -> Any:
    """``from_pretrained`` with the cell's settings; safetensors only, remote code only where the sweep says so."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    cell = ctx.job.cell["model"]
    common: dict[str, Any] = {
        "dtype": getattr(torch, cell["dtype"]),
        "attn_implementation": cell["attention"],
        "use_safetensors": True,
        "trust_remote_code": cell["trust_remote_code"],
        **kwargs,
    }
    if path == ctx.path:
        common["revision"] = hub_revision(ctx)
    if ctx.device.type == "cuda":
        common["device_map"] = {"": 0}
    labels: dict[str, Any] = {}
    if ctx.kind == "sequence-classification":
        names = ctx.task.definition.labels
        labels = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {label: i for i, label in enumerate(names)},
        }
    if skeleton.is_bare(path):
        settings = {"dtype": common["dtype"], "attention": cell["attention"], **labels}
        return skeleton.build(path, ctx.kind, device=ctx.device, **settings)
    torch.manual_seed(ctx.seed)
    common |= labels
    if ctx.kind == "sequence-classification":
        model = AutoModelForSequenceClassification.from_pretrained(path, **common)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, **common)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = ctx.tokenizer.pad_token_id
    return model

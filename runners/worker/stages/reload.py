"""Stage ``reload``: drop the model in memory, read it back from disk, and see whether it is still the same.

Some initialisations change the base and reload onto the original one without a word; some layers are not
saved at all. From here on the reloaded model is the one that is scored: it is what a user would deploy.
"""

from __future__ import annotations

import torch
from torch import nn

from harness.errors import CheckFailed
from runners.worker.context import Context
from runners.worker.memory import release
from runners.worker.scoring import probe_logits
from runners.worker.stages.quantize import load_base
from runners.worker.stages.save import ADAPTER_FOLDER

TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest relative logit difference taken for rounding, by dtype. Real reload errors measured are above 1."""

ROUNDED_ACTIVATIONS = 1e-1
"""The same where products round activations to 8 bits: noise of 4e-6 in the nano model's embeddings moved its logits by
up to 0.028 under bnb-int8 and 0.036 under torchao-int8-dynamic (20 draws), and by 3e-5 without them."""


def run(ctx: Context) -> None:
    """Replace the model by the one on disk.

    Raises:
        CheckFailed: ``reload``: the logits of the probe batch differ by more than rounding explains.
    """
    if not ctx.produces:
        return
    ctx.model = nn.Identity()  # frees the trained model before a second base is loaded
    release()
    ctx.model = ctx.method.load(load_base(ctx), ctx.folder / ADAPTER_FOLDER)
    ctx.model.eval()
    before, after = ctx.probe_logits, probe_logits(ctx, ctx.model)
    assert before is not None  # the stage `save` always runs before this one
    error = (before - after).abs().max().item() / max(1.0, before.abs().max().item())
    ctx.facts["reload_error_relative"] = error
    allowed = TOLERANCE[getattr(torch, ctx.job.cell["model"]["dtype"])]
    quantized = ctx.job.cell["quantization"]["moment"] == "before_training"
    if quantized and ctx.quantizer.declaration.rounds_activations:
        allowed = max(allowed, ROUNDED_ACTIVATIONS)
    if not error <= allowed:
        raise CheckFailed(
            "reload", f"the model read back from disk differs: relative logit error {error:.3g}, {allowed:g} allowed"
        )

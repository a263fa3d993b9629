"""Stage ``attach``: the method takes hold of the model, and its promise about trainable parameters is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from harness.errors import CheckFailed
from harness.methods.base import Ingredient, Workshop
from harness.quantizers.measure import logical_parameters
from runners.worker import earlier, model_files
from runners.worker.context import Context
from runners.worker.scoring import mean_nll, probe_logits
from runners.worker.stages.load import model_path
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


def finalize(ctx: Context) -> None:
    """Call the method's ``finalize`` and keep what it chose."""
    validation = (lambda model: _validation_nll(ctx, model)) if ctx.splits.validation else None
    ingredients = tuple(_ingredient(ctx, told) for told in ctx.job.ingredients)
    workshop = Workshop(validation_nll=validation, ingredients=ingredients, base=lambda: load_base(ctx))
    ctx.model = ctx.method.finalize(ctx.model, workshop)
    ctx.model.eval()
    ctx.facts["finalize"] = {**ctx.method.facts(), "ingredients": [i.label for i in ingredients]}


def _validation_nll(ctx: Context, model: nn.Module) -> float:
    kept, ctx.model = ctx.model, model
    try:
        model.eval()
        return mean_nll(ctx, ctx.task, ctx.splits.validation)[0]
    finally:
        ctx.model = kept


def _ingredient(ctx: Context, told: dict[str, Any]) -> Ingredient:
    """The method that trained it, as that cell's worker made it, and a loader of its base."""
    cell = told["cell"]

    def base() -> nn.Module:
        """Its own model and seed, at this cell's quantization, which is its own as well."""
        job = replace(ctx.job, cell={**ctx.job.cell, "model": cell["model"]}, model=told["model"])
        other = replace(ctx, job=job, seed=cell["seed"], panel=None, facts={})
        other.path = model_path(other)
        other.model = load_base(other)
        model_files.verify(other)
        return cast(nn.Module, other.model)

    return Ingredient(told["label"], earlier.method_of(ctx, told), Path(told["folder"]), base)

"""Stage ``finalize``: what the method does once training is over, with what other cells trained where it combines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from harness.methods.base import Ingredient, Setting, Workshop
from harness.methods.catalog import METHODS
from runners.worker import model_files
from runners.worker.context import Context
from runners.worker.scoring import mean_nll
from runners.worker.stages.load import model_path
from runners.worker.stages.quantize import load_base


def run(ctx: Context) -> None:
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
    method = cell["method"]
    setting = Setting(
        kind=ctx.kind,
        base=ctx.base,
        seed=cell["seed"],
        steps=method["steps"] or 0,
        learning_rate=method["learning_rate"] or 0.0,
        tokenizer=ctx.tokenizer,
        device=ctx.job.device,
    )

    def base() -> nn.Module:
        """Its own model and seed, at this cell's quantization, which is its own as well."""
        job = replace(ctx.job, cell={**ctx.job.cell, "model": cell["model"]}, model=told["model"])
        other = replace(ctx, job=job, seed=cell["seed"], panel=None, facts={})
        other.path = model_path(other)
        other.model = load_base(other)
        model_files.verify(other)
        return cast(nn.Module, other.model)

    made = METHODS.get(method["name"])(method["params"], setting)
    return Ingredient(told["label"], made, Path(told["folder"]), base)

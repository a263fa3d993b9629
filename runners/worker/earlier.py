"""The stages of training that come before a cell's own: what they left is loaded, merged or trained on.

Each earlier stage is a cell with its own record. The adapter it saved is in the cache under its key, so that cells with
the same first stages share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.errors import CheckFailed, Unsupported
from harness.methods.base import Method, Setting
from harness.methods.catalog import METHODS
from harness.record import Span
from runners.worker.context import Context
from runners.worker.job import write_atomically

SPANS_FILE = "spans.json"
"""Beside what a stage saved: the spans of its cell."""
TRAINING = ("recipe", "targets", "prepare", "train")
"""Stages of an earlier cell that belong to the training of a later one; it is scored only for its own record."""
HANDED_OVER = 1e-2
"""Largest relative logit difference between an adapter as it was saved and as the next stage starts from it, float32.
A parameter that was not handed over changes the logits far more (tests/objectives/test_catalogs.py)."""


def keep_spans(folder: Path, spans: Sequence[Span]) -> None:
    """Write the spans of a cell beside what it saved for later stages."""
    content = [span.model_dump(mode="json") for span in spans]
    write_atomically(folder / SPANS_FILE, json.dumps(content).encode())


def spans(ctx: Context) -> list[Span]:
    """The training spans of all earlier stages, called ``earlier 1: train`` and so on; each is named in the facts."""
    found: list[Span] = []
    facts = []
    for number, told in enumerate(ctx.job.earlier, 1):
        folder = Path(told["folder"])
        kept = [Span.model_validate(one) for one in json.loads((folder / SPANS_FILE).read_text())]
        found += [
            span.model_copy(update={"stage": f"{Span.EARLIER}{number}: {span.stage}"})
            for span in kept
            if span.stage in TRAINING
        ]
        cell = told["cell"]
        facts.append(
            {
                "cell": told["label"],
                "key": told["key"],
                "saved": saved_digest(folder),
                "steps": cell["method"]["steps"],
                "learning_rate": cell["method"]["learning_rate"],
                "handover": told["handover"],
            }
        )
    if facts:
        ctx.facts["earlier_stages"] = facts
    return found


def saved_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of the weights that a stage saved."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        whole.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def merged(ctx: Context, model: nn.Module) -> nn.Module:
    """A fresh base with everything merged into it that earlier stages hand over merged."""
    for told in ctx.job.earlier:
        if told["handover"] == "merged":
            method = method_of(ctx, told)
            model = method.load(model, Path(told["folder"]))
            if not method.promise.in_place:
                model = method.merge(model)
            model.requires_grad_(False)
            model.eval()
    return model


def unmerged(ctx: Context, model: nn.Module) -> nn.Module:
    """The base with the adapter of the last earlier stage on it, where that is handed over unmerged; else the base."""
    if not continues(ctx):
        return model
    return trained(replace(ctx, model=model), ctx.job.earlier[-1])


def trained(ctx: Context, told: dict[str, Any]) -> nn.Module:
    """The loaded base with what a cell trained on it."""
    model = method_of(ctx, told).load(ctx.model, Path(told["folder"]))
    model.requires_grad_(False)
    return model.eval()


def continues(ctx: Context) -> bool:
    """Whether the cell trains on what the last earlier stage trained."""
    return bool(ctx.job.earlier) and ctx.job.earlier[-1]["handover"] == "unmerged"


def take_over(model: nn.Module, trained: nn.Module) -> None:
    """Give the parameters that train in ``model`` the values they have in ``trained``.

    Raises:
        Unsupported: one of them is not there, or has another shape.
    """
    theirs = dict(trained.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name not in theirs or theirs[name].shape != parameter.shape:
                raise Unsupported(f"the earlier stage saved no {name} of this shape to train on: hand it over merged")
            parameter.copy_(theirs[name])


def check_taken_over(before: torch.Tensor, after: torch.Tensor) -> float:
    """Relative difference of the logits as the earlier stage left them and as this one starts.

    Raises:
        CheckFailed: ``handover``: it is larger than rounding.
    """
    error = (before - after).abs().max().item() / max(1.0, before.abs().max().item())
    if not error <= HANDED_OVER:
        raise CheckFailed("handover", f"training does not start where the earlier stage ended: logit error {error:.3g}")
    return error


def method_of(ctx: Context, told: dict[str, Any]) -> Method:
    """The method of another cell, as its worker made it."""
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
    return METHODS.get(method["name"])(method["params"], setting)

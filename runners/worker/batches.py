"""Batches outside the training loop: for calibration, on the cell's device, in an order fixed by the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import torch

from harness.objectives.base import TokenSequence
from runners.worker.context import Context
from runners.worker.encoding import Collator, PackedCollator


def calibration_batches(
    ctx: Context, n: int, rows: Sequence[TokenSequence] | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """``n`` batches of ``rows`` (the training rows if None), drawn without the loop's own order being touched."""
    rows = ctx.train_rows if rows is None else rows
    order = random.Random(ctx.seed)
    collate = Collator(ctx.tokenizer.pad_token_id)
    for _ in range(n):
        drawn = order.sample(rows, min(ctx.training.batch_size, len(rows)))
        yield to_device(ctx, collate(drawn))


def training_collator(ctx: Context) -> Collator:
    """Collator of the training loop: padded rows, or packed ones where the cell's variant packs."""
    pad = ctx.tokenizer.pad_token_id
    if not ctx.switches.get("packing"):
        return Collator(pad)
    model = ctx.job.cell["model"]
    return PackedCollator(
        pad, ctx.training.max_length, None if model["attention"] == "sdpa" else getattr(torch, model["dtype"])
    )


def to_device(ctx: Context, batch: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """The tensors of a batch on the cell's device; other entries are dropped."""
    return {k: v.to(ctx.device) for k, v in batch.items() if isinstance(v, torch.Tensor)}

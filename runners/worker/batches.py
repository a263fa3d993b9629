"""Batches outside the training loop: for calibration, on the cell's device, in an order fixed by the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from runners.worker.context import Context
from runners.worker.encoding import Collator


def calibration_batches(ctx: Context, n: int, rows: Sequence[dict[str, Any]] | None = None) -> Iterator[dict[str, Any]]:
    """``n`` batches of ``rows`` (the training rows if None), drawn without the loop's own order being touched."""
    rows = ctx.train_rows if rows is None else rows
    order = random.Random(ctx.seed)
    collate = Collator(ctx.tokenizer.pad_token_id)
    for _ in range(n):
        drawn = order.sample(rows, min(ctx.training.batch_size, len(rows)))
        yield to_device(ctx, collate(drawn))


def to_device(ctx: Context, batch: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a batch on the cell's device; other entries are dropped."""
    return {k: v.to(ctx.device) for k, v in batch.items() if hasattr(v, "to")}

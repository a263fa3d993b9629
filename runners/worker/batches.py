"""Batches outside the training loop: for calibration, on the cell's device, in an order fixed by the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from runners.worker.context import Context
from runners.worker.encoding import Collator


def calibration_batches(ctx: Context, n: int) -> Iterator[dict[str, Any]]:
    """``n`` training batches, drawn without the loop's own order being touched."""
    order = random.Random(ctx.seed)
    collate = Collator(ctx.tokenizer.pad_token_id)
    for _ in range(n):
        rows = order.sample(ctx.train_rows, min(ctx.training.batch_size, len(ctx.train_rows)))
        yield to_device(ctx, collate(rows))


def to_device(ctx: Context, batch: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a batch on the cell's device; other entries are dropped."""
    return {k: v.to(ctx.device) for k, v in batch.items() if hasattr(v, "to")}

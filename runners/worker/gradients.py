"""Projected LoRA gradients of single rows on the base, for choosing rows. The base is left as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.objectives.base import TokenSequence
from runners.worker.batches import to_device
from runners.worker.context import Context
from runners.worker.encoding import Collator
from runners.worker.memory import forked_random

RANK = 8
LEARNING_RATE = 1e-3


def projected_gradients(
    ctx: Context,
    rows: Sequence[TokenSequence],
    warm_up: Sequence[TokenSequence],
    *,
    dimensions: int,
    steps: int,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Gradient of each row's loss in a LoRA of rank 8, projected to ``dimensions``, with length 1.

    Every entry of the gradient is added, with a random sign, to one random dimension: inner products stay what they
    are in expectation, with a variance of about 1 / dimensions (Weinberger et al. 2009, arXiv:0902.2206). A row
    without any gradient stays 0.

    Args:
        rows: encoded rows.
        warm_up: rows that the LoRA is trained on for ``steps`` steps of Adam first.
    """
    from peft import LoraConfig, get_peft_model

    collate = Collator(ctx.tokenizer.pad_token_id)
    training = ctx.model.training
    wanted_before = [p.requires_grad for p in ctx.model.parameters()]
    with forked_random(ctx.device):
        torch.manual_seed(ctx.seed)
        model: Any = get_peft_model(ctx.model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
        try:
            parameters = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
            size = ctx.training.batch_size
            for step in range(steps):
                drawn = [warm_up[(step * size + i) % len(warm_up)] for i in range(size)]
                model(**to_device(ctx, collate(drawn))).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            projection = _Projection(sum(p.numel() for p in parameters), dimensions, ctx.seed)
            found = np.zeros((len(rows), dimensions), dtype=np.float32)
            for i, row in enumerate(rows):
                model(**to_device(ctx, collate([row]))).loss.backward()
                found[i] = projection(parameters)
                optimizer.zero_grad(set_to_none=True)
        finally:
            ctx.model = model.unload()
            _restore(ctx.model, wanted_before, training)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    found /= np.where(lengths > 0, lengths, 1)
    return found


class _Projection:
    """Adds every entry of a vector, with a random sign, to one of ``dimensions`` entries. The seed fixes both."""

    def __init__(self, entries: int, dimensions: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.dimensions = dimensions
        self.to = torch.randint(0, dimensions, (entries,), generator=draw)
        self.signs = torch.randint(0, 2, (entries,), generator=draw).float() * 2 - 1

    def __call__(self, parameters: Sequence[nn.Parameter]) -> np.ndarray[Any, Any]:
        """Of the gradients of all parameters, one after the other; one that has none counts as 0."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        whole = torch.cat([part.detach().float().flatten().cpu() for part in parts])
        return torch.zeros(self.dimensions).index_add_(0, self.to, whole * self.signs).numpy()


def _restore(model: nn.Module, wanted: Sequence[bool], training: bool) -> None:
    """The base as it was: which parameters want a gradient, no gradients, its mode."""
    for parameter, want in zip(model.parameters(), wanted, strict=True):
        parameter.requires_grad_(want)
        parameter.grad = None
    model.train(training)

"""Flexora: LoRA on the blocks that a search found worth it (arXiv:2408.10774)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.methods.base import Declaration
from harness.methods.delta import ADAPTS, MERGE_REFUSES, REFUSES
from harness.methods.gated.lora import SearchedLora
from harness.methods.modules import Linear, blocks

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class Flexora(SearchedLora):
    """LoRA of block i is weighted by ``L softmax(alpha)_i``, alpha learned on validation data; blocks with a positive
    alpha get new adapters, the others none.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="flexora",
        summary=(
            "LoRA on some blocks only: a search beforehand weighs the blocks' adapters on validation data and keeps "
            "those that gained weight."
        ),
        family="adapter",
        trainable="Σ r(m + n) over the targets in the chosen blocks, and a classifier's head.",
        paper="2408.10774",
        bases=ADAPTS,
        refuses=REFUSES,
        merge_refuses=MERGE_REFUSES,
        mergeable="exactly",
        defaults={
            "r": 8,
            "alpha": 16,
            "target_modules": ["q_proj", "v_proj", "query", "value"],
            "search_steps": None,
            "validation_batches": 2,
            "gate_rate": 0.01,
        },
        defaults_source=(
            "rank, alpha and targets of the released code, which searches for an epoch of 5,000 items with 8 "
            "validation batches a step; here a quarter of the cell's steps, which are taken off its training, with 2; "
            "the gates' rate is ours"
        ),
        lr_factor=10.0,
        needs_search=True,
        unverified=True,
    )

    def groups(self, layers: list[Linear], model: nn.Module) -> list[int]:
        """A gate per block that has targets."""
        numbers = [block_of(layer, model) for layer in layers]
        order = sorted(set(numbers))
        return [order.index(number) for number in numbers]

    def opening(self, logits: torch.Tensor) -> torch.Tensor:
        """Their sum is the number of blocks: what one gains another loses."""
        return len(logits) * logits.softmax(0)

    def choose(self, logits: torch.Tensor, layers: list[Linear], model: nn.Module) -> frozenset[str]:
        """Layers of the blocks that gained; if none did, of the one that lost least."""
        open_ = logits > 0 if bool((logits > 0).any()) else logits == logits.max()
        return frozenset(
            layer.name for layer, group in zip(layers, self.groups(layers, model), strict=True) if bool(open_[group])
        )


def block_of(layer: Linear, model: nn.Module) -> int:
    """Number of the block that holds a layer."""
    prefix, _ = blocks(model)
    return int(layer.name.removeprefix(f"{prefix}.").split(".")[0])

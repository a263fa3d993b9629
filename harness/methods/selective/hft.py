"""HFT: half of the weights train, the other half keeps what the model knew (arXiv:2404.18466)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.baselines import ONLY_FP, InPlace
from harness.methods.modules import blocks, linears

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn


class HalfFineTuning(InPlace):
    """Half of every kind of weight in every block, drawn once with the cell's seed; all that is outside the blocks."""

    declaration: ClassVar[Declaration] = Declaration(
        name="hft",
        summary="Half of each block's attention, feed-forward and norm weights train; the rest keeps what was learned.",
        family="selective",
        trainable=(
            "Half of a block's attention matrices; of its feed-forward matrices two thirds in a random half of the "
            "blocks and one third in the others; half of its norms; everything outside the blocks."
        ),
        paper="2404.18466",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults_source="the paper's category-level draw; drawn once, as a run here is shorter than one of its rounds",
        in_place=True,
        unverified=True,
    )

    def facts(self) -> dict[str, Any]:
        """The drawn tensors of the blocks."""
        return {"trained": self._drawn}

    def attach(self, model: nn.Module) -> nn.Module:
        """Same as the base class; notes the drawn parameters."""
        model = super().attach(model)
        prefix, _ = blocks(model)
        self._drawn = [n for n, p in model.named_parameters() if p.requires_grad and n.startswith(f"{prefix}.")]
        return model

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """The drawn half; the same seed draws the same half."""
        chance = random.Random(self.setting.seed)
        prefix, layers = blocks(model)
        names = {layer.name for layer in linears(model)}
        many = set(chance.sample(range(len(layers)), len(layers) // 2))
        for index, block in enumerate(layers):
            inside = [name for name, _ in block.named_modules() if f"{prefix}.{index}.{name}" in names]
            attention = [name for name in inside if "attn" in name or "attention" in name]
            forward = [name for name in inside if name not in attention]
            norms = [
                name for name, m in block.named_modules() if name not in inside and list(m.parameters(recurse=False))
            ]
            share = 2 / 3 if index in many else 1 / 3
            for group, k in (
                (attention, len(attention) // 2),
                (forward, max(1, round(share * len(forward)))),
                (norms, len(norms) // 2),
            ):
                for name in chance.sample(group, k):
                    yield from block.get_submodule(name).parameters(recurse=False)
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{prefix}."):
                yield parameter

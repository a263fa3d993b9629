"""Shared by our low-rank adapters: rank and scale, LoRA's initialisation, and the weight that some start from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.methods import bases
from harness.methods.delta import REFUSES, WeightDelta
from harness.methods.modules import Linear
from harness.quantizers.layers import positive

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

TAKEN_OUT = "it takes a part of the weight out of the base, which a quantized layer would round again"
OUT_OF_SPARSE = "it takes a dense part of the weight out of the base; a sparse base would not stay sparse"
KEEPS_NO_BASE = {
    **bases.because(TAKEN_OUT, bases.QUANTIZED),
    **bases.because(OUT_OF_SPARSE, "sparse"),
    **REFUSES,
}
"""Refusals of adapters whose start is subtracted from the base's own weights."""


class LowRank(WeightDelta):
    """``dW = s (...)`` with s = alpha / r, and r at most the smaller side of the layer."""

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: an unknown parameter, or a rank that is not a positive whole number.
        """
        resolved = super().resolve(params, where=where)
        positive(f"r of method {cls.declaration.name!r}", resolved["r"], where)
        return resolved

    def rank(self, layer: Linear) -> int:
        """The rank on this layer."""
        return min(int(self.params["r"]), layer.inputs, layer.outputs)

    @property
    def scale(self) -> float:
        """s."""
        return float(self.params["alpha"]) / int(self.params["r"])


def kaiming(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """LoRA's start of A: uniform within 1 / sqrt(columns), [rows, columns]."""
    import torch

    drawn = torch.rand(rows, columns, generator=generator) * 2 - 1
    return drawn / math.sqrt(columns)


def whole(module: nn.Module) -> torch.Tensor:
    """The weight a layer computes with, quantized or not, in float32: [outputs, inputs]."""
    from harness.quantizers.measure import dequantize

    return dequantize(module).float()


def take_out(module: nn.Module, part: torch.Tensor) -> None:
    """W <- W - part, of a layer whose weight is in floating point."""
    import torch

    layer: Any = module
    with torch.no_grad():
        layer.weight.data.sub_(part.to(layer.weight.dtype))

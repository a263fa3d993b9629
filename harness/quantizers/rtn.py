"""Round to nearest: the plain baseline that runs anywhere and needs no library and no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.quantizers.base import Quantizer, QuantizerDeclaration
from harness.quantizers.layers import one_of, plain_linears, positive

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

    from harness.quantizers.packing import Grid, PackedLinear

BITS = (2, 3, 4, 8)
"""Widths that packing knows."""


class PackedQuantizer(Quantizer):
    """Base of the quantizers that keep their weights in :class:`~harness.quantizers.packing.PackedLinear`."""

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters, each checked against what the back end can do."""
        resolved = super().resolve(params, where=where)
        one_of("bits", resolved["bits"], BITS, where)
        one_of("symmetric", resolved["symmetric"], (True, False), where)
        positive("group_size", resolved["group_size"], where)
        return resolved

    @property
    def grid(self) -> Grid:
        """The grid of every layer."""
        from harness.quantizers.packing import Grid

        return Grid(self.params["bits"], self.params["group_size"], self.params["symmetric"])

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the body's linear layers."""
        import torch

        with torch.no_grad():
            for name, linear in plain_linears(model):
                model.set_submodule(name, self.convert(name, linear))
        return model

    def convert(self, name: str, linear: nn.Linear) -> PackedLinear:
        """The packed layer that takes the place of ``linear`` at module path ``name``."""
        raise NotImplementedError


class RTN(PackedQuantizer):
    """Every weight goes to the nearest point of its group's grid; no weight moves by more than half a step."""

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="rtn",
        parallel=frozenset({"ddp"}),
        summary="Round to nearest, 2, 3, 4 or 8 bits per weight, packed; runs anywhere, the anchor for all others.",
        base="rtn",
        bits=4,
        moments=frozenset({"before_training", "after_merge"}),
        defaults={"bits": 4, "group_size": 128, "symmetric": False},
        source="uniform affine quantization; groups of 128 as usual in arXiv:2210.17323",
    )

    def convert(self, name: str, linear: nn.Linear) -> PackedLinear:
        """The layer with every weight rounded."""
        from harness.quantizers.packing import PackedLinear

        weight, grid = linear.weight.data, self.grid
        scale, zero = grid.fit(weight)
        return PackedLinear(linear, grid, grid.encode(weight, scale, zero), scale, zero)

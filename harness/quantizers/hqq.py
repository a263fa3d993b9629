"""HQQ: half-quadratic quantization, through the ``hqq`` library (its path in transformers is not available)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.quantizers.base import Quantizer, QuantizerDeclaration
from harness.quantizers.layers import one_of, plain_linears, positive

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn


class HQQ(Quantizer):
    """Scales and zero points fitted to the weights alone, under a sparsity-promoting norm of the error.

    Source: Badri and Shaji 2023, mobiusml.github.io/hqq_blog.
    """

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="hqq",
        summary="Half-quadratic quantization to 8, 4, 3, 2 or 1 bits, without data.",
        base="hqq",
        bits=4,
        moments=frozenset({"before_training", "after_merge"}),
        package="hqq",
        pip="hqq==0.2.8.post1",
        defaults={"bits": 4, "group_size": 64},
        source="hqq BaseQuantizeConfig; bits 4 and groups of 64 are its defaults",
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters, each checked against what the back end can do."""
        resolved = super().resolve(params, where=where)
        one_of("bits", resolved["bits"], (8, 4, 3, 2, 1), where)
        positive("group_size", resolved["group_size"], where, multiple_of=8)
        return resolved

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the body's linear layers."""
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        for name, linear in plain_linears(model):
            config = BaseQuantizeConfig(nbits=self.params["bits"], group_size=self.params["group_size"], axis=1)
            weight = linear.weight
            layer = HQQLinear(linear, config, compute_dtype=weight.dtype, device=str(weight.device))
            model.set_submodule(name, layer.requires_grad_(False))
        return model

"""optimum-quanto: integer and float8 weights as tensor subclasses inside its own linear layers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from harness.quantizers.base import Quantizer, QuantizerDeclaration
from harness.quantizers.layers import plain_linears

if TYPE_CHECKING:  # heavy, and only for types
    from torch import Tensor, nn


class _Quanto(Quantizer):
    """Replace the body's linear layers by quanto's and freeze them."""

    qtype: ClassVar[str]

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the body's linear layers."""
        from optimum.quanto import QLinear, freeze, quantize

        quantize(model, weights=self.qtype, include=[name for name, _ in plain_linears(model)])
        freeze(model)
        for module in model.modules():
            if isinstance(module, QLinear):
                module.requires_grad_(False)
        return model


class _SubByte(_Quanto):
    """Codes packed into bytes, in groups of 128; quanto compiles the code that unpacks them at first use."""

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Also: what the compilation needs. A missing tool would show only in the first forward pass."""
        tools = ["ninja", "nvcc" if device == "cuda" else "c++"]
        lacking = [tool for tool in tools if shutil.which(tool) is None]
        reason = super().missing(device)
        if reason is None and lacking:
            reason = (
                f"{cls.declaration.name} compiles an extension at first use and finds no {' and no '.join(lacking)} on "
                "PATH: pip install ninja and activate its environment; apt install g++, or the CUDA toolkit"
            )
        return reason

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the body's linear layers."""
        import torch

        quantized = super().apply(model)
        for module in quantized.modules():
            if type(module).__name__ == "QLinear":
                module.forward = _leaving_inference_mode(module.forward)
        # compile now, within the quantize stage, and not in a stage that is measured
        device = next(model.parameters()).device
        torch.ops.quanto.unpack(torch.zeros(1, dtype=torch.uint8, device=device), int(self.declaration.bits))
        return quantized


def _leaving_inference_mode(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A layer's forward pass that also works inside ``torch.inference_mode``, where quanto cannot view its codes."""
    import torch

    def run(x: Tensor) -> Tensor:
        if not torch.is_inference_mode_enabled():
            return forward(x)
        with torch.inference_mode(mode=False), torch.no_grad():
            return forward(x)

    return run


def _declare(name: str, bits: float, summary: str, *, parallel: frozenset[str] = frozenset()) -> QuantizerDeclaration:
    return QuantizerDeclaration(
        name=name,
        parallel=parallel,
        summary=summary,
        base=name,
        bits=bits,
        moments=frozenset({"before_training", "after_merge"}),
        package="optimum.quanto",
        pip="optimum-quanto>=0.2.7",
        source="optimum-quanto quantize() and freeze(), weights only",
        refuses_merge="merging into a quanto weight changes a copy of it, and the merged model is silently wrong",
    )


class QuantoInt8(_Quanto):
    """int8, one scale per output row."""

    qtype = "qint8"
    declaration = _declare(
        "quanto-int8", 8, "quanto int8 weights, one scale per output row.", parallel=frozenset({"ddp"})
    )


class QuantoInt4(_SubByte):
    """int4 in groups of 128, packed."""

    qtype = "qint4"
    declaration = _declare("quanto-int4", 4, "quanto int4 weights, asymmetric in groups of 128, packed.")


class Int2(_SubByte):
    """int2 in groups of 128, packed."""

    qtype = "qint2"
    declaration = _declare("quanto-int2", 2, "quanto int2 weights, asymmetric in groups of 128, packed.")


class QuantoFloat8(_Quanto):
    """float8 (E4M3), one scale per output row."""

    qtype = "qfloat8"
    declaration = _declare("quanto-float8", 8, "quanto float8 (E4M3) weights, one scale per output row.")

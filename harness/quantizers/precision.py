"""Floating-point precisions: the unquantized reference, and 16-bit weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.quantizers.base import Quantizer, QuantizerDeclaration

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

_BOTH = frozenset({"before_training", "after_merge"})


_EPSILON = "AdamW's epsilon is zero in float16: weights trained in it become NaN at the first step without a gradient"

_RANKS = "peft makes AdaLoRA's rank counters trainable where it casts the adapter of a 16-bit base"

_NO_HALF_ADAMW = (
    *(
        "mezo",
        "sparse-mezo",
        "zo-sparse",
        "zo-sign",
        "zo-momentum",
        "zo-conservative",
        "zo-forward-grad",
        "zo-blockwise",
    ),
    *("lomo", "adalomo", "adamw-8bit"),
)
"""Methods that train weights in place without AdamW's epsilon in float16: its reason is not theirs."""


class NoQuantization(Quantizer):
    """The model as it is loaded, in the model's own dtype."""

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="none",
        summary="No quantization: weights stay in the model's dtype.",
        base="fp",
        bits=32,
        parallel=frozenset({"ddp", "fsdp"}),
        moments=_BOTH,
    )


class _Cast(Quantizer):
    """Cast every floating-point tensor of the model to one 16-bit dtype, head and norms included."""

    dtype: ClassVar[str]

    def apply(self, model: nn.Module) -> nn.Module:
        """Cast in place."""
        import torch

        return model.to(getattr(torch, self.dtype))


class BF16(_Cast):
    """bfloat16 weights and activations: 8 bits of exponent, 8 bits of precision."""

    dtype = "bfloat16"
    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="bf16",
        summary="All weights and activations in bfloat16 (slower than fp32 on CPUs without bf16 units).",
        base="fp",
        bits=16,
        moments=_BOTH,
        refuses={"adalora": _RANKS},
    )


class FP16(_Cast):
    """IEEE half precision weights and activations; small gradients underflow, nothing scales the loss."""

    dtype = "float16"
    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="fp16",
        summary="All weights and activations in float16, without loss scaling (very slow on CPUs).",
        base="fp",
        bits=16,
        moments=_BOTH,
        refuses={
            "in-place": _EPSILON,
            **dict.fromkeys(_NO_HALF_ADAMW, ""),
            **dict.fromkeys(("eva", "shadow", "ln-tuning", "llama-adapter", "longlora"), _EPSILON),
            "adalora": _RANKS,
        },
    )

"""PEQA: only the scales of quantized weights train, the integers stay (arXiv:2305.14152)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from harness.errors import Unsupported
from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.baselines import InPlace
from harness.methods.modules import classifier, count

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

    from harness.quantizers.packing import PackedLinear

NO_SCALES = "it trains the scales of quantized weights, and these are not quantized: take rtn, gptq or awq as the base"
HIDDEN_SCALES = "the library keeps its scales inside the quantized tensor, where no gradient reaches them"


class PEQA(InPlace):
    """``W = s (q - z)`` with q and z frozen: s, one number per group of a row, is what trains.

    The base is one of ours (``rtn``, ``gptq``, ``awq``), whose groups the quantizer sets. A fine-tuned model differs
    from its base in the scales alone, so that a task is switched by putting others in.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="peqa",
        summary="The integers of a quantized model stay as they are; only the scales they are multiplied with train.",
        family="quantized weights",
        trainable="Σ m·⌈n/group⌉ over the quantized layers, and a classifier's head.",
        paper="2305.14152v2",
        bases=bases.PACKED,
        refuses={
            **bases.because(NO_SCALES, bases.FLOAT),
            **bases.because(HIDDEN_SCALES, (bases.QUANTIZED | bases.DYNAMIC) - bases.PACKED),
        },
        mergeable="exactly",
        defaults_source="nothing to set: bits and groups are the quantizer's; the rate is ours",
        in_place=True,
        unverified=True,
    )

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """The scales, which become parameters here."""
        for layer in packed_layers(model):
            yield layer.train_scales()

    def expected_trainable(self, model: nn.Module) -> int | None:
        """A scale per group, and the classifier, without touching the layers."""
        head = classifier(model)
        scales = sum(layer.scale.numel() for layer in packed_layers(model))
        return scales + (count(head.parameters()) if head is not None else 0)


def packed_layers(model: nn.Module) -> list[PackedLinear]:
    """Our quantized layers.

    Raises:
        Unsupported: there is none.
    """
    from harness.quantizers.packing import PackedLinear

    found = [module for module in model.modules() if isinstance(module, PackedLinear)]
    if not found:
        raise Unsupported(NO_SCALES)
    return found

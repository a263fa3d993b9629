"""MAM adapter: a short prefix in the attention, a wide scaled parallel adapter at the feed-forward layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.methods.adapters.bottleneck import ADAPTS, REFUSES, BottleneckAdapter
from harness.methods.base import Declaration

if TYPE_CHECKING:  # heavy, and only for types
    from peft import PeftConfig
    from torch import nn

TASK_TYPES = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}


class MAM(BottleneckAdapter):
    """Prefix tuning (peft's) where few parameters do most, in attention; ``FFN(x) + s U relu(D x)`` for the rest.

    D is drawn and U begins at zero as LoRA's factors do. The prefix has no value that changes nothing, so that the
    model does not start as the base.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="mam",
        summary=(
            "Mix-and-match: trained keys and values precede the input's in attention, and a wide bottleneck runs "
            "parallel to every feed-forward layer."
        ),
        family="adapter",
        trainable=(
            "2bd at each block for the bottleneck, 2lk at each block for a prefix of l tokens and keys of width k in "
            "all; and a classifier's head."
        ),
        paper="2110.04366",
        bases=ADAPTS,
        refuses=REFUSES,
        mergeable="no",
        trains_cache=True,
        defaults={"bottleneck": 512, "function": "relu", "scale": 4.0, "prefix_tokens": 30},
        defaults_source=(
            "the paper: 30 prefix tokens, bottleneck 512, scale 4; its prefix is made by a small network during "
            "training, here its entries are trained themselves; the released bottleneck has biases, ours none; the "
            "rate is an adapter's"
        ),
        lr_factor=10.0,
        identity_at_start=False,
    )
    beside = True
    uniform = True

    def _prefix(self) -> PeftConfig:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            task_type=TASK_TYPES[self.setting.kind],
            num_virtual_tokens=int(self.params["prefix_tokens"]),
            prefix_projection=False,
        )

    def added(self, model: nn.Module) -> int:
        """The bottlenecks' and the prefix's."""
        from harness.methods.peft import param_counts

        return super().added(model) + param_counts.prefix((), self._prefix(), model)

    def attach(self, model: nn.Module) -> nn.Module:
        """Bottlenecks on the base, then peft's prefix around it, which freezes everything inside."""
        from peft import get_peft_model

        from harness.methods.adapters.network import NAME

        adapted: nn.Module = get_peft_model(super().attach(model), self._prefix())
        for name, parameter in adapted.named_parameters():
            if f".{NAME}." in name:
                parameter.requires_grad_(True)
        return adapted

"""torchao: weights as tensor subclasses inside ordinary ``nn.Linear`` layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from harness.quantizers.base import Quantizer, QuantizerDeclaration
from harness.quantizers.layers import one_of, plain_linears, positive

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn
    from torchao.core.config import AOBaseConfig

_BOTH = frozenset({"before_training", "after_merge"})
_PIP = "torchao>=0.18"


class _TorchAo(Quantizer):
    """Quantize the body's linear layers in place with one torchao configuration.

    The loaded model is converted instead of passing the configuration to ``from_pretrained``: transformers marks
    sub-byte torchao models as untrainable by the configuration's name, although adapters on them do train.
    """

    def config(self) -> AOBaseConfig:
        """The torchao configuration object (torchao 0.18 takes no strings)."""
        raise NotImplementedError

    def apply(self, model: nn.Module) -> nn.Module:
        from torchao.quantization import quantize_
        from transformers import TorchAoConfig
        from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

        linears = [linear for _, linear in plain_linears(model)]
        chosen = {id(linear) for linear in linears}
        quantize_(model, self.config(), filter_fn=lambda module, _: id(module) in chosen)
        for linear in linears:
            linear.requires_grad_(False)
        # read by peft to quantize a merged weight again, and by save_pretrained for the file layout
        settings = TorchAoConfig(self.config())
        model.hf_quantizer = TorchAoHfQuantizer(settings, pre_quantized=False)
        cast(Any, model).config.quantization_config = settings
        return model


class TorchaoInt8(_TorchAo):
    """Symmetric int8 weights, one scale per output row; activations stay in floating point."""

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="torchao-int8",
        summary="torchao int8 weight-only: one scale per output row, floating-point activations.",
        base="torchao-int8",
        bits=8,
        moments=_BOTH,
        package="torchao",
        pip=_PIP,
        source="torchao Int8WeightOnlyConfig",
    )

    def config(self) -> AOBaseConfig:
        """See the declaration's source."""
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig()


class Int8Dynamic(_TorchAo):
    """int8 weights, and activations rounded to int8 per token as they come. For inference."""

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="torchao-int8-dynamic",
        summary="torchao int8 weights with int8 dynamic activations; no gradient passes through.",
        base="torchao-int8-dynamic",
        bits=8,
        moments=_BOTH,
        package="torchao",
        pip=_PIP,
        source="torchao Int8DynamicActivationInt8WeightConfig",
        no_gradient="torchao's int8 dynamic activations pass no gradient to the layers below: adapters there learn "
        "through other adapters only, without any error",
        rounds_activations=True,
    )

    def config(self) -> AOBaseConfig:
        """See the declaration's source."""
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return Int8DynamicActivationInt8WeightConfig()


class IntX(_TorchAo):
    """Symmetric weights of 1 to 8 bits in groups. Every code takes a whole byte: rounding without the saving."""

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="torchao-intx",
        summary="torchao 1- to 8-bit weight-only; codes are kept in whole bytes, so 2 bits save no more than 8.",
        base="torchao-intx",
        bits=4,
        moments=_BOTH,
        package="torchao",
        pip=_PIP,
        defaults={"bits": 4, "group_size": 32},
        source="torchao IntxWeightOnlyConfig, unpacked to int8; groups of 32 as in its documentation",
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Defaults overlaid with the sweep's parameters, each checked against what the back end can do."""
        resolved = super().resolve(params, where=where)
        one_of("bits", resolved["bits"], tuple(range(1, 9)), where)
        positive("group_size", resolved["group_size"], where)
        return resolved

    def config(self) -> AOBaseConfig:
        """See the declaration's source."""
        import torch
        from torchao.quantization import IntxWeightOnlyConfig, PerGroup

        dtype = getattr(torch, f"int{self.params['bits']}")
        return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(self.params["group_size"]))


class TorchaoInt4(_TorchAo):
    """int4 weights in groups, packed for a CUDA kernel."""

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="torchao-int4",
        summary="torchao int4 weight-only with its CUDA kernel (compute in bfloat16).",
        base="torchao-int4",
        bits=4,
        devices=frozenset({"cuda"}),
        moments=_BOTH,
        package="mslk",
        pip="'torchao>=0.18' 'mslk>=1.0.0'",
        defaults={"group_size": 128},
        source="torchao Int4WeightOnlyConfig; groups of 128 are its default",
        no_gradient="peft does not wrap torchao's int4 weights (its torchao layer takes int8 only)",
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Defaults overlaid with the sweep's parameters, each checked against what the back end can do."""
        resolved = super().resolve(params, where=where)
        one_of("group_size", resolved["group_size"], (32, 64, 128, 256), where)
        return resolved

    def config(self) -> AOBaseConfig:
        """See the declaration's source."""
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(group_size=self.params["group_size"])


class TorchaoFloat8(_TorchAo):
    """float8 (E4M3) weights, one scale per output row; activations stay in floating point."""

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="torchao-float8",
        summary="torchao float8 (E4M3) weight-only, floating-point activations.",
        base="torchao-float8",
        bits=8,
        moments=_BOTH,
        package="torchao",
        pip=_PIP,
        source="torchao Float8WeightOnlyConfig",
    )

    def config(self) -> AOBaseConfig:
        """See the declaration's source."""
        from torchao.quantization import Float8WeightOnlyConfig

        return Float8WeightOnlyConfig()

"""bitsandbytes: LLM.int8() and the 4-bit float types of QLoRA, on CPU and CUDA."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import Unsupported
from harness.quantizers.base import Quantizer, QuantizerDeclaration
from harness.quantizers.layers import head_patterns, loaded_quantized, one_of, plain_linears

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

_BOTH = frozenset({"before_training", "after_merge"})
_COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_TRANSFORMERS_BLOCK_SIZE = 64  # the only one its BitsAndBytesConfig can ask for


class BnbInt8(Quantizer):
    """LLM.int8(): one int8 scale per output row; activations above ``threshold`` are computed in 16 bits.

    Source: Dettmers et al. 2022, arXiv:2208.07339, section 3.
    """

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="bnb-int8",
        summary="bitsandbytes LLM.int8(): row-wise int8 weights, outlier activations kept apart, products in float16.",
        base="bnb-int8",
        bits=8,
        moments=_BOTH,
        package="bitsandbytes",
        pip="bitsandbytes>=0.50",
        defaults={"threshold": 6.0},
        source="arXiv:2208.07339; threshold as in section 3.2",
        rounds_activations=True,
    )

    def load_kwargs(self) -> dict[str, object]:
        """Let ``from_pretrained`` quantize while it loads."""
        from transformers import BitsAndBytesConfig

        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_8bit=True,
                llm_int8_threshold=float(self.params["threshold"]),
                llm_int8_skip_modules=head_patterns(self.kind),
            )
        }

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert a model that was loaded in full precision."""
        # it says for every layer and step that products are computed in float16; the declaration says it once
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        if loaded_quantized(model):
            return model
        from bitsandbytes.nn import Int8Params, Linear8bitLt

        for name, linear in plain_linears(model):
            weight = linear.weight
            layer = Linear8bitLt(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                has_fp16_weights=False,
                threshold=float(self.params["threshold"]),
                device="meta",
            )
            layer.weight = Int8Params(weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
            layer.bias = linear.bias
            model.set_submodule(name, layer.to(weight.device).requires_grad_(False))
        model.is_loaded_in_8bit = True  # type: ignore[assignment] # how peft recognises the layers
        return model


class _FourBit(Quantizer):
    """Blocks of ``block_size`` weights share one absolute maximum; 4-bit codes index a fixed table of values.

    On a CPU the block size must divide the length of a row: where it does not, the library's CPU decoder reads the
    scales of other blocks (bitsandbytes 0.50: weights of 96 columns in blocks of 64 come back with a relative error of
    0.24 instead of 0.09, without a word). There the largest block size that divides the row is taken, and recorded.
    """

    quant_type: ClassVar[str]

    def __init__(self, params: Mapping[str, object], kind: str, device: str = "cpu") -> None:
        super().__init__(params, kind, device)
        self.block_sizes: Counter[int] = Counter()

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters, each checked against what the back end can do."""
        resolved = super().resolve(params, where=where)
        one_of("compute_dtype", resolved["compute_dtype"], _COMPUTE_DTYPES, where)
        one_of("block_size", resolved["block_size"], _BLOCK_SIZES, where)
        one_of("double_quant", resolved["double_quant"], (True, False), where)
        return resolved

    def load_kwargs(self) -> dict[str, object]:
        """Let ``from_pretrained`` quantize while it loads, where it knows the block size."""
        if self.params["block_size"] != _TRANSFORMERS_BLOCK_SIZE or self.device == "cpu":
            return {}  # apply() does it, and sees the rows
        from transformers import BitsAndBytesConfig

        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=self.quant_type,
                bnb_4bit_use_double_quant=bool(self.params["double_quant"]),
                llm_int8_skip_modules=head_patterns(self.kind),
            )
        }

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert a model that was loaded in full precision, and set the compute dtype."""
        import torch
        from bitsandbytes.nn import Linear4bit

        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        if self.params["compute_dtype"] != "auto":
            dtype = getattr(torch, self.params["compute_dtype"])
        if not loaded_quantized(model):
            self._convert(model)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.compute_dtype, module.compute_type_is_set = dtype, True
                # On CPUs with AVX512-BF16 the first forward in eval mode would turn the weight into an
                # inference-only layout. A later training step then passes no gradient through the layer, and a
                # merge reads the codes in the wrong order: both without an error.
                module.support_avx512bf16_for_cpu = False
        return model

    def _convert(self, model: nn.Module) -> None:
        from bitsandbytes.nn import Linear4bit, Params4bit

        for name, linear in plain_linears(model):
            weight = linear.weight
            block_size = self._block_size(name, linear.in_features)
            self.block_sizes[block_size] += 1
            layer = Linear4bit(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
            layer.weight = Params4bit(
                weight.data.cpu(),
                requires_grad=False,
                blocksize=block_size,
                compress_statistics=bool(self.params["double_quant"]),
                quant_type=self.quant_type,
                module=layer,
            )
            layer.bias = linear.bias
            model.set_submodule(name, layer.to(weight.device).requires_grad_(False))
        model.is_loaded_in_4bit = True  # type: ignore[assignment] # how peft recognises the layers

    def _block_size(self, name: str, columns: int) -> int:
        wanted = int(self.params["block_size"])
        if self.device != "cpu":
            return wanted
        fitting = [size for size in _BLOCK_SIZES if size <= wanted and columns % size == 0]
        if not fitting:
            raise Unsupported(
                f"bitsandbytes decodes rows wrongly on a CPU unless a block divides them: {name} has {columns}"
            )
        return max(fitting)

    def facts(self) -> dict[str, Any]:
        """Layers by the block size they got."""
        return {"layers_by_block_size": {str(size): n for size, n in sorted(self.block_sizes.items())}}


_FOUR_BIT_DEFAULTS = {"block_size": 64, "double_quant": False, "compute_dtype": "auto"}
_FOUR_BIT_SOURCE = "arXiv:2305.14314; block size 64 as in section 3; double quantization is off unless asked for"


class NF4(_FourBit):
    """4-bit NormalFloat: the 16 values are quantiles of a normal distribution (Dettmers et al. 2023)."""

    quant_type = "nf4"
    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="bnb-nf4",
        summary="bitsandbytes 4-bit NormalFloat, the type of QLoRA; double quantization by parameter.",
        base="bnb-nf4",
        bits=4,
        moments=_BOTH,
        package="bitsandbytes",
        pip="bitsandbytes>=0.50",
        defaults=_FOUR_BIT_DEFAULTS,
        source=_FOUR_BIT_SOURCE,
    )


class FP4(_FourBit):
    """4-bit float: one sign, two exponent bits, one mantissa bit."""

    quant_type = "fp4"
    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="bnb-fp4",
        summary="bitsandbytes 4-bit float (E2M1); double quantization by parameter.",
        base="bnb-fp4",
        bits=4,
        moments=_BOTH,
        package="bitsandbytes",
        pip="bitsandbytes>=0.50",
        defaults=_FOUR_BIT_DEFAULTS,
        source=_FOUR_BIT_SOURCE,
    )

"""Checkpoints that were quantized elsewhere: transformers reads how from the model's own configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.errors import UserError
from harness.quantizers.autoround import NO_ADAPTERS
from harness.quantizers.base import Quantizer, QuantizerDeclaration

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn


class _Prequantized(Quantizer):
    """Load as it is, and make sure that the checkpoint is what the cell says."""

    methods: ClassVar[frozenset[str]]

    def apply(self, model: nn.Module) -> nn.Module:
        """Check the loaded model.

        Raises:
            UserError: it is not quantized, or in another way or width than the cell says.
        """
        config = getattr(getattr(model, "config", None), "quantization_config", None)
        found = config if isinstance(config, dict) else vars(config) if config is not None else {}
        method = str(getattr(found.get("quant_method"), "value", found.get("quant_method")))
        bits = found.get("bits", self.params["bits"])
        if method not in self.methods or bits != self.params["bits"]:
            what = f"quantized with {method} at {bits} bits" if found else "not quantized"
            raise UserError(
                f"{self.declaration.name} at {self.params['bits']} bits needs such a checkpoint; this one is {what}",
                fix="Name the checkpoint's own kind and bits in the sweep, or another model.",
            )
        return model


class GPTQCheckpoint(_Prequantized):
    """A checkpoint in GPTQ's format."""

    methods = frozenset({"gptq"})
    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="prequantized-gptq",
        summary="A checkpoint already quantized with GPTQ, loaded as it is with gptqmodel's kernels.",
        base="gptq",
        bits=4,
        package="gptqmodel",
        pip="gptqmodel==7.7.0 optimum==2.3.0",
        environment="gptq",
        defaults={"bits": 4},
        source="transformers GPTQConfig in the checkpoint; gptqmodel 7.7 asks for torch>=2.14.1, see runners/envs/",
    )


class AWQCheckpoint(_Prequantized):
    """A checkpoint in AWQ's format."""

    methods = frozenset({"awq"})
    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="prequantized-awq",
        summary="A checkpoint already quantized with AWQ, loaded as it is with gptqmodel's kernels.",
        base="awq",
        bits=4,
        package="gptqmodel",
        pip="gptqmodel==7.7.0 optimum==2.3.0",
        environment="gptq",
        defaults={"bits": 4},
        source="transformers AwqConfig in the checkpoint; gptqmodel 7.7 asks for torch>=2.14.1, see runners/envs/",
    )


class AutoRoundCheckpoint(_Prequantized):
    """A checkpoint in AutoRound's format."""

    methods = frozenset({"auto-round"})
    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="prequantized-autoround",
        summary="A checkpoint already quantized with AutoRound, loaded as it is; for inference.",
        base="autoround",
        bits=4,
        package="auto_round",
        pip="auto-round==0.16.1",
        defaults={"bits": 4},
        source="transformers AutoRoundConfig in the checkpoint",
        no_gradient=NO_ADAPTERS,
        refuses_merge="peft does not wrap AutoRound's layers",
    )

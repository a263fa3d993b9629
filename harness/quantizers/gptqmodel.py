"""GPTQ and AWQ by the ``gptqmodel`` library, in the side environment ``gptq``: their checkpoint formats and kernels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import Unsupported
from harness.quantizers.base import QuantizerDeclaration
from harness.quantizers.checkpoints import CheckpointQuantizer
from harness.quantizers.layers import one_of

if TYPE_CHECKING:  # heavy, and only for types
    from gptqmodel import QuantizeConfig
    from torch import nn

_GROUP_SIZES = (16, 32, 64, 128)
_AWQ_ROWS = 64


class _GPTQModel(CheckpointQuantizer):
    """Quantize with the library, load through transformers with its plain torch kernel unless another is asked for."""

    kernels: ClassVar[tuple[str, ...]]

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters, each checked against what the back end can do."""
        resolved = super().resolve(params, where=where)
        one_of("bits", resolved["bits"], (4, 8), where)
        one_of("group_size", resolved["group_size"], _GROUP_SIZES, where)
        one_of("kernel", resolved["kernel"], cls.kernels, where)
        return resolved

    def apply(self, model: nn.Module) -> nn.Module:
        """See :class:`CheckpointQuantizer`. On a CPU the kernel runs as written: its compilation takes minutes."""
        import torch

        if self.device == "cpu":
            torch.compiler.set_stance("force_eager")
        return super().apply(model)

    def write(self, source: Path, target: Path) -> None:
        """See :class:`CheckpointQuantizer`.

        Raises:
            Unsupported: the library does not know the architecture.
        """
        # its pools want as many threads as it counts cores, and find fewer where the cell is pinned to one
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
        from gptqmodel import GPTQModel
        from gptqmodel.models.auto import MODEL_MAP
        from transformers import AutoConfig

        source, target = source.resolve(), target.resolve()
        kind = AutoConfig.from_pretrained(source).model_type
        if kind not in MODEL_MAP:
            raise Unsupported(f"gptqmodel does not know the architecture {kind!r}")
        with contextlib.chdir(source.parent):  # it writes logs into the current folder
            model = GPTQModel.load(str(source), self.settings(), device="cpu" if self.device == "cpu" else "cuda:0")
            model.quantize(self.rows, batch_size=1)
            model.save(str(target))

    def settings(self) -> QuantizeConfig:
        """The library's ``QuantizeConfig``."""
        raise NotImplementedError


def _declare(name: str, summary: str, base: str, source: str, **defaults: object) -> QuantizerDeclaration:
    return QuantizerDeclaration(
        name=name,
        summary=summary,
        base=base,
        bits=4,
        moments=frozenset({"before_training", "after_merge"}),
        package="gptqmodel",
        pip="gptqmodel==7.7.0 optimum==2.3.0",
        environment="gptq",
        defaults={"bits": 4, "group_size": 128, **defaults},
        source=source,
        refuses_merge="peft does not merge into gptqmodel's layers",
        calibration_batches=4,
    )


class LibraryGPTQ(_GPTQModel):
    """GPTQ in the library's defaults: columns in their order, symmetric grid, scales from the activations' order."""

    kernels = ("gptq_torch", "auto_trainable", "auto")
    declaration: ClassVar[QuantizerDeclaration] = _declare(
        "gptqmodel-gptq",
        "GPTQ by the gptqmodel library, which also quantizes on a CPU; its checkpoint format and kernels.",
        "gptq",
        "arXiv:2210.17323; gptqmodel QuantizeConfig, its defaults but for what is a parameter here",
        kernel="gptq_torch",
    )

    def settings(self) -> QuantizeConfig:
        """See the base class."""
        from gptqmodel import QuantizeConfig

        p = self.params
        return QuantizeConfig(bits=p["bits"], group_size=p["group_size"], offload_to_disk=False)

    def reading(self) -> dict[str, object]:
        """The kernel; the library's own choice on a CPU compiles one for minutes that cannot train."""
        from transformers import GPTQConfig

        return {"quantization_config": GPTQConfig(bits=self.params["bits"], backend=self.params["kernel"])}


class LibraryAWQ(_GPTQModel):
    """AWQ in the library's defaults: asymmetric grid, the scale folded into the layer before, weights clipped."""

    kernels = ("torch_awq", "auto_trainable", "auto")
    declaration: ClassVar[QuantizerDeclaration] = _declare(
        "gptqmodel-awq",
        "AWQ by the gptqmodel library, which also quantizes on a CPU; its checkpoint format and kernels.",
        "awq",
        "arXiv:2306.00978; gptqmodel QuantizeConfig, its defaults but for what is a parameter here",
        kernel="torch_awq",
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Four bits is what the library's AWQ format holds."""
        resolved = super().resolve(params, where=where)
        one_of("bits", resolved["bits"], (4,), where)
        return resolved

    @classmethod
    def unfit(cls, rows: int, columns: int, params: Mapping[str, object]) -> str | None:
        """Also: the search for the clipping threshold takes 64 output rows at a time and asserts that none is left."""
        if rows % _AWQ_ROWS:
            return f"{cls.declaration.name}: it takes weights of a multiple of {_AWQ_ROWS} rows, not {rows}"
        return super().unfit(rows, columns, params)

    def settings(self) -> QuantizeConfig:
        """See the base class."""
        from gptqmodel import QuantizeConfig
        from gptqmodel.quantization.config import FORMAT, METHOD

        p = self.params
        return QuantizeConfig(
            bits=p["bits"], group_size=p["group_size"], method=METHOD.AWQ, format=FORMAT.GEMM, offload_to_disk=False
        )

    def reading(self) -> dict[str, object]:
        """The kernel."""
        from transformers import AwqConfig

        return {"quantization_config": AwqConfig(bits=self.params["bits"], backend=self.params["kernel"])}

"""AdamW of bitsandbytes: states in 8 bits (arXiv:2110.02861), and states that move to the host when memory is short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError, shown
from harness.methods.base import Declaration
from harness.methods.baselines import Full
from harness.methods.modules import trainable
from harness.methods.optimizers.galore import lacks, low_rank_row

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class AdamW8bit(Full):
    """Full fine-tuning with two bytes of optimizer state a weight instead of eight."""

    declaration: ClassVar[Declaration] = low_rank_row(
        "adamw-8bit",
        "Full fine-tuning with AdamW's states in 8 bits, a scale for every 256; tensors below 4096 entries keep 32.",
        "2110.02861",
        defaults={},
        defaults_source="bitsandbytes' own",
    )

    @classmethod
    def missing(cls, params: Mapping[str, object]) -> str | None:
        """The package bitsandbytes."""
        return lacks("bitsandbytes", "bitsandbytes", cls.declaration.name)

    def _class(self) -> Any:
        from bitsandbytes.optim import AdamW8bit as PackageAdamW

        return PackageAdamW

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """bitsandbytes' AdamW over everything that trains."""
        made: torch.optim.Optimizer = self._class()(trainable(model), **self.setting.adamw)
        return made


class PagedAdamW(AdamW8bit):
    """AdamW with its states in unified memory: the driver moves them to the host when the GPU is full."""

    declaration: ClassVar[Declaration] = low_rank_row(
        "adamw-paged",
        "Full fine-tuning with AdamW's states in memory that the driver pages out to the host when the GPU is full.",
        "2305.14314",
        defaults={"bits": 32},
        defaults_source="32-bit states as in QLoRA's recipe; 8 is bitsandbytes' other one",
        devices=frozenset({"cuda"}),
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Same as the base class; bits are 8 or 32.

        Raises:
            UserError: another number of bits.
        """
        resolved = super().resolve(params, where=where)
        if resolved["bits"] not in (8, 32):
            raise UserError(f"bits of adamw-paged must be 8 or 32, not {shown(resolved['bits'])}", where=where)
        return resolved

    def _class(self) -> Any:
        from bitsandbytes import optim

        return optim.PagedAdamW8bit if self.params["bits"] == 8 else optim.PagedAdamW32bit

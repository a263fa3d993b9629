"""DiffoRA: LoRA on the modules that a differentiable selection kept (arXiv:2502.08905)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods.base import Declaration, Setting
from harness.methods.delta import ADAPTS, MERGE_REFUSES, REFUSES
from harness.methods.gated.flexora import block_of
from harness.methods.gated.lora import DOWN, UP, SearchedLora
from harness.methods.modules import Linear

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class DiffoRA(SearchedLora):
    """LoRA of every module has a gate ``sig(a)``; of the N modules of a block the round(rho N) with the largest a are
    kept, with the factors that the search has trained, and trained further.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="diffora",
        summary=(
            "LoRA on some modules of every block: a search beforehand learns a gate for each module on validation data "
            "and keeps those that opened widest."
        ),
        family="adapter",
        trainable="Σ r(m + n) over the chosen modules, round(rho·N) of a block's N, and a classifier's head.",
        paper="2502.08905",
        bases=ADAPTS,
        refuses=REFUSES,
        merge_refuses=MERGE_REFUSES,
        mergeable="exactly",
        defaults={
            "r": 8,
            "alpha": 16,
            "target_modules": "all-linear",
            "rho": 0.5,
            "search_steps": None,
            "validation_batches": 2,
            "gate_rate": 0.01,
        },
        defaults_source=(
            "LoRA's shape as in this harness's other rows; the share and the search's numbers are ours; the search "
            "takes a quarter of the cell's steps, so that no row has more of them"
        ),
        lr_factor=10.0,
        identity_at_start=False,
        needs_search=True,
        unverified=True,
    )

    def __init__(self, params: Mapping[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self._kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def groups(self, layers: list[Linear], model: nn.Module) -> list[int]:
        """A gate per module."""
        return list(range(len(layers)))

    def opening(self, logits: torch.Tensor) -> torch.Tensor:
        """Each for itself."""
        return logits.sigmoid()

    def choose(self, logits: torch.Tensor, layers: list[Linear], model: nn.Module) -> frozenset[str]:
        """The widest of every block, at least one."""
        by_block: dict[int, list[tuple[float, str]]] = {}
        for layer, logit in zip(layers, logits.tolist(), strict=True):
            by_block.setdefault(block_of(layer, model), []).append((-logit, layer.name))
        rho = float(self.params["rho"])
        return frozenset(
            name for found in by_block.values() for _, name in sorted(found)[: max(1, round(rho * len(found)))]
        )

    def keep(self, model: nn.Module, opened: torch.Tensor) -> bool:
        """The factors of all modules, until it is known which are chosen; B times its gate, which is then taken off."""
        for gate, layer in zip(opened.tolist(), self.targets(model), strict=True):
            module: Any = model.get_submodule(layer.name)
            self._kept[layer.name] = (module.gated_down.detach().clone(), gate * module.gated_up.detach())
        return True

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """As the search left it, where there was one."""
        super().place(module, layer, generator)
        for name, values in zip((DOWN, UP), self._kept.get(layer.name, ()), strict=False):
            module.get_parameter(name).data.copy_(values)

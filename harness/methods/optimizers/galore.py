"""GaLore: Adam in a low-rank subspace of the gradient, which moves with it (arXiv:2403.03507)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration, Setting
from harness.methods.baselines import ONLY_FP, Full
from harness.methods.modules import blocks, linears

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class GaLore(Full):
    """Full fine-tuning; the states of the blocks' matrices live in rank r."""

    declaration: ClassVar[Declaration] = Declaration(
        name="galore",
        summary="Every weight trains, but Adam's states are kept in a low-rank subspace of the gradient.",
        family="optimizer",
        trainable="All parameters.",
        paper="2403.03507v2",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"rank": 8, "update_gap": 200, "scale": 1.0},
        defaults_source="rank as in the paper's GLUE runs; gap and scale are ours: at 1 the rate is full's",
        in_place=True,
    )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW whose states are projected for the matrices of the blocks."""
        return projected_adamw(model, self.params, self.setting)


def projected_adamw(model: nn.Module, params: Mapping[str, Any], setting: Setting) -> torch.optim.Optimizer:
    """AdamW over the whole model whose states are projected for the matrices of the blocks.

    Args:
        model: the model.
        params: ``rank``, ``update_gap`` and ``scale``.
        setting: learning rate, betas and weight decay.
    """
    from harness.methods.optimizers.projected import ProjectedAdamW

    prefix, _ = blocks(model)
    inside = {f"{layer.name}.weight" for layer in linears(model) if layer.name.startswith(f"{prefix}.")}
    projected = [p for n, p in model.named_parameters() if n in inside]
    others = [p for n, p in model.named_parameters() if n not in inside]
    return ProjectedAdamW(
        [{"params": projected, "rank": int(params["rank"])}, {"params": others, "rank": None}],
        lr=setting.learning_rate,
        betas=setting.betas,
        weight_decay=setting.weight_decay,
        update_gap=int(params["update_gap"]),
        scale=float(params["scale"]),
    )

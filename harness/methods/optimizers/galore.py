"""GaLore: Adam in a low-rank subspace of the gradient, which moves with it (arXiv:2403.03507)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration
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
        from harness.methods.optimizers.projected import ProjectedAdamW

        prefix, _ = blocks(model)
        inside = {f"{layer.name}.weight" for layer in linears(model) if layer.name.startswith(f"{prefix}.")}
        projected = [p for n, p in model.named_parameters() if n in inside]
        others = [p for n, p in model.named_parameters() if n not in inside]
        s = self.setting
        return ProjectedAdamW(
            [{"params": projected, "rank": int(self.params["rank"])}, {"params": others, "rank": None}],
            lr=s.learning_rate,
            betas=s.betas,
            weight_decay=s.weight_decay,
            update_gap=int(self.params["update_gap"]),
            scale=float(self.params["scale"]),
        )

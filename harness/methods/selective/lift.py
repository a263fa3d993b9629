"""LIFT: weights that are large in a low-rank approximation of the matrix are trained (arXiv:2506.00772)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.baselines import ONLY_FP, InPlace
from harness.methods.modules import blocks, classifier, count, linears

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

    from harness.methods.optimizers.base import Group


class LIFT(InPlace):
    """Of each matrix the (m + n) ``rank`` entries train that are largest in its best approximation of rank ``picture``.

    They are chosen again every ``interval`` steps. Adam's states exist for the chosen entries alone; those of an entry
    that stays go with it.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="lift",
        summary="Trains the few weights of each matrix that are largest in its low-rank approximation.",
        family="selective",
        trainable="The linear weights of the blocks, of which (m + n)·rank entries each move at a time, and a head.",
        paper="2506.00772",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"rank": 4, "picture": 8, "interval": 10},
        defaults_source=(
            "interval as in the released script, whose ranks of 128 are for 7B models; its rate is ten times full's"
        ),
        lr_factor=10.0,
        in_place=True,
        revision=2,
    )

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """Weights of the blocks' linear layers."""
        prefix, _ = blocks(model)
        for layer in linears(model):
            if layer.name.startswith(f"{prefix}."):
                yield model.get_parameter(f"{layer.name}.weight")

    def active_parameters(self, model: nn.Module) -> int:
        """(m + n)·rank of every matrix, and a classifier's head."""
        head = classifier(model)
        rank = int(self.params["rank"])
        own = sum(min(sum(p.shape) * rank, p.numel()) for p in self.chosen(model))
        return own + (count(head.parameters()) if head is not None else 0)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW on the chosen entries; on all of a classifier's head."""
        from harness.methods.selective.principal import PrincipalAdamW

        head = classifier(model)
        heads: list[nn.Parameter] = list(head.parameters()) if head is not None else []
        groups: list[Group] = [{"params": list(self.chosen(model)), "rank": int(self.params["rank"])}]
        if heads:
            groups.append({"params": heads, "rank": None})
        return PrincipalAdamW(
            groups,
            **self.setting.adamw,
            picture=int(self.params["picture"]),
            interval=int(self.params["interval"]),
        )

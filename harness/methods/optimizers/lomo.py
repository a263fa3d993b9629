"""LOMO and AdaLOMO: full fine-tuning in which no two gradients are in memory at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods.base import Batch, Declaration
from harness.methods.baselines import Full
from harness.methods.modules import trainable
from harness.methods.optimizers.galore import low_rank_row

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class Lomo(Full):
    """Plain gradient descent, fused with the backward pass: neither gradients nor optimizer state are kept."""

    optimizer_class: ClassVar[str] = "FusedSGD"
    declaration: ClassVar[Declaration] = low_rank_row(
        "lomo",
        "Plain gradient descent whose update happens inside the backward pass: no gradient outlives its own tensor.",
        "2306.09782v2",
        defaults={"clip": 1.0},
        defaults_source="clipping by the common norm takes a second backward pass, as in the paper and the released "
        "code, which clips only if asked to; 0 leaves both out; the rate is ours: Adam does not lengthen these steps",
        lr_factor=100.0,
    )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Hooks on every parameter; for the schedule it is an optimizer."""
        from harness.methods.optimizers import fused

        s = self.setting
        made: Any = getattr(fused, self.optimizer_class)
        self._optimizer = made(
            trainable(model),
            lr=s.learning_rate,
            weight_decay=s.weight_decay,
            clip=float(self.params["clip"]),
        )
        optimizer: torch.optim.Optimizer = self._optimizer
        return optimizer

    def training_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Forward, and a backward pass that leaves no gradient behind."""
        outputs = model(**batch)
        loss = self.loss(outputs, batch, outputs.loss)
        self._optimizer.backward(loss)
        return loss.detach()

    def expects_gradient(self, name: str) -> bool:
        """None is left when the probe looks."""
        return False

    def expects_change(self, name: str) -> bool:
        """All but a bias on keys without rotary positions, which moves all scores of a query alike."""
        return not name.endswith("key.bias")


class AdaLomo(Lomo):
    """LOMO with a factored second moment and steps of each tensor's own scale."""

    optimizer_class = "FusedAdafactor"
    declaration: ClassVar[Declaration] = low_rank_row(
        "adalomo",
        "LOMO with Adafactor's second moment, a row and a column a matrix, and steps relative to each tensor's size.",
        "2310.10195v3",
        defaults={"clip": 0.0},
        defaults_source="no clipping of the common norm: each tensor's step is limited by itself; the rate, 25 times "
        "AdamW's, is that of the paper's instruction tuning; constants and order of the update as in the released code",
        lr_factor=25.0,
    )

"""APOLLO and APOLLO-Mini: Adam only says how long the step of each channel, or each matrix, is (arXiv:2412.05270)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from harness.methods.base import Declaration
from harness.methods.baselines import Full
from harness.methods.budget import never_renewed
from harness.methods.optimizers.galore import low_rank_row, projected_adamw

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

SOURCE = (
    "rank and gap as in our GaLore row; the paper's factor √(m/r) is applied outside `scale`, so that at 1 the rate is "
    "full's"
)


class Apollo(Full):
    """Full fine-tuning along the raw gradient, one learning rate a channel."""

    per_channel: ClassVar[bool] = True
    declaration: ClassVar[Declaration] = low_rank_row(
        "apollo",
        "Every weight moves along its raw gradient, scaled per channel by what Adam does to a random projection.",
        "2412.05270",
        defaults={"rank": 8, "update_gap": None, "scale": 1.0},
        defaults_source=SOURCE,
    )

    @classmethod
    def remark(cls, params: Mapping[str, object], steps: int) -> str | None:
        """True if the projection changes."""
        return never_renewed(params, steps)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Our own: pytorch-optimizer 4.1 scales the projected gradient, so that its step stays in a random subspace."""
        own = {"per_channel": self.per_channel, "seed": self.setting.seed}
        return projected_adamw(model, self.params, self.setting, "ApolloAdamW", **own)


class ApolloMini(Apollo):
    """APOLLO with rank 1 and one learning rate a matrix."""

    per_channel = False
    declaration: ClassVar[Declaration] = low_rank_row(
        "apollo-mini",
        "APOLLO with one factor a matrix, from a projection of rank 1: hardly more optimizer state than SGD.",
        "2412.05270",
        defaults={"rank": 1, "update_gap": None, "scale": 1.0},
        defaults_source=f"rank 1 is the paper's; {SOURCE}",
    )

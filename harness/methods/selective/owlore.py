"""OwLore: LISA's sampling, weighted by outliers, with GaLore's projection (arXiv:2405.18380)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Batch, Declaration, Setting
from harness.methods.baselines import ONLY_FP
from harness.methods.modules import blocks, linears
from harness.methods.selective.lisa import Lisa

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

CALIBRATION_BATCHES = 4


class OwLore(Lisa):
    """Blocks are drawn in proportion to their share of outliers; the drawn ones' matrices are trained in rank r.

    An entry w_ij is an outlier where ``|w_ij| ||x_j||`` (x_j: the j-th input over all tokens of a calibration) is more
    than ``threshold`` times the mean over its block. Blocks without any are drawn last, each as likely as the others.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="owlore",
        summary=(
            "As LISA, but blocks whose weights hold more outliers are drawn more often, and what is awake keeps Adam's "
            "states in a low-rank subspace of the gradient."
        ),
        family="selective",
        trainable="All parameters, though never all at once.",
        paper="2405.18380",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"active": 2, "interval": 20, "rank": 8, "update_gap": 100, "scale": 1.0, "threshold": 13.0},
        defaults_source=(
            "gap, scale and threshold as in the released code, whose 5 blocks, 50 steps and rank 256 are for 7B "
            "models; here blocks and steps as in LISA and the rank as in GaLore's small runs"
        ),
        in_place=True,
    )

    def __init__(self, params: dict[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self.outliers: list[float] | None = None

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> dict[str, Any]:
        """The share of outliers of every block, on a few batches; the model is left as it is."""
        _, layers = blocks(model)
        names = {layer.name for layer in linears(model)}
        squares, hooks = {}, []
        for name, module in model.named_modules():
            if name in names:
                squares[module] = _Squares()
                hooks.append(module.register_forward_pre_hook(squares[module]))
        import torch

        with torch.no_grad():
            for batch in batches(CALIBRATION_BATCHES):
                model(**batch)
        for hook in hooks:
            hook.remove()
        self.outliers = [
            outlier_share(
                [(m.weight, squares[m].total.sqrt()) for m in block.modules() if m in squares],  # type: ignore[misc]  # a linear layer's weight
                float(self.params["threshold"]),
            )
            for block in layers
        ]
        return {"outlier_shares": self.outliers, "drawn_by_outliers": any(self.outliers)}

    def draw(self, depth: int, chance: random.Random) -> set[int]:
        """Without replacement, in proportion to the share of outliers.

        Raises:
            RuntimeError: the shares are not known, because :meth:`calibrate` was not called.
        """
        if self.outliers is None:
            raise RuntimeError("owlore weighs its blocks in calibrate, which was not called")
        left = list(range(depth))
        drawn: set[int] = set()
        while left and len(drawn) < int(self.params["active"]):
            weights = [self.outliers[index] for index in left]
            index = chance.choices(left, weights if any(weights) else None)[0]
            drawn.add(index)
            left.remove(index)
        return drawn

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with projected states for the matrices of the blocks; a block that wakes begins with a new subspace."""
        from harness.methods.optimizers.galore import projected_adamw

        self._optimizer = projected_adamw(model, self.params, self.setting)
        return self._optimizer


class _Squares:
    """A hook that adds up the squares of each input channel."""

    def __init__(self) -> None:
        self.total: torch.Tensor

    def __call__(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found = inputs[0].detach().float().flatten(0, -2).square().sum(0)
        self.total = self.total + found if hasattr(self, "total") else found


def outlier_share(layers: list[tuple[torch.Tensor, torch.Tensor]], threshold: float) -> float:
    """Share of the entries with ``|w_ij| ||x_j||`` above ``threshold`` times their mean, over all matrices of a block.

    Args:
        layers: weights, [outputs, inputs], and the norms of their inputs, [inputs].
        threshold: how many times the mean.
    """
    sizes = [weight.numel() for weight, _ in layers]
    total = sum(float((weight.detach().float().abs() * norms).sum()) for weight, norms in layers)
    limit = threshold * total / sum(sizes)
    above = sum(int((weight.detach().float().abs() * norms > limit).sum()) for weight, norms in layers)
    return above / sum(sizes)

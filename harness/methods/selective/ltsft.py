"""LT-SFT: full fine-tuning finds the entries, a second run from the start trains them alone (arXiv:2110.07560)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.baselines import ONLY_FP
from harness.methods.modules import count
from harness.methods.selective.sparse import SparseInPlace

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class LotteryTicket(SparseInPlace):
    """Half of the steps train everything; what moved furthest is kept free, all goes back to the start, and the other
    half trains that.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="lt-sft",
        summary="Trains everything, keeps the entries that moved furthest, goes back and trains these alone.",
        family="selective",
        trainable="All parameters in the first half of the steps, ``share`` of their entries in the second; a head.",
        paper="2110.07560",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"share": 0.08},
        defaults_source=(
            "the released task runs keep 14 of 278 million entries, in phases of equal length, with fixed norms, which "
            "train here; the share is ours, for small models; both phases are of one length, half of the cell's "
            "steps, so that the row has no more of them than the others, and each has a separate schedule; the rate "
            "is that of other methods that train few entries: at full's the second phase learned nothing in 75 steps"
        ),
        lr_factor=10.0,
        in_place=True,
        revision=2,
    )

    @property
    def turn(self) -> int:
        """The step (from 0) before which the second phase begins."""
        return max(1, self.setting.steps // 2)

    def active_parameters(self, model: nn.Module) -> int:
        """Of the second phase, whose entries are the result: ``share`` of all, and a classifier's head."""
        whole = count(model.get_parameter(n) for n in self.head_names(model))
        return max(1, round(float(self.params["share"]) * sum(s.numel() for s in self.start.values()))) + whole

    def phases(self) -> tuple[int, ...]:
        """The search for the entries, and their training."""
        return (self.turn, self.setting.steps - self.turn) if self.setting.steps > self.turn else (self.turn,)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW, which forgets its states at the turn."""
        import torch

        self._masks: dict[str, torch.Tensor] = {}
        self._head = {n: model.get_parameter(n).detach().clone() for n in self.head_names(model)}
        self._optimizer = torch.optim.AdamW(model.parameters(), **self.setting.adamw)
        return self._optimizer

    def select(self, model: nn.Module, step: int) -> None:
        """At the turn: find the ticket, go back to the start, and let only the ticket have gradients."""
        import torch

        if step != self.turn:
            return
        self._masks = self.largest_differences(model, float(self.params["share"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.start[name] if name in self.start else self._head[name])
        for name, mask in self._masks.items():
            model.get_parameter(name).register_hook(_only(mask))  # type: ignore[no-untyped-call]
        self._optimizer.state.clear()

    def on_step(self, model: nn.Module, step: int) -> None:
        """Weight decay reaches entries without a gradient too: they are put back."""
        import torch

        with torch.no_grad():
            for name, mask in self._masks.items():
                parameter = model.get_parameter(name)
                parameter.copy_(torch.where(mask, parameter, self.start[name]))

    def finish(self, model: nn.Module) -> nn.Module:
        """See that it was the ticket that trained."""
        if self._masks:
            self.check_kept(model, self._masks)
        return model


def _only(mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: gradient * mask

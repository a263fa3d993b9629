"""Skill grafting: which entries of a fine-tuned model hold the skill (arXiv:2302.06600)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Batch, Declaration, Setting
from harness.methods.baselines import ONLY_FP
from harness.methods.selective.sparse import SparseInPlace

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

BATCHES = 8
BIAS = 10.0
"""The mask begins as it was chosen: sig(-10) is four in a hundred thousand."""


class Grafting(SparseInPlace):
    """After full fine-tuning: the base with the fine-tuned values of a few entries grafted in.

    The mask is ``m = b + (1 - 2b) sig(S - 10)`` with b the entries that moved furthest; S learns by gradient descent
    on the task's loss, entries above one half are grafted, and the rest goes back to the base.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="grafting",
        summary="After full fine-tuning, learns which few entries hold the skill and puts only these into the base.",
        family="selective",
        trainable="All parameters; what is kept of them in the end is about ``share`` of their entries, and a head.",
        paper="2302.06600",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"share": 0.01, "mask_steps": 30, "mask_rate": 1e5},
        defaults_source=(
            "ours: the paper's share of 0.0001 is for models of a hundred million entries and more; the rate is that "
            "of a mask whose gradient is as small as its bias makes it"
        ),
        in_place=True,
        unverified=True,
    )

    def __init__(self, params: Mapping[str, Any], setting: Setting) -> None:
        super().__init__(params, setting)
        self._batches: list[Batch] = []

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> None:
        """Keep some training batches: the mask is learned on them after the last step."""
        self._batches = list(batches(BATCHES))

    def finish(self, model: nn.Module) -> nn.Module:
        """Learn the mask, graft, and see that nothing else differs from the base."""
        import torch

        chosen = self.largest_differences(model, float(self.params["share"]))
        masks = self.learn(model, chosen) if self._batches else chosen
        with torch.no_grad():
            for name, mask in masks.items():
                parameter = model.get_parameter(name)
                parameter.copy_(torch.where(mask, parameter, self.start[name]))
        self.check_kept(model, masks)
        return model

    def learn(self, model: nn.Module, chosen: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Gradient descent on S, with the weights a function of it; the model's own tensors stay as they are.

        Returns:
            what is grafted: true where m is above one half.
        """
        import torch
        from torch.func import functional_call

        moved = {n: model.get_parameter(n).detach() - start for n, start in self.start.items()}
        sign = {n: 1 - 2 * mask.to(moved[n].dtype) for n, mask in chosen.items()}
        scores = {n: torch.zeros_like(m, requires_grad=True) for n, m in moved.items()}
        training = model.training
        model.eval()

        def mask_of(name: str) -> torch.Tensor:
            return chosen[name] + sign[name] * torch.sigmoid(scores[name] - BIAS)

        for step in range(int(self.params["mask_steps"])):
            weights = {n: self.start[n] + mask_of(n) * moved[n] for n in moved}
            loss = functional_call(model, weights, (), dict(self._batches[step % len(self._batches)])).loss
            gradients = torch.autograd.grad(loss, list(scores.values()), allow_unused=True)
            with torch.no_grad():
                for score, gradient in zip(scores.values(), gradients, strict=True):
                    if gradient is not None:
                        score -= float(self.params["mask_rate"]) * gradient
        model.train(training)
        with torch.no_grad():
            return {n: mask_of(n) > 0.5 for n in moved}

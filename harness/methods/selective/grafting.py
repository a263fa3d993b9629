"""Skill grafting: which entries of a fine-tuned model hold the skill (arXiv:2302.06600)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Batch, Declaration, Setting
from harness.methods.baselines import ONLY_FP
from harness.methods.budget import search_length
from harness.methods.modules import output_head, trainable
from harness.methods.selective.sparse import SparseInPlace

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn
    from transformers import PreTrainedModel

VALIDATION_BATCHES = 4
BIAS = 10.0
"""The mask begins as it was chosen: sig(-10) is four in a hundred thousand."""


class Grafting(SparseInPlace):
    """After fine-tuning by SGD: the base with the fine-tuned values of a few entries grafted in.

    The mask is ``m = b + (1 - 2b) sig(S - 10)`` with b the entries that moved furthest; S learns by gradient descent
    on the task's loss, entries above one half are grafted, and the rest goes back to the base. Of the masks on the way
    the one is kept whose graft answers training and validation batches best. As in the released code the embeddings
    and the head are fixed, and plain SGD fine-tunes: it moves few entries far, where Adam moves all of them alike.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="grafting",
        summary="After fine-tuning by SGD, learns which few entries hold the skill and puts only these into the base.",
        family="selective",
        trainable="All but embeddings and head; what is kept in the end is about ``share`` of their entries. A "
        "classifier's fresh head trains whole.",
        paper="2302.06600",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"share": 0.01, "mask_steps": None, "mask_rate": 1e7},
        defaults_source=(
            "optimizer, fixed parts, rate of the mask (1e7) and its choice as in the released code; the paper's share "
            "of 0.0001 is for models of a hundred million entries and more; learning the mask takes a quarter of the "
            "cell's steps; the fine-tuning rate is ours, for steps that Adam does not lengthen"
        ),
        lr_factor=100.0,
        in_place=True,
        revision=2,
    )

    def __init__(self, params: Mapping[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self._batches: list[Batch] = []
        self._validation: list[Batch] = []
        self._losses: list[float] = []

    @property
    def search_steps(self) -> int:
        """Steps of the mask's training; they are taken off those of the fine-tuning."""
        return search_length(self.params, "mask_steps", self.setting.steps)

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> None:
        """Keep the training batches on which the mask is learned after the last step."""
        self._batches = list(batches(self.search_steps))

    def search(
        self,
        model: nn.Module,
        training: Callable[[int], Iterable[Batch]],
        validation: Callable[[int], Iterable[Batch]] | None,
    ) -> dict[str, Any]:
        """Keep validation batches, by which the mask is chosen after the last step."""
        self._validation = list(validation(VALIDATION_BATCHES)) if validation is not None else []
        return {}

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """Everything but the embeddings and a language model's head."""
        like: PreTrainedModel = model
        head = output_head(model)
        fixed = {id(p) for part in (like.get_input_embeddings(), head) if part is not None for p in part.parameters()}
        yield from (p for p in model.parameters() if id(p) not in fixed)

    def attach(self, model: nn.Module) -> nn.Module:
        """Same as the base class; keeps a copy of the tensors that may change."""
        model = super().attach(model)
        self.start = {n: start for n, start in self.start.items() if model.get_parameter(n).requires_grad}
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Plain SGD."""
        import torch

        s = self.setting
        return torch.optim.SGD(trainable(model), lr=s.learning_rate, weight_decay=s.weight_decay)

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

    def facts(self) -> dict[str, Any]:
        """Entries that were kept, and the loss of the graft after each step of the mask, the first before any."""
        return {**super().facts(), "graft_loss": self._losses}

    def learn(self, model: nn.Module, chosen: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Gradient descent on S, with the weights a function of it; the model's own tensors stay as they are.

        Returns:
            what is grafted: true where m is above one half, for the S whose graft has the lowest loss.
        """
        import torch
        from torch.func import functional_call

        moved = {n: model.get_parameter(n).detach() - start for n, start in self.start.items()}
        sign = {n: 1 - 2 * mask.to(moved[n].dtype) for n, mask in chosen.items()}
        scores = {n: torch.zeros_like(m, requires_grad=True) for n, m in moved.items()}
        training = model.training
        model.eval()
        judged = [*self._batches[:VALIDATION_BATCHES], *self._validation]
        best = {n: mask.clone() for n, mask in chosen.items()}
        self._losses = [self._loss(model, best, moved, judged)]
        for batch in self._batches:
            mask = {n: chosen[n] + sign[n] * torch.sigmoid(scores[n] - BIAS) for n in moved}
            weights = {n: self.start[n] + mask[n] * moved[n] for n in moved}
            loss = functional_call(model, weights, (), dict(batch)).loss
            gradients = torch.autograd.grad(loss, list(scores.values()), allow_unused=True)
            with torch.no_grad():
                for score, gradient in zip(scores.values(), gradients, strict=True):
                    if gradient is not None:
                        score -= float(self.params["mask_rate"]) * gradient
                rounded = {n: (chosen[n] + sign[n] * torch.sigmoid(scores[n] - BIAS)) > 0.5 for n in moved}
            self._losses.append(self._loss(model, rounded, moved, judged))
            if self._losses[-1] <= min(self._losses[:-1]):
                best = rounded
        model.train(training)
        return best

    def _loss(
        self,
        model: nn.Module,
        masks: Mapping[str, torch.Tensor],
        moved: Mapping[str, torch.Tensor],
        batches: Sequence[Batch],
    ) -> float:
        """Mean loss of the base with the masked entries grafted in."""
        import torch
        from torch.func import functional_call

        with torch.no_grad():
            weights = {n: self.start[n] + masks[n] * moved[n] for n in moved}
            losses = [float(functional_call(model, weights, (), dict(batch)).loss) for batch in batches]
        return sum(losses) / len(losses)

"""GreenTrainer: the tensors that matter most within a budget of training FLOPs (arXiv:2309.13192)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from harness.methods import bases
from harness.methods.base import Batch, Declaration, Setting
from harness.methods.baselines import ONLY_FP, InPlace
from harness.methods.modules import TENSORS_FILE, classifier, count, freeze, linears, trainable

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

LEAST_RHO = 0.367
"""Below it less than a twentieth of the backward pass would be left."""
BINS = 1000
"""Steps in which the budget is counted."""


class GreenTrainer(InPlace):
    """Linear weights chosen by importance for FLOPs, before training and again at even intervals of the run.

    For a weight of m x n the gradient of the weight costs 2mn a token, and so does passing the gradient of the
    activations through it; that second cost is paid for every tensor between the output and the deepest chosen
    one. The backward budget follows from the whole one, of which the forward pass is a third.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="greentrainer",
        summary="Only the weights that lower the loss most for their FLOPs train, within a stated share of the FLOPs.",
        family="selective",
        trainable="The linear weights, of which those train that a knapsack over importance and FLOPs chooses, and a "
        "classifier's head.",
        paper="2309.13192",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"rho": 0.5, "selections": 4},
        defaults_source="the middle of the paper's 0.4, 0.5 and 0.7; the released code chooses again every few epochs, "
        "here four times in a run, each on another batch; candidates are the linear weights",
        in_place=True,
        later={"selections": 1},
        unverified=True,
    )

    def __init__(self, params: dict[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self.selected: list[str] | None = None
        self._batches: list[Batch] = []
        self._history: list[dict[str, Any]] = []
        self._ever: set[str] = set()
        self._candidates: set[str] = set()
        self._loading = False

    @classmethod
    def check(cls, kind: str, base: str, params: Mapping[str, Any]) -> str | None:
        """Besides the usual: a budget that the forward pass alone would use up."""
        if not float(params.get("rho", 1.0)) > LEAST_RHO:
            return f"rho must be above {LEAST_RHO:.3f}: the forward pass alone takes a third of the FLOPs"
        return super().check(kind, base, params)

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> dict[str, Any]:
        """Choose the tensors on one batch, and keep a batch for every later choice; the model is left as it was."""
        self._batches = list(batches(int(self.params["selections"])))
        return self._choose(model, self._batches[0], 0)

    def _choose(self, model: nn.Module, batch: Batch, step: int) -> dict[str, object]:
        names = [layer.name for layer in linears(model)][::-1]  # from the output down
        costs = [2.0 * layer.inputs * layer.outputs for layer in linears(model)][::-1]
        importance = self._importance(model, names, batch)
        forward, backward = sum(costs), 2 * sum(costs)
        rho = self.params["rho"] * (1 + forward / backward) - forward / backward
        chosen = knapsack(importance, costs, rho * backward)
        self.selected = [names[i] for i in chosen]
        self._ever |= set(self.selected)
        self._history.append(
            {"step": step, "selected": self.selected, "importance": [round(importance[i], 4) for i in chosen]}
        )
        return self._history[-1]

    @property
    def interval(self) -> int:
        """Steps between two choices."""
        return max(1, math.ceil(self.setting.steps / int(self.params["selections"])))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer | None:
        """AdamW over all candidates, of which the chosen have gradient and state; the usual one for one choice."""
        import torch

        if int(self.params["selections"]) == 1:
            return None
        trained = trainable(model)
        self._optimizer = torch.optim.AdamW(trained, **self.setting.adamw)
        return self._optimizer

    def select(self, model: nn.Module, step: int) -> None:
        """At every interval: choose again, on another batch (the first choice is made); free what is chosen alone."""
        if step % self.interval or int(self.params["selections"]) == 1:
            return
        if step:
            training = model.training
            self._choose(model, self._batches[step // self.interval], step)
            model.train(training)
        self._free_chosen(model)
        for layer in linears(model):
            weight = weight_of(model, layer.name)
            if not weight.requires_grad:
                weight.grad = None
                self._optimizer.state.pop(weight, None)

    def _free_chosen(self, model: nn.Module) -> None:
        chosen = set(self.selected or ())
        for layer in linears(model):
            weight_of(model, layer.name).requires_grad_(layer.name in chosen)

    @contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """With what the first choice trains."""
        self._free_chosen(model)
        try:
            yield
        finally:
            for parameter in self._trained(model):
                parameter.requires_grad_(True)

    def active_parameters(self, model: nn.Module) -> int:
        """Number of parameters of the first choice and of a classifier's head."""
        head = classifier(model)
        own = count(weight_of(model, name) for name in self.selected or ())
        return own + (count(head.parameters()) if head is not None else 0)

    def finish(self, model: nn.Module) -> nn.Module:
        """All that was ever chosen was trained, and is saved."""
        for layer in linears(model):
            weight_of(model, layer.name).requires_grad_(layer.name in self._ever)
        return model

    def expects_gradient(self, name: str) -> bool:
        """Of the candidates only what was chosen first must have one within the first steps."""
        first = self._history[0]["selected"] if self._history else self.selected or ()
        return name.removesuffix(".weight") in first or name.removesuffix(".weight") not in self._candidates

    def expects_change(self, name: str) -> bool:
        """Parameters that were chosen later have moved."""
        return name.removesuffix(".weight") in self._ever

    def facts(self) -> dict[str, object]:
        """Every choice, with the importances relative to the largest."""
        return {"selections": self._history}

    def _importance(self, model: nn.Module, names: Sequence[str], batch: Batch) -> list[float]:
        """-sum(g1 * dw) per tensor: how far the loss falls with its own first AdamW step, by the gradient after it."""
        import torch

        weights = [weight_of(model, name) for name in names]
        free = trainable(model)
        freeze(model)
        for weight in weights:
            weight.requires_grad_(True)
        before = [w.detach().clone() for w in weights]
        optimizer = torch.optim.AdamW(weights, lr=self.setting.learning_rate, weight_decay=0.0)
        model(**batch).loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        found = [
            0.0 if w.grad is None else -float((w.grad * (w.detach() - b)).sum())
            for w, b in zip(weights, before, strict=True)
        ]
        with torch.no_grad():
            for weight, kept in zip(weights, before, strict=True):
                weight.copy_(kept)
        model.zero_grad(set_to_none=True)
        freeze(model)
        for parameter in free:
            parameter.requires_grad_(True)
        largest = max(map(abs, found)) or 1.0
        return [value / largest for value in found]

    def chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """Weights of the linear layers, of which the selected ones train; where there is one choice only, these."""
        if self.selected is None:
            raise RuntimeError("greentrainer chooses its tensors in calibrate, which was not called")
        self._candidates = {layer.name for layer in linears(model)}
        for name in self.selected if self._loading or int(self.params["selections"]) == 1 else sorted(self._candidates):
            yield weight_of(model, name)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """The chosen tensors are the saved ones."""
        from safetensors import safe_open

        self._loading = True
        names = {layer.name for layer in linears(base)}
        with safe_open(folder / TENSORS_FILE, "pt") as file:
            self.selected = [key.removesuffix(".weight") for key in file.keys() if key.removesuffix(".weight") in names]  # noqa: SIM118 - not a dict
        return super().load(base, folder)


def weight_of(model: nn.Module, name: str) -> nn.Parameter:
    """The weight of a linear layer."""
    return model.get_parameter(f"{name}.weight")


def knapsack(importance: Sequence[float], costs: Sequence[float], budget: float) -> list[int]:
    """Indices (from the output down) of greatest summed importance within the budget.

    A choice pays ``costs`` for each chosen tensor's own gradient, and ``costs`` once more for every tensor above
    and including the deepest chosen one, through which the gradient has to pass. Dynamic programming over
    :data:`BINS` steps of the budget; every cost is rounded up, so that the budget is never exceeded.

    Returns:
        At least the tensor nearest the output: a model has to train something, and the budget of FLOPs is then
        exceeded by that tensor's own cost.
    """
    unit = budget / BINS
    own = [int(np.ceil(cost / unit)) for cost in costs]
    best = np.zeros(BINS + 1)
    taken = np.zeros((len(costs), BINS + 1), dtype=bool)
    result: tuple[float, int, int] = (-np.inf, 0, 0)
    passed = 0
    for index, weight in enumerate(own):
        passed += weight
        room = BINS - passed - weight  # the deepest chosen tensor is this one
        if room < 0:
            break
        value = importance[index] + float(best[room])
        if value > result[0]:
            result = (value, index, room)
        shifted = np.full(BINS + 1, -np.inf)
        shifted[weight:] = best[: BINS + 1 - weight] + importance[index]
        taken[index] = shifted > best
        best = np.maximum(best, shifted)
    if result[0] == -np.inf:
        return [0]
    _, deepest, room = result
    chosen = [deepest]
    for index in range(deepest - 1, -1, -1):
        if taken[index, room]:
            chosen.append(index)
            room -= own[index]
    return sorted(chosen)

"""LoRA with optional gates on its modules, and the search that opens and closes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import Unsupported
from harness.methods.base import Batch, Setting
from harness.methods.budget import search_length
from harness.methods.delta import WeightDelta, parameter
from harness.methods.modules import TENSORS_FILE, Linear, classifier, no_module, targeted, trainable

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

DOWN, UP = "gated_down", "gated_up"
NO_VALIDATION = "its gates learn on the validation split, which the task lacks"


class SearchedLora(WeightDelta):
    """``y += g (alpha / r) x A^T B^T`` during the search; without the gate g, on the chosen modules, afterwards.

    Attributes:
        chosen: names of the layers that are adapted; None before the search, when all targets are.
    """

    tensors = (DOWN, UP)

    def __init__(self, params: Mapping[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self.chosen: frozenset[str] | None = None
        self.gate: Callable[[nn.Module], torch.Tensor] | None = None

    @property
    def search_steps(self) -> int:
        """Steps in which factors and gates learn together; they are taken off the training loop."""
        return search_length(self.params, "search_steps", self.setting.steps)

    def targets(self, model: nn.Module) -> list[Linear]:
        """The targeted layers of the blocks, after the search the chosen ones.

        Raises:
            Unsupported: the model has none of the targets.
        """
        found = targeted(super().targets(model), self.params["target_modules"])
        if not found:
            raise Unsupported(f"{self.declaration.name}: {no_module(model, self.params['target_modules'])}")
        return [layer for layer in found if self.chosen is None or layer.name in self.chosen]

    def size(self, layer: Linear) -> int:
        """LoRA's: r(m + n)."""
        return int(self.params["r"]) * (layer.inputs + layer.outputs)

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """A uniform, B of zeros, as in LoRA."""
        import torch

        r = int(self.params["r"])
        bound = layer.inputs**-0.5
        drawn = (2 * torch.rand(r, layer.inputs, generator=generator) - 1) * bound
        module.register_parameter(DOWN, parameter(drawn, module))
        module.register_parameter(UP, parameter(torch.zeros(layer.outputs, r), module))

    @property
    def scale(self) -> float:
        """LoRA's alpha / r."""
        return float(self.params["alpha"]) / int(self.params["r"])

    def added(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """The low-rank product, behind its gate while there is one."""
        product: torch.Tensor = self.scale * (x.to(module.gated_down.dtype) @ module.gated_down.T) @ module.gated_up.T
        return product if self.gate is None else product * self.gate(module)

    def delta(self, module: Any) -> torch.Tensor:
        """(alpha / r) B A."""
        product: torch.Tensor = self.scale * module.gated_up @ module.gated_down
        return product

    def expected_trainable(self, model: nn.Module) -> int | None:
        """The chosen layers' and the classifier's.

        Raises:
            Unsupported: nothing is chosen yet.
        """
        if self.chosen is None:
            raise Unsupported(f"what {self.declaration.name} trains is known after its search on data only")
        return super().expected_trainable(model)

    def choose(self, logits: torch.Tensor, layers: list[Linear], model: nn.Module) -> frozenset[str]:
        """The names of the layers to train, by the gates' logits after the search."""
        raise NotImplementedError

    def groups(self, layers: list[Linear], model: nn.Module) -> list[int]:
        """Number of the gate of each layer; layers with the same number share one."""
        raise NotImplementedError

    def opening(self, logits: torch.Tensor) -> torch.Tensor:
        """The gates, from their logits."""
        raise NotImplementedError

    def search(
        self,
        model: nn.Module,
        training: Callable[[int], Iterable[Batch]],
        validation: Callable[[int], Iterable[Batch]] | None,
    ) -> dict[str, Any]:
        """Learn the gates, choose by them; the model is then as it was, but for what :meth:`keep` keeps.

        Raises:
            Unsupported: there is no validation split.
        """
        if validation is None:
            raise Unsupported(f"{self.declaration.name}: {NO_VALIDATION}")
        layers = self.targets(model)
        names = [layer.name for layer in layers]
        gates = dict(zip(names, self.groups(layers, model), strict=True))
        logits, losses = bilevel(self, model, gates, training, validation)
        self.chosen = self.choose(logits, layers, model)
        return {
            "gate_logits": [round(value, 6) for value in logits.tolist()],
            "chosen": sorted(self.chosen),
            "loss": losses,
        }

    def keep(self, model: nn.Module, opened: torch.Tensor) -> bool:
        """At the end of the search: take along what it trained. Whether the classifier keeps what it learned.

        Args:
            model: with the factors of the search.
            opened: the gates.
        """
        return False

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Attach to the layers that were saved and copy the factors in."""
        from safetensors import safe_open

        with safe_open(folder / TENSORS_FILE, "pt") as stored:
            names = [name for name in stored.keys() if name.endswith(f".{DOWN}")]  # noqa: SIM118 - not a mapping
        self.chosen = frozenset(name.removesuffix(f".{DOWN}") for name in names)
        return super().load(base, folder)


def bilevel(
    method: SearchedLora,
    model: nn.Module,
    gates: Mapping[str, int],
    training: Callable[[int], Iterable[Batch]],
    validation: Callable[[int], Iterable[Batch]],
) -> tuple[torch.Tensor, list[float]]:
    """The gates' logits after the search, and the training loss of its steps.

    First-order: how the factors follow from the gates is not differentiated. The model is in
    evaluation, as in Flexora's released code: dropout does not reach the gates.

    Args:
        gates: name of a layer to the number of its gate.
        training: yields batches for the factors (and a classifier's head).
        validation: yields batches for the gates.
    """
    import torch
    from torch import nn

    head = classifier(model)
    before = copy.deepcopy(head.state_dict()) if head is not None else {}
    method.attach(model)
    factors = trainable(model)
    logits = nn.Parameter(torch.zeros(max(gates.values()) + 1, device=factors[0].device))
    number = {id(model.get_submodule(name)): index for name, index in gates.items()}
    method.gate = lambda module: method.opening(logits)[number[id(module)]]
    inner = torch.optim.AdamW(factors, **method.setting.adamw)
    outer = torch.optim.Adam([logits], lr=float(method.params["gate_rate"]))
    training_mode = model.training
    model.eval()
    losses = []
    steps, each = method.search_steps, int(method.params["validation_batches"])
    held_out = iter(validation(steps * each))
    for batch in training(steps):
        loss = model(**batch).loss
        losses.append(float(loss.detach()))
        _step(inner, factors, [loss])
        _step(outer, [logits], (model(**next(held_out)).loss / each for _ in range(each)))
    method.gate = None
    keep_head = method.keep(model, opened=method.opening(logits.detach()))
    model.train(training_mode)
    method.take_off(model)
    if head is not None and not keep_head:
        head.load_state_dict(before)
    return logits.detach().cpu(), losses


def _step(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], losses: Iterable[torch.Tensor]) -> None:
    """One step of ``trained`` only, although the losses depend on more."""
    import torch

    for loss in losses:
        for weight, gradient in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
    optimizer.step()
    optimizer.zero_grad()

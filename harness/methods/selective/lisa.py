"""LISA: embeddings and head always, the blocks a few at a time (arXiv:2403.17919)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.baselines import ONLY_FP, Full
from harness.methods.modules import blocks, count

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class Lisa(Full):
    """Every ``interval`` steps other ``active`` blocks train; those that sleep have neither gradient nor state."""

    declaration: ClassVar[Declaration] = Declaration(
        name="lisa",
        summary="Embeddings and head train always, of the blocks only a few at a time, drawn again every few steps.",
        family="selective",
        trainable="All parameters, though never all at once.",
        paper="2403.17919",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"active": 2, "interval": 20},
        defaults_source="the released code: 2 blocks, another draw every 20 steps",
        in_place=True,
    )

    def attach(self, model: nn.Module) -> nn.Module:
        """As full fine-tuning; note which parameters are the blocks'."""
        self._prefix = f"{blocks(model)[0]}."
        self._woken: set[int] = set()
        self._awake: dict[str, list[int]] = {}
        self._optimizer: torch.optim.Optimizer
        return super().attach(model)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW over everything; what is asleep has no gradient, so it is left out of the step."""
        import torch

        self._optimizer = torch.optim.AdamW(model.parameters(), **self.setting.adamw)
        return self._optimizer

    def select(self, model: nn.Module, step: int) -> None:
        """At each switch: wake the drawn blocks, put the others to sleep and drop their optimizer state.

        Without the last, memory would grow to that of full fine-tuning within a few switches.
        """
        if step % self.params["interval"]:
            return
        _, layers = blocks(model)
        awake = self.draw(len(layers), random.Random(f"{self.setting.seed}.{step}"))
        self._woken |= awake
        self._awake[str(step)] = sorted(awake)
        for index, block in enumerate(layers):
            for parameter in block.parameters():
                parameter.requires_grad_(index in awake)
                if index not in awake:
                    parameter.grad = None
                    self._optimizer.state.pop(parameter, None)

    @contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """With the blocks of the first draw awake alone."""
        _, layers = blocks(model)
        awake = self.draw(len(layers), random.Random(f"{self.setting.seed}.0"))
        asleep = [p for index, block in enumerate(layers) if index not in awake for p in block.parameters()]
        for parameter in asleep:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in asleep:
                parameter.requires_grad_(True)

    def active_parameters(self, model: nn.Module) -> int:
        """All but the sleeping blocks; of unequal blocks the largest are taken to be awake."""
        _, layers = blocks(model)
        sizes = sorted((count(block.parameters()) for block in layers), reverse=True)
        return count(model.parameters()) - sum(sizes[int(self.params["active"]) :])

    def facts(self) -> dict[str, Any]:
        """Blocks that trained from each switch on, by its step."""
        return {"awake": self._awake}

    def draw(self, depth: int, chance: random.Random) -> set[int]:
        """Draw which of ``depth`` blocks train until the next draw: ``active`` of them, all equally likely."""
        return set(chance.sample(range(depth), min(int(self.params["active"]), depth)))

    def expects_gradient(self, name: str) -> bool:
        """Within the probed steps a block may not have been drawn."""
        return not name.startswith(self._prefix)

    def expects_change(self, name: str) -> bool:
        """A block that was drawn must have moved: freezing before the optimizer is made would train none of them."""
        return int(name.removeprefix(self._prefix).split(".")[0]) in self._woken

    def finish(self, model: nn.Module) -> nn.Module:
        """All of it was trained: all of it counts as trainable again, and is saved."""
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model

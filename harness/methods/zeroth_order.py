"""Zeroth-order fine-tuning: two forward passes instead of a backward one (MeZO, arXiv:2305.17333)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from harness.methods import bases
from harness.methods.base import Batch, Declaration
from harness.methods.baselines import ONLY_FP, Full

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class Mezo(Full):
    """theta -= lr (rho z + wd theta) with rho = (L(theta + eps z) - L(theta - eps z)) / (2 eps).

    z is standard normal and never stored: a seed a step draws it again, four times. No gradient, no activation
    and no optimizer state is kept, so training takes the memory of inference.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="mezo",
        summary="Estimates the gradient along one random direction a step from two forward passes: inference memory.",
        family="zeroth-order",
        trainable="All parameters.",
        paper="2305.17333v3",
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"eps": 1e-3},
        defaults_source="the paper's full-parameter setting; its rates are a tenth of full fine-tuning's and below",
        lr_factor=0.1,
        in_place=True,
    )

    def expects_gradient(self, name: str) -> bool:
        """There are no gradients."""
        return False

    def expects_change(self, name: str) -> bool:
        """Every tensor is shifted at every step."""
        return True

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Holds the learning rate for the schedule; it never sees a gradient and keeps no state."""
        import torch

        self._step = 0
        self._optimizer = torch.optim.SGD(model.parameters(), lr=self.setting.learning_rate)
        return self._optimizer

    def training_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """One whole step; dropout is off, because both losses must be of the same function."""
        import torch

        training = model.training
        model.eval()
        trained = [p for p in model.parameters() if p.requires_grad]
        eps, seed = float(self.params["eps"]), self.setting.seed * 1_000_003 + self._step
        self._step += 1
        rate = float(self._optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            shift(trained, seed, eps)
            up = self._loss(model, batch)
            shift(trained, seed, -2 * eps)
            down = self._loss(model, batch)
            shift(trained, seed, eps)
            rho = float(up - down) / (2 * eps)
            decay = 1 - rate * self.setting.weight_decay
            shift(trained, seed, -rate * rho, scale=decay)
        model.train(training)
        return (up + down).detach() / 2

    def _loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        outputs = model(**batch)
        return self.loss(outputs, batch, outputs.loss)


def directions(parameters: list[nn.Parameter], seed: int) -> Iterator[torch.Tensor]:
    """z for each parameter in turn, drawn in float32 from ``seed``: the same numbers every time it is asked."""
    import torch

    generators: dict[torch.device, torch.Generator] = {}
    for parameter in parameters:
        device = parameter.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        yield torch.randn(parameter.shape, generator=generators[device], device=device, dtype=torch.float32)


def shift(parameters: list[nn.Parameter], seed: int, by: float, *, scale: float = 1.0) -> None:
    """theta <- scale * theta + by * z, in place, one tensor's z in memory at a time.

    In 16-bit weights the sum is made in float32 and rounded once, or small steps would vanish.
    """
    for parameter, z in zip(parameters, directions(parameters, seed), strict=True):
        parameter.data.copy_(parameter.data.float().mul_(scale).add_(z, alpha=by))

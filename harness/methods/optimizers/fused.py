"""Updates inside the backward pass: a gradient lives until its own parameter has moved (LOMO, AdaLOMO)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

DECAY = -0.8
EPS_SQUARE, EPS_RMS = 1e-30, 1e-3
"""Adafactor's constants, which AdaLOMO keeps."""


class FusedSGD(torch.optim.Optimizer):
    """theta <- (1 - lr wd) theta - lr g, applied by a hook as soon as g is there; g is then dropped.

    ``step`` does nothing: it is there for the schedule of the learning rate. To clip by the norm of all gradients a
    first backward pass has to gather it, parameter by parameter (:meth:`gather`).
    """

    def __init__(self, params: Iterable[Any], *, lr: float, weight_decay: float = 0.0, clip: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.clip = clip
        self._squares: torch.Tensor | None = None
        self._factor: torch.Tensor | float = 1.0
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(index))
            for index, group in enumerate(self.param_groups)
            for parameter in group["params"]
        ]

    def release(self) -> None:
        """Take the hooks off: from now on gradients stay where they are, and nothing moves."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        @torch.no_grad()
        def arrived(parameter: torch.Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None  # the hook is called when it was accumulated
            if self._squares is not None:
                self._squares += gradient.float().square().sum()
            else:
                group = self.param_groups[index]  # looked up now: accelerate replaces the groups once
                self.update(parameter, gradient.float() * self._factor, group)

        return arrived

    def backward(self, loss: torch.Tensor) -> None:
        """One backward pass that updates every parameter; two, where gradients are clipped by their common norm."""
        if self.clip:
            self._squares = torch.zeros((), device=loss.device)
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # torch has no types here
            norm, self._squares = self._squares.sqrt(), None
            self._factor = torch.clamp(self.clip / (norm + 1e-6), max=1.0)
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """Move one parameter; the sum is made in float32 and rounded once."""
        moved = parameter.float() * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * gradient
        parameter.copy_(moved)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # as torch's own
        """Nothing: the backward pass has moved the parameters."""


class FusedAdafactor(FusedSGD):
    """AdaLOMO's update (arXiv:2310.10195): Adafactor's factored second moment, each tensor's step limited by its RMS.

    For a matrix with rows i and columns j: R_i and C_j are moving means of the squared gradient with the decay
    1 - t^-0.8, V = R C / mean(R), U = g / sqrt(V), and the step is lr * max(1e-3, RMS(theta)) * U / max(1, RMS(U)).
    Vectors keep an unfactored V.
    """

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """Move one parameter."""
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        keep = 1 - math.pow(state["step"], DECAY)
        square = gradient.square() + EPS_SQUARE
        if gradient.ndim < 2:
            scaled = gradient * _mean(state, "second", square, keep).rsqrt()
        else:
            rows = _mean(state, "rows", square.mean(dim=-1), keep)
            columns = _mean(state, "columns", square.mean(dim=-2), keep)
            scaled = (
                gradient * (rows / rows.mean(dim=-1, keepdim=True)).rsqrt()[..., None] * columns.rsqrt()[..., None, :]
            )
        scaled = scaled / _rms(scaled).clamp(min=1.0)
        weight = parameter.float()
        rate = group["lr"] * _rms(weight).clamp(min=EPS_RMS)
        parameter.copy_(weight * (1 - rate * group["weight_decay"]) - rate * scaled)


def _mean(state: dict[str, Any], name: str, new: torch.Tensor, keep: float) -> torch.Tensor:
    state[name] = new if name not in state else state[name].lerp_(new, 1 - keep)
    mean: torch.Tensor = state[name]
    return mean


def _rms(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean().sqrt()

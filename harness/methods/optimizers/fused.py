"""Updates inside the backward pass: a gradient lives until its own parameter has moved (LOMO, AdaLOMO)."""

from __future__ import annotations

import math

import torch
from torch.optim.optimizer import ParamsT

from harness.methods.optimizers.base import Group, ParameterOptimizer, State

DECAY = -0.8
EPS_SQUARE, EPS_RMS = 1e-30, 1e-3
"""Adafactor's constants, which AdaLOMO keeps."""


class FusedSGD(ParameterOptimizer):
    """theta <- (1 - lr wd) theta - lr g, applied inside the backward pass.

    To clip by the norm of all gradients a first backward pass has to gather it, parameter by parameter.
    """

    def __init__(self, params: ParamsT, *, lr: float, weight_decay: float = 0.0, clip: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, fused=True)
        self.clip = clip
        self._squares: torch.Tensor | None = None
        self._factor: torch.Tensor | float = 1.0

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: Group) -> None:
        if self._squares is not None:
            self._squares += gradient.float().square().sum()
        else:
            self.update(parameter, gradient.float() * self._factor, group)

    def backward(self, loss: torch.Tensor) -> None:
        """One backward pass that updates every parameter; two, where gradients are clipped by their common norm."""
        if self.clip:
            self._squares = torch.zeros((), device=loss.device)
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # torch has no types here
            norm, self._squares = self._squares.sqrt(), None
            self._factor = torch.clamp(self.clip / (norm + 1e-6), max=1.0)
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: Group) -> None:
        """Move one parameter; the sum is made in float32 and rounded once."""
        moved = parameter.float() * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * gradient
        parameter.copy_(moved)


class FusedAdafactor(FusedSGD):
    """AdaLOMO's update (arXiv:2310.10195): Adafactor's factored second moment, each tensor's step limited by its RMS.

    For a matrix with rows i and columns j: R_i and C_j are moving means of the squared gradient with the decay
    1 - t^-0.8, V = R C / mean(R), U = g / sqrt(V), and the step is lr * max(1e-3, RMS(theta)) * U / max(1, RMS(U)).
    Vectors keep an unfactored V.
    """

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: Group) -> None:
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


def _mean(state: State, name: str, new: torch.Tensor, keep: float) -> torch.Tensor:
    state[name] = new if name not in state else state[name].lerp_(new, 1 - keep)
    mean: torch.Tensor = state[name]
    return mean


def _rms(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean().sqrt()

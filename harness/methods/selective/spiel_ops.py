"""Sparse differences on a layer: their product, the gradients that are watched, and how they change places."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from harness.methods.lowrank.factors import whole
from harness.methods.optimizers.base import Group, ParameterOptimizer


def scattered(module: Any) -> Tensor:
    """The entries in their places: [outputs, inputs], zero elsewhere."""
    dense = torch.zeros(module.out_features * module.in_features, device=module.spiel_delta.device)
    dense[module.spiel_index] = module.spiel_delta.detach()
    return dense.view(module.out_features, module.in_features)


def combined_product(x: Tensor, module: Any) -> Tensor:
    """``x (W + scatter(index, delta))^T``, one product, with the gradient of x and of the entries."""
    return cast(Tensor, _CombinedProduct.apply(x, module.spiel_delta, module))  # type: ignore[no-untyped-call]


class _CombinedProduct(torch.autograd.Function):
    """Of the weight's gradient only what is at the index is kept, and what is watched; W + delta is made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _delta: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return torch.nn.functional.linear(x, combined(module, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (x,) = ctx.saved_tensors
        module = ctx.module
        of_input = gradient @ combined(module, gradient.dtype) if ctx.needs_input_grad[0] else None
        return of_input, entries_of(gradient, x, module), None


def combined(module: Any, dtype: torch.dtype) -> Tensor:
    """W + scatter(index, delta), summed in float32: [outputs, inputs]."""
    dense = whole(module).flatten().clone()
    dense[module.spiel_index] += module.spiel_delta.detach()
    return dense.view(module.out_features, module.in_features).to(dtype)


def entries_of(gradient: Tensor, x: Tensor, module: Any) -> Tensor:
    """The weight's gradient at the index; all of it is shown to what watches."""
    of_weight = (gradient.flatten(0, -2).T @ x.to(gradient.dtype).flatten(0, -2)).flatten().float()
    watch = getattr(module, "spiel_watch", None)
    if watch is not None:
        watch.see(of_weight)
    return of_weight[module.spiel_index]


def sparse_product(x: Tensor, module: Any) -> Tensor:
    """``x scatter(index, delta)^T`` with the gradient of x and of the entries."""
    return cast(Tensor, _SparseProduct.apply(x, module.spiel_delta, module))  # type: ignore[no-untyped-call]


class _SparseProduct(torch.autograd.Function):
    """Of the weight's gradient only what is at the index is kept, and what is watched."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _delta: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return torch.nn.functional.linear(x, scattered(module))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (x,) = ctx.saved_tensors
        module = ctx.module
        of_input = gradient @ scattered(module) if ctx.needs_input_grad[0] else None
        return of_input, entries_of(gradient, x, module), None


class Watch:
    """Sums of gradients, and of their squares, at the places where the first one seen was largest."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seen = 0
        self.candidates: Tensor
        self._sum: Tensor
        self._squares: Tensor

    def see(self, gradient: Tensor) -> None:
        """Add one gradient of the whole weight, flattened."""
        if not self.seen:
            self.candidates = gradient.abs().topk(self.number).indices
            self._sum = torch.zeros(self.number, device=gradient.device)
            self._squares = torch.zeros(self.number, device=gradient.device)
        here = gradient[self.candidates].float()
        self._sum += here
        self._squares += here.square()
        self.seen += 1

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean gradient and mean square at the candidates."""
        return self._sum / self.seen, self._squares / self.seen


def smallest(module: Any, number: int) -> Tensor:
    """Indices of the ``number`` smallest entries of a layer by size, the smallest first."""
    return cast(Tensor, module.spiel_delta.detach().abs().argsort()[:number])


def grow(module: Any, given_up: Tensor, candidates: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Put the entries at ``given_up`` to the best candidates that no remaining entry holds, with the value zero.

    Where there are fewer such candidates than entries to place, the largest of the given-up entries stay.

    Returns:
        the new places, and their positions among the candidates.
    """
    remaining = torch.ones(len(module.spiel_delta), dtype=torch.bool, device=candidates.device)
    remaining[given_up] = False
    held = torch.zeros(module.out_features * module.in_features, dtype=torch.bool, device=candidates.device)
    held[module.spiel_index[remaining]] = True
    order = scores.argsort(descending=True)
    free = order[~held[candidates[order]]][: len(given_up)]
    leaving = given_up[: len(free)]
    staying = given_up[len(free) :]
    # an entry that stays must not be met a second time
    clash = torch.isin(candidates[free], module.spiel_index[staying])
    free, leaving = free[~clash], leaving[: int((~clash).sum())]
    module.spiel_index[leaving] = candidates[free]
    module.spiel_delta.data[leaving] = 0.0
    return candidates[free], free


class SparseSM3(ParameterOptimizer):
    """SM3 (arXiv:1901.11150, algorithm 2) on the entries of layers: state rows + columns instead of an entry each.

    ``v_ij = min(row_i, column_j) + g_ij^2``, the step is ``lr g / sqrt(v)``, and row and column become the largest v of
    their entries. A parameter whose group has no ``layer`` keeps one number an entry.
    """

    def __init__(self, params: ParamsT, *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "layer": None})

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        mass = self._mass(parameter, gradient, group["layer"])
        parameter.sub_(group["lr"] * gradient / mass.sqrt().clamp(min=1e-12))

    def _mass(self, parameter: Tensor, gradient: Tensor, layer: Any) -> Tensor:
        state = self.state[parameter]
        if layer is None:
            state["sum"] = state.get("sum", torch.zeros_like(gradient)) + gradient.square()
            return cast(Tensor, state["sum"])
        if not state:
            state["rows"] = torch.zeros(layer.out_features, device=gradient.device)
            state["columns"] = torch.zeros(layer.in_features, device=gradient.device)
        rows, columns = layer.spiel_index // layer.in_features, layer.spiel_index % layer.in_features
        mass = torch.minimum(state["rows"][rows], state["columns"][columns]) + gradient.square()
        state["rows"].scatter_reduce_(0, rows, mass, "amax")
        state["columns"].scatter_reduce_(0, columns, mass, "amax")
        return mass

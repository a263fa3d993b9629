"""AdamW on the principal weights of each matrix (LIFT, arXiv:2506.00772)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from harness.methods.optimizers.base import AdamOptimizer, Group, State


class PrincipalAdamW(AdamOptimizer):
    """AdamW (decoupled decay) whose states, and whose steps, are those of some entries of each matrix.

    A group with ``rank`` None has all entries of its parameters chosen.
    """

    def __init__(self, params: ParamsT, *, picture: int, interval: int, **common: Any) -> None:
        super().__init__(params, picture=picture, interval=interval, **common)

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        state = self.state[parameter]
        steps = state.get("step", 0)
        if "index" not in state or (group["rank"] is not None and steps % group["interval"] == 0):
            self._choose(parameter, state, group)
        state["step"] = steps + 1
        step = self._adam(state, gradient.flatten()[state["index"]], group)
        values = parameter.data.view(-1)
        kept = values[state["index"]] * (1 - group["lr"] * group["weight_decay"])
        values[state["index"]] = kept - group["lr"] * step

    def _choose(self, parameter: Tensor, state: State, group: Group) -> None:
        """New entries, with the states of those that were chosen before."""
        if group["rank"] is None:
            index = torch.arange(parameter.numel(), device=parameter.device)
        else:
            index = principal(parameter.detach(), sum(parameter.shape) * group["rank"], group["picture"])
        for name in ("exp_avg", "exp_avg_sq"):
            moments = torch.zeros(len(index), device=parameter.device, dtype=parameter.dtype)
            if "index" in state:
                whole = torch.zeros(parameter.numel(), device=parameter.device, dtype=parameter.dtype)
                whole[state["index"]] = state[name]
                moments = whole[index]
            state[name] = moments
        state["index"] = index


EXACT_SIDE = 1024
"""Up to this smaller side the directions come from a full eigendecomposition."""
SETTLED = 1e-7
"""Beyond it: how little of the subspace may still turn in one iteration."""
MOST_ITERATIONS = 300


def principal(weight: Tensor, number: int, rank: int) -> Tensor:
    """Flat indices of the ``number`` entries that are largest in size in the weight's best rank-``rank`` approximation.

    Args:
        weight: [outputs, inputs].
        number: how many.
        rank: of the approximation.
    """
    values = weight.float()
    wide = values if values.shape[0] <= values.shape[1] else values.T
    u = directions(wide @ wide.T, rank)
    approximation = u @ (u.T @ wide)
    if wide is not values:
        approximation = approximation.T
    indices: Tensor = approximation.abs().flatten().topk(min(number, values.numel())).indices
    return indices


def directions(gram: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading eigenvectors of a symmetric positive matrix, [side, rank].

    Singular values of trained weights fall slowly, so a fixed small number of power iterations finds half of the wanted
    directions only: the subspace, with three times as many directions as wanted, is iterated until it rests.
    """
    side = len(gram)
    if side <= EXACT_SIDE or 3 * rank >= side:
        exact: Tensor = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
        return exact
    generator = torch.Generator(gram.device).manual_seed(0)
    start = torch.randn(side, 3 * rank, generator=generator, device=gram.device)
    basis = torch.linalg.qr(start).Q
    found: Tensor = basis[:, :rank]
    for _ in range(MOST_ITERATIONS):
        basis = torch.linalg.qr(gram @ basis).Q
        inner = torch.linalg.eigh(basis.T @ gram @ basis).eigenvectors[:, -rank:]
        new = basis @ inner
        turned = 1 - float((found.T @ new).square().sum()) / rank
        found = new
        if turned < SETTLED:
            break
    return found

"""AdamW whose states live in a low-rank subspace of each gradient (GaLore, arXiv:2403.03507, algorithm 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from harness.methods.optimizers.base import AdamOptimizer, Group, State


class ProjectedAdamW(AdamOptimizer):
    """AdamW (decoupled decay) on R = P^T G where G is m x n with m <= n, on R = G P otherwise.

    P has the first ``rank`` singular vectors of the gradient of the smaller side, recomputed every ``update_gap``
    steps; the states stay. The step is scale * P N (or N P^T), N being Adam's normalised step in the subspace. A
    parameter whose smaller side does not exceed the rank, or with ``rank`` None, has plain AdamW. With ``layerwise``
    the update is made inside the backward pass.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        update_gap: int = 200,
        scale: float = 1.0,
        layerwise: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(params, update_gap=update_gap, scale=scale, fused=layerwise, **common)

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        state = self.state[parameter]
        low_rank = group["rank"] is not None and parameter.ndim == 2 and group["rank"] < min(parameter.shape)
        if low_rank and self._waits(state, gradient):
            return
        state["step"] = state.get("step", 0) + 1
        if low_rank and self._due(state, group):
            self._renew(state, gradient, group)
        seen = self._project(state, gradient, group) if low_rank else gradient
        step = self._adam(state, seen, group, projected=low_rank)
        if low_rank:
            step = self._back(state, step, seen, gradient, group)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])

    # --- what variants change ------------------------------------------------------------------
    def _waits(self, state: State, gradient: Tensor) -> bool:
        """True if there is no subspace yet and zeros span none: LoRA's A has no gradient before B has moved."""
        return "projector" not in state and not gradient.any()

    def _due(self, state: State, group: Group) -> bool:
        """True if the subspace is recomputed at this step."""
        return bool((state["step"] - 1) % group["update_gap"] == 0)

    def _renew(self, state: State, gradient: Tensor, group: Group) -> None:
        """Take the subspace from this gradient."""
        state["projector"] = projector(gradient, group["rank"])

    def _basis(self, state: State) -> Tensor:
        """The subspace."""
        basis: Tensor = state["projector"]
        return basis

    def _project(self, state: State, gradient: Tensor, group: Group) -> Tensor:
        """The gradient in the subspace, as Adam is fed with it."""
        return project(gradient, self._basis(state))

    def _back(self, state: State, step: Tensor, seen: Tensor, gradient: Tensor, group: Group) -> Tensor:
        """From Adam's step in the subspace, where it has seen ``seen``, to the weight's step."""
        scaled: Tensor = group["scale"] * back(step, self._basis(state), gradient.shape)
        return scaled


def projector(gradient: Tensor, rank: int) -> Tensor:
    """First ``rank`` singular vectors of the smaller side: (m, rank) where m <= n, else (n, rank)."""
    left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    m, n = gradient.shape
    basis: Tensor = left[:, :rank] if m <= n else right[:rank].T
    return basis.to(gradient.dtype).contiguous()


def project(gradient: Tensor, basis: Tensor) -> Tensor:
    """The gradient in the subspace: (rank, n) where m <= n, else (m, rank)."""
    m, n = gradient.shape
    return basis.T @ gradient if m <= n else gradient @ basis


def back(step: Tensor, basis: Tensor, shape: torch.Size) -> Tensor:
    """From the subspace to the weight's shape."""
    return basis @ step if shape[0] <= shape[1] else step @ basis.T

"""AdamW whose states live in a low-rank subspace of each gradient (GaLore, arXiv:2403.03507, algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class ProjectedAdamW(torch.optim.Optimizer):
    """AdamW (decoupled decay) on R = P^T G where G is m x n with m <= n, on R = G P otherwise.

    P has the first ``rank`` singular vectors of the gradient of the smaller side, recomputed every ``update_gap``
    steps; the states stay. The step is scale * P N (or N P^T), N being Adam's normalised step in the subspace. A
    parameter whose smaller side does not exceed the rank, or with ``rank`` None, has plain AdamW.

    With ``layerwise`` a parameter moves as soon as its gradient is there, which is then dropped: no two gradients of
    full size are in memory at once. ``step`` then finds nothing to do.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        update_gap: int = 200,
        scale: float = 1.0,
        layerwise: bool = False,
    ) -> None:
        common = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "update_gap": update_gap, "scale": scale}
        super().__init__(params, {"lr": lr, "rank": None, **common})
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._arrives(index))
            for index, group in enumerate(self.param_groups if layerwise else ())
            for parameter in group["params"]
        ]

    def _arrives(self, index: int) -> Callable[[torch.Tensor], None]:
        @torch.no_grad()
        def arrived(parameter: torch.Tensor) -> None:
            self._update(parameter, self.param_groups[index])  # looked up now: accelerate replaces the groups once
            parameter.grad = None

        return arrived

    def release(self) -> None:
        """Take the hooks of layerwise updates off: from now on gradients stay, and nothing moves."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's own
        """One step over every parameter with a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None  # step checks it first
        state = self.state[parameter]
        low_rank = group["rank"] is not None and parameter.ndim == 2 and group["rank"] < min(parameter.shape)
        if low_rank and "projector" not in state and not gradient.any():
            return  # zeros span no subspace: LoRA's A has none before B has moved
        state["step"] = state.get("step", 0) + 1
        if low_rank:
            if self._due(state, group):
                self._renew(state, gradient, group)
            gradient = self._project(state, gradient, group)
        exp_avg, exp_avg_sq = self._moments(state, gradient, group["betas"], projected=low_rank)
        first, second = group["betas"]
        corrected = math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
        normalised = exp_avg / (exp_avg_sq.sqrt() + group["eps"]) * corrected
        if low_rank:
            normalised = group["scale"] * self._back(state, normalised, parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(normalised, alpha=-group["lr"])

    # --- what variants change ------------------------------------------------------------------
    def _due(self, state: dict[str, Any], group: dict[str, Any]) -> bool:
        """True if the subspace is recomputed at this step."""
        return bool((state["step"] - 1) % group["update_gap"] == 0)

    def _renew(self, state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """Take the subspace from this gradient."""
        state["projector"] = projector(gradient, group["rank"])

    def _project(self, state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """The gradient in the subspace, as Adam is fed with it."""
        return project(gradient, state["projector"])

    def _back(self, state: dict[str, Any], step: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """From the subspace to the weight's shape."""
        return back(step, state["projector"], shape)

    def _moments(
        self, state: dict[str, Any], gradient: torch.Tensor, betas: tuple[float, float], *, projected: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adam's two moments after this gradient."""
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["exp_avg"].lerp_(gradient, 1 - betas[0])
        state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        return state["exp_avg"], state["exp_avg_sq"]


def projector(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    """First ``rank`` singular vectors of the smaller side: (m, rank) where m <= n, else (n, rank)."""
    left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    m, n = gradient.shape
    basis: torch.Tensor = left[:, :rank] if m <= n else right[:rank].T
    return basis.to(gradient.dtype).contiguous()


def project(gradient: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The gradient in the subspace: (rank, n) where m <= n, else (m, rank)."""
    m, n = gradient.shape
    return basis.T @ gradient if m <= n else gradient @ basis


def back(step: torch.Tensor, basis: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """From the subspace to the weight's shape."""
    return basis @ step if shape[0] <= shape[1] else step @ basis.T

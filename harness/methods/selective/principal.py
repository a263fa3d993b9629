"""AdamW on the principal weights of each matrix (LIFT, arXiv:2506.00772)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class PrincipalAdamW(torch.optim.Optimizer):
    """AdamW (decoupled decay) whose states, and whose steps, are those of some entries of each matrix.

    A group with ``rank`` None has all entries of its parameters chosen.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        picture: int,
        interval: int,
    ) -> None:
        common = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "picture": picture, "interval": interval}
        super().__init__(params, {"lr": lr, "rank": None, **common})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's own
        """One step over every parameter with a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        steps = state.get("step", 0)
        if "index" not in state or (group["rank"] is not None and steps % group["interval"] == 0):
            self._choose(parameter, state, group)
        state["step"] = steps = steps + 1
        here = gradient.flatten()[state["index"]]
        first, second = group["betas"]
        state["exp_avg"].lerp_(here, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(here, here, value=1 - second)
        corrected = math.sqrt(1 - second**steps) / (1 - first**steps)
        step = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"]) * corrected
        values = parameter.data.view(-1)
        kept = values[state["index"]] * (1 - group["lr"] * group["weight_decay"])
        values[state["index"]] = kept - group["lr"] * step

    def _choose(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
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


def principal(weight: Tensor, number: int, rank: int) -> Tensor:
    """Flat indices of the ``number`` entries that are largest in size in the weight's best rank-``rank`` picture.

    Matrices much larger than the rank are pictured by a randomised decomposition.
    """
    values = weight.float()
    if min(values.shape) > 8 * rank:
        u, s, v = torch.svd_lowrank(values, q=rank, niter=2)
        picture = (u * s) @ v.T
    else:
        u, s, vh = torch.linalg.svd(values, full_matrices=False)
        picture = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return picture.abs().flatten().topk(min(number, values.numel())).indices

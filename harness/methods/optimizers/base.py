"""Base of this project's own optimizers: the loop over parameters, updates in the backward pass, and Adam's step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

State = dict[str, Any]
Group = dict[str, Any]


class ParameterOptimizer(torch.optim.Optimizer):
    """Moves one parameter at a time (:meth:`_update`): all of them in ``step``, or each in the backward pass.

    Args:
        params: parameters or groups of them.
        defaults: values of a group that does not state its own.
        fused: a parameter moves as soon as its gradient is there, which is then dropped: no two gradients of full size
            are in memory at once. ``step`` then does nothing; it is there for the schedule of the learning rate.
    """

    def __init__(self, params: ParamsT, defaults: Group, *, fused: bool = False) -> None:
        super().__init__(params, defaults)
        self.fused = fused
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._arrives(index))
            for index, group in enumerate(self.param_groups if fused else ())
            for parameter in group["params"]
        ]

    def _arrives(self, index: int) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def arrived(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None  # the hook is called when it was accumulated
            self._update(parameter, gradient, self.param_groups[index])  # looked up now: accelerate replaces them once

        return arrived

    def release(self) -> None:
        """Take the hooks off: from now on gradients stay where they are, and nothing moves."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's own
        """One step over every parameter with a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups if not self.fused else ():
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        """Move one parameter."""
        raise NotImplementedError


class AdamOptimizer(ParameterOptimizer):
    """Base of variants of AdamW (decoupled decay). A group's ``rank`` is that of what a variant does to matrices.

    Args:
        params: parameters or groups of them.
        own: further values of a group.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool = False,
        **own: object,
    ) -> None:
        common = {"lr": lr, "rank": None, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**common, **own}, fused=fused)

    def _adam(self, state: State, gradient: Tensor, group: Group, *, projected: bool = False) -> Tensor:
        """Adam's step at rate 1, its bias corrected, after ``state["step"]`` gradients with this one."""
        exp_avg, exp_avg_sq = self._moments(state, gradient, group["betas"], projected=projected)
        step: Tensor = exp_avg / (exp_avg_sq.sqrt() + group["eps"])
        return step * correction(state["step"], group["betas"])

    def _moments(
        self, state: State, gradient: Tensor, betas: tuple[float, float], *, projected: bool
    ) -> tuple[Tensor, Tensor]:
        """Adam's two moments after this gradient."""
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["exp_avg"].lerp_(gradient, 1 - betas[0])
        state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        return state["exp_avg"], state["exp_avg_sq"]


def correction(step: int, betas: tuple[float, float]) -> float:
    """Factor that makes up for moments that began at zero, after so many steps."""
    return math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)

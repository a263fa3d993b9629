"""APOLLO's optimizer: the raw gradient, scaled per channel or tensor by what Adam does to a random projection of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from harness.methods.optimizers.projected import project

GROWTH = 1.01
"""The norm of a tensor's step grows at most by this factor from step to step (the limiter of Fira, kept by APOLLO)."""


class ApolloAdamW(torch.optim.Optimizer):
    """W <- (1 - lr wd) W - lr scale sqrt(m / r) G diag(s), with s_j = |N_j| / |R_j| (arXiv:2412.05270, algorithm 1).

    R = P G is the gradient under a random projection of the smaller side m to ``rank``, N is Adam's normalised step
    on R. ``sqrt(m / r)`` undoes that N has fewer entries than Adam's full step has (the paper's equation for the ratio
    of the two). P is drawn from a seed and never stored; every ``update_gap`` steps the seed is another one. With
    ``per_channel`` false there is one factor a tensor. Groups whose ``rank`` is None have plain AdamW.
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
        per_channel: bool = True,
        seed: int = 0,
    ) -> None:
        common = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "update_gap": update_gap, "scale": scale}
        super().__init__(params, {"lr": lr, "rank": None, "per_channel": per_channel, **common})
        self._seeds = torch.Generator().manual_seed(seed)

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
        state, rank = self.state[parameter], group["rank"]
        state["step"] = state.get("step", 0) + 1
        auxiliary = rank is not None and parameter.ndim == 2 and rank < min(parameter.shape)
        seen = gradient
        if auxiliary:
            if (state["step"] - 1) % group["update_gap"] == 0:
                state["seed"] = int(torch.randint(2**62, (), generator=self._seeds))
            seen = project(gradient, random_projection(gradient, rank, state["seed"]))
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(seen), torch.zeros_like(seen)
        first, second = group["betas"]
        state["exp_avg"].lerp_(seen, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(seen, seen, value=1 - second)
        corrected = math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
        step = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"]) * corrected
        if auxiliary:
            step = self._scaled(gradient, seen, step, state, group)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])

    def _scaled(
        self,
        gradient: torch.Tensor,
        seen: torch.Tensor,
        step: torch.Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
    ) -> torch.Tensor:
        m, n = gradient.shape
        side = (0 if m <= n else 1) if group["per_channel"] else (0, 1)
        ratio = step.norm(dim=side, keepdim=True) / (seen.norm(dim=side, keepdim=True) + 1e-12)
        scaled: torch.Tensor = gradient * ratio * (group["scale"] * math.sqrt(min(m, n) / group["rank"]))
        norm = float(scaled.norm())
        last = state.get("norm")
        if last and norm > GROWTH * last:
            scaled, norm = scaled * (GROWTH * last / norm), GROWTH * last
        state["norm"] = norm
        return scaled


def random_projection(gradient: torch.Tensor, rank: int, seed: int) -> torch.Tensor:
    """P^T of the smaller side, [min(m, n), rank], entries N(0, 1/rank): the same for the same seed."""
    generator = torch.Generator(gradient.device).manual_seed(seed)
    shape = (min(gradient.shape), rank)
    drawn = torch.randn(shape, generator=generator, device=gradient.device) / math.sqrt(rank)
    return drawn.to(gradient.dtype)

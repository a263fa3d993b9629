"""GaLore's relatives: 8-bit moments, a quantized and lazy projector, natural gradients, a projection on both sides, and
APOLLO, which scales the raw gradient.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from harness.methods.optimizers.base import Group, State, correction
from harness.methods.optimizers.projected import ProjectedAdamW, project, projector
from harness.quantizers.packing import Grid, pack, unpack

BLOCK = 256
"""Entries that share a scale: of 8-bit moments (arXiv:2110.02861) and of Q-GaLore's 4-bit projectors."""
LEAST_8BIT = 4096
"""Unprojected tensors below this size keep 32-bit moments, as in bitsandbytes; projected ones are always 8-bit."""
GROWTH = 1.01
"""The norm of a tensor's step grows at most by this factor from step to step (the limiter of Fira, kept by APOLLO)."""
INT4 = Grid(bits=4, group_size=BLOCK, symmetric=False)


@functools.cache
def dynamic_map(*, signed: bool) -> Tensor:
    """The 256 values of bitsandbytes' dynamic 8-bit format."""
    from bitsandbytes.functional import create_dynamic_map

    return torch.as_tensor(create_dynamic_map(signed=signed))


class EightBitProjectedAdamW(ProjectedAdamW):
    """GaLore whose two moments are stored block-wise in 8 bits and decoded for one tensor at a time."""

    def _moments(
        self, state: State, gradient: Tensor, betas: tuple[float, float], *, projected: bool
    ) -> tuple[Tensor, Tensor]:
        if not projected and gradient.numel() < LEAST_8BIT:
            return super()._moments(state, gradient, betas, projected=projected)
        from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

        found = []
        for name, beta, new in (("exp_avg", betas[0], gradient), ("exp_avg_sq", betas[1], gradient * gradient)):
            code = dynamic_map(signed=name == "exp_avg").to(gradient.device)
            moment = torch.zeros_like(gradient, dtype=torch.float32)
            if name in state:
                codes, scales = state[name]
                moment = dequantize_blockwise(codes, absmax=scales, code=code, blocksize=BLOCK)
            moment.mul_(beta).add_(new.float(), alpha=1 - beta)
            codes, kept = quantize_blockwise(moment.contiguous(), code=code, blocksize=BLOCK)
            state[name] = (codes, kept.absmax)
            found.append(moment.to(gradient.dtype))
        return found[0], found[1]


class LazyProjectedAdamW(EightBitProjectedAdamW):
    """Q-GaLore's optimizer (arXiv:2407.08296): a 4-bit projector, recomputed less often the less it turns.

    When the last ``patience`` projectors resembled their predecessors by ``threshold`` or more on average, the gap to
    the next one doubles. Resemblance is the mean absolute cosine of singular vectors of one rank; their sign means
    nothing. As in the released code, ``mode`` "repo" takes the signed cosine of the first vector alone, and keeps the
    likenesses after the gap has doubled.
    """

    def __init__(self, params: ParamsT, *, threshold: float, patience: int, mode: str = "paper", **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.threshold, self.patience, self.mode = threshold, patience, mode

    def _likeness(self, state: State, new: Tensor) -> float:
        """Similarity of the new singular vectors to the last ones."""
        if self.mode == "repo":
            return float(torch.nn.functional.cosine_similarity(new[:, 0].float(), state["first"].float(), dim=0))
        cosine = torch.nn.functional.cosine_similarity(new.float(), self._basis(state).float(), dim=0)
        return float(cosine.abs().mean())

    def _due(self, state: State, group: Group) -> bool:
        state["due"] = state.get("due", 0) - 1
        return bool(state["due"] < 0)

    def _renew(self, state: State, gradient: Tensor, group: Group) -> None:
        new = projector(gradient, group["rank"])
        gap: Any = state.setdefault("gap", group["update_gap"])
        if "projector" in state:
            state["alike"] = [*state.get("alike", []), self._likeness(state, new)][-self.patience :]
            if len(state["alike"]) == self.patience and sum(state["alike"]) / self.patience >= self.threshold:
                state["gap"] = 2 * gap
                if self.mode == "paper":
                    state["alike"] = []
        if self.mode == "repo":
            state["first"] = new[:, 0].clone()
        state["due"] = state["gap"] - 1
        rows = new.T.contiguous()  # a singular vector's entries share scales
        scale, zero = INT4.fit(rows)
        state["projector"] = (pack(INT4.encode(rows, scale, zero), INT4.bits), scale, zero, rows.shape[1])

    def _basis(self, state: State) -> Tensor:
        codes, scale, zero, columns = state["projector"]
        return INT4.decode(unpack(codes, INT4.bits, columns), scale, zero).T


class NaturalProjectedAdamW(ProjectedAdamW):
    """Natural GaLore (arXiv:2410.16029): Adam is fed (lambda I + G G^T)^-1 g instead of the projected gradient g.

    The columns of G are the last ``history`` projected gradients, g among them; by Woodbury's identity only a
    ``history`` x ``history`` system is solved. Gradients of another subspace are forgotten: they do not add.
    """

    def __init__(self, params: ParamsT, *, history: int, damping: float, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.history, self.damping = history, damping

    def _renew(self, state: State, gradient: Tensor, group: Group) -> None:
        super()._renew(state, gradient, group)
        state.pop("history", None)

    def _project(self, state: State, gradient: Tensor, group: Group) -> Tensor:
        low = super()._project(state, gradient, group)
        row = low.flatten()[None]
        known = state.get("history")
        state["history"] = row if known is None else torch.cat([known, row])[-self.history :]
        return natural(state["history"], row[0], self.damping).reshape(low.shape)


def natural(history: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """(damping I + G G^T)^-1 gradient, with ``history`` = G^T ([steps, entries]); entries x entries is never made."""
    g, rows = gradient.float(), history.float()
    small = rows @ rows.T + damping * torch.eye(len(rows), device=rows.device)
    inner = torch.cholesky_solve((rows @ g)[:, None], torch.linalg.cholesky(small))
    return ((g - rows.T @ inner[:, 0]) / damping).to(gradient.dtype)


class TwoSidedAdamW(ProjectedAdamW):
    """Adam on R = U^T G V, with the first ``rank`` singular vectors of both sides; the step is scale * U N V^T."""

    def _renew(self, state: State, gradient: Tensor, group: Group) -> None:
        left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
        rank = group["rank"]
        sides = (left[:, :rank], right[:rank].T)
        state["projector"] = tuple(side.to(gradient.dtype).contiguous() for side in sides)

    def _project(self, state: State, gradient: Tensor, group: Group) -> Tensor:
        left, right = state["projector"]
        low: Tensor = left.T @ gradient @ right
        return low

    def _back(self, state: State, step: Tensor, seen: Tensor, gradient: Tensor, group: Group) -> Tensor:
        left, right = state["projector"]
        full: Tensor = group["scale"] * (left @ step @ right.T)
        return full


class EightBitTwoSidedAdamW(TwoSidedAdamW, EightBitProjectedAdamW):
    """The projection from both sides, with block-wise 8-bit moments (the 8-bit form of GradNormLoRP)."""


class RowNormalisedAdamW(ProjectedAdamW):
    """GradNormLoRP's released optimizer (``mode: repo``).

    A matrix is written as g v / |v| by rows. At the beginning of a step g is set to |v|; the gradient of v is projected
    and Adam's step taken on it, Adam takes a step on g too, and the weight becomes g v / |v| of the new values: that is
    what is saved, and where the next gradient is taken. A row of zeros has no direction (the released code divides by
    zero there); it moves by v's step alone.
    """

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        if group["rank"] is None or parameter.ndim != 2:
            super()._update(parameter, gradient, group)
            return
        if not gradient.any():
            return
        state = self.state[parameter]
        v = state.setdefault("v", parameter.detach().clone())
        lengths = v.norm(dim=1, keepdim=True)
        of_length = (gradient * v).sum(dim=1, keepdim=True) / lengths.clamp(min=1e-12)
        lengths_state = state.setdefault("length", {})
        parameter.copy_(v)
        super()._update(parameter, gradient, group)  # v's step: projected where the rank is below the smaller side
        v.copy_(parameter)
        exp_avg, exp_avg_sq = self._moments(lengths_state, of_length, group["betas"], projected=False)
        corrected = correction(state["step"], group["betas"])
        new = (lengths - group["lr"] * corrected * exp_avg / (exp_avg_sq.sqrt() + group["eps"])) * (
            1 - group["lr"] * group["weight_decay"]
        )
        now = v.norm(dim=1, keepdim=True)
        parameter.copy_(torch.where(lengths > 0, new * v / now.clamp(min=1e-12), v))


class EightBitRowNormalisedAdamW(RowNormalisedAdamW, EightBitProjectedAdamW):
    """The same with block-wise 8-bit moments."""


class ApolloAdamW(ProjectedAdamW):
    """W <- (1 - lr wd) W - lr scale sqrt(m / r) G diag(s), with s_j = |N_j| / |R_j| (arXiv:2412.05270, algorithm 1).

    R = P G is the gradient under a random projection of the smaller side m to ``rank``, N is Adam's normalised step
    on R. ``sqrt(m / r)`` undoes that N has fewer entries than Adam's full step has (the paper's equation for the ratio
    of the two). P is drawn from a seed and never stored; every ``update_gap`` steps the seed is another one. With
    ``per_channel`` false there is one factor a tensor. Groups whose ``rank`` is None have plain AdamW.
    """

    def __init__(self, params: ParamsT, *, per_channel: bool = True, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.per_channel = per_channel
        self._seeds = torch.Generator().manual_seed(seed)

    def _waits(self, state: State, gradient: Tensor) -> bool:
        return False  # its subspace is not the gradient's

    def _renew(self, state: State, gradient: Tensor, group: Group) -> None:
        state["seed"] = int(torch.randint(2**62, (), generator=self._seeds))

    def _project(self, state: State, gradient: Tensor, group: Group) -> Tensor:
        return project(gradient, random_projection(gradient, group["rank"], state["seed"]))

    def _back(self, state: State, step: Tensor, seen: Tensor, gradient: Tensor, group: Group) -> Tensor:
        m, n = gradient.shape
        side = (0 if m <= n else 1) if self.per_channel else (0, 1)
        ratio = step.norm(dim=side, keepdim=True) / (seen.norm(dim=side, keepdim=True) + 1e-12)
        scaled: Tensor = gradient * ratio * (group["scale"] * math.sqrt(min(m, n) / group["rank"]))
        norm = float(scaled.norm())
        last = state.get("norm")
        if last and norm > GROWTH * last:
            scaled, norm = scaled * (GROWTH * last / norm), GROWTH * last
        state["norm"] = norm
        return scaled


def random_projection(gradient: Tensor, rank: int, seed: int) -> Tensor:
    """P^T of the smaller side, [min(m, n), rank], entries N(0, 1/rank): the same for the same seed."""
    generator = torch.Generator(gradient.device).manual_seed(seed)
    shape = (min(gradient.shape), rank)
    drawn = torch.randn(shape, generator=generator, device=gradient.device) / math.sqrt(rank)
    return drawn.to(gradient.dtype)

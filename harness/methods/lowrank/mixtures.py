"""Weighted sums of random matrices that are not stored: they are drawn again whenever they are needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

AT_ONCE = 64
"""Matrices drawn together, which bounds the memory that mixing takes."""


def drawn(number: int, seed: int, shape: tuple[int, int], device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """``number`` matrices uniform on [-1, 1), some at a time with their positions; the same every time."""
    each = math.prod(shape)
    for start in range(0, number, AT_ONCE):
        part = slice(start, min(number, start + AT_ONCE))
        numbers = uniform(seed, part.start * each, (part.stop - part.start) * each, device)
        yield part, numbers.view(-1, *shape)


def uniform(seed: int, start: int, count: int, device: torch.device) -> Tensor:
    """Numbers ``start`` to ``start + count`` of the sequence of ``seed``, uniform on [-1, 1), [count] in float32.

    Integer arithmetic on the position alone (SplitMix64), so that a checkpoint means the same on a GPU and a CPU;
    torch's generators do not draw alike there.
    """
    bits = (torch.arange(start + 1, start + count + 1, device=device) * _signed(0x9E3779B97F4A7C15)).add_(seed)
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    bits = bits ^ _shifted(bits, 31)
    return _shifted(bits, 40).float().mul_(2.0**-23).sub_(1.0)  # 24 bits, all that a float32 holds


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A logical shift to the right: torch's keeps the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)


def mixture(weights: Tensor, seed: int, shape: tuple[int, int]) -> Tensor:
    """``sum_i weights_i M_i`` of that shape; the gradient reaches the weights."""
    return cast(Tensor, _Mixture.apply(weights, seed, shape))  # type: ignore[no-untyped-call]


class _Mixture(torch.autograd.Function):
    """Keeps the weights' number and the seed for the backward pass, and no matrix."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, seed: int, shape: tuple[int, int]) -> Tensor:
        ctx.number, ctx.seed, ctx.shape = len(weights), seed, shape
        total = torch.zeros(shape, device=weights.device)
        with torch.autocast(weights.device.type, enabled=False):
            for part, matrices in drawn(len(weights), seed, shape, weights.device):
                total += torch.tensordot(weights[part], matrices, 1)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        found = torch.empty(ctx.number, device=gradient.device)
        for part, matrices in drawn(ctx.number, ctx.seed, ctx.shape, gradient.device):
            found[part] = torch.tensordot(matrices, gradient.float(), 2)
        return found, None, None


def noisy_product(x: Tensor, sizes: Tensor) -> Tensor:
    """``x E^T`` with ``E_ij = N(0, 1) sizes_i``, drawn again at each call; the gradient reaches x.

    The seed comes from torch's CPU generator, which gradient checkpointing sets back, so that a forward pass that is
    repeated sees the same noise.

    Args:
        x: [..., inputs], float32.
        sizes: [outputs].
    """
    seed = int(torch.randint(2**62, (), device="cpu"))
    return cast(Tensor, _NoisyProduct.apply(x, sizes, seed))  # type: ignore[no-untyped-call]


def noise(sizes: Tensor, inputs: int, seed: int) -> Tensor:
    """E, [outputs, inputs]."""
    generator = torch.Generator(sizes.device).manual_seed(seed)
    return torch.randn(len(sizes), inputs, generator=generator, device=sizes.device) * sizes[:, None]


class _NoisyProduct(torch.autograd.Function):
    """Keeps the rows' sizes and the seed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Tensor, seed: int) -> Tensor:
        ctx.seed, ctx.inputs = seed, x.shape[-1]
        ctx.save_for_backward(sizes)
        return x @ noise(sizes, ctx.inputs, seed).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (sizes,) = ctx.saved_tensors
        return gradient.float() @ noise(sizes, ctx.inputs, ctx.seed), None, None

"""A product with a random matrix that is drawn again for the backward pass instead of being kept for it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


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

"""Random directions that are drawn again from a seed instead of being stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

Mask = Callable[[int, torch.Tensor], torch.Tensor]
"""From a parameter's place in the list and its z to the masked z."""


def directions(parameters: Sequence[nn.Parameter], seed: int) -> Iterator[torch.Tensor]:
    """z for each parameter in turn, drawn in float32 from ``seed``: the same numbers every time it is asked."""
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in parameters:
        device = parameter.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        yield torch.randn(parameter.shape, generator=generators[device], device=device, dtype=torch.float32)


def shift(
    parameters: Sequence[nn.Parameter], seed: int, by: float, *, scale: float = 1.0, mask: Mask | None = None
) -> None:
    """theta <- scale * theta + by * z, in place, one tensor's z in memory at a time.

    In 16-bit weights the sum is made in float32 and rounded once, or small steps would vanish.
    """
    for index, (parameter, z) in enumerate(zip(parameters, directions(parameters, seed), strict=True)):
        masked = z if mask is None else mask(index, z)
        parameter.data.copy_(parameter.data.float().mul_(scale).add_(masked, alpha=by))


def bits(mask: torch.Tensor) -> torch.Tensor:
    """A boolean tensor as bytes of eight entries each, flat; the last byte is filled up with zeros."""
    flat = torch.nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (flat.to(torch.uint8) * weights).sum(dim=1, dtype=torch.uint8)


def unpacked(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Unpack the output of :func:`bits`."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> places) & 1).bool().flatten()[: shape.numel()].view(shape)

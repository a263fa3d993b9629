"""The sketch of a weight: codes in few bits that point at numbers of their row, and k-means to find both."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.quantizers.packing import pack, unpack

ROUNDS = 10
ROWS_AT_ONCE = 4096
"""Parts of rows that are clustered together, so that a large layer takes little memory."""


class SketchLinear(nn.Module):
    """``y = x W^T + b`` with ``W[i, j] = grid[i, group of j, code[i, j]]``.

    Args:
        linear: the layer to replace; its bias is kept.
        grid: [outputs, groups, 2^bits].
        codes: [outputs, inputs] in whole bytes, or packed by :func:`harness.quantizers.packing.pack`.
        bits: bits of a code.
        packed: whether ``codes`` are packed already.
    """

    sketch_codes: Tensor

    def __init__(self, linear: nn.Linear, grid: Tensor, codes: Tensor, bits: int, *, packed: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        self.register_buffer("sketch_codes", codes if packed else pack(codes, bits))
        self.sketch_grid = nn.Parameter(grid.float())
        self.bias = linear.bias

    def places(self) -> Tensor:
        """Index of each weight's number in its row's flattened grid: [outputs, inputs]."""
        codes = unpack(self.sketch_codes, self.bits, self.in_features).long()
        groups = self.sketch_grid.shape[1]
        size = -(-self.in_features // groups)
        group = torch.arange(self.in_features, device=codes.device) // size
        return cast(Tensor, codes + group * 2**self.bits)

    def dequantize(self) -> Tensor:
        """The weight, [outputs, inputs]."""
        return self.sketch_grid.detach().flatten(1).gather(1, self.places())

    def forward(self, input: Tensor) -> Tensor:
        """``x W^T + b``; the gradient reaches the input and the grid."""
        output = cast(Tensor, _SketchProduct.apply(input, self.sketch_grid, self))  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias


class _SketchProduct(torch.autograd.Function):
    """Reads W again in the backward pass; the gradient of a number is the sum over the weights that point at it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _grid: Tensor, layer: SketchLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return nn.functional.linear(x, layer.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        layer: SketchLinear = ctx.layer
        (x,) = ctx.saved_tensors
        of_input = gradient @ layer.dequantize().to(gradient.dtype) if ctx.needs_input_grad[0] else None
        of_weight = (gradient.flatten(0, -2).T @ x.flatten(0, -2)).float()
        of_grid = torch.zeros_like(layer.sketch_grid).flatten(1).scatter_add_(1, layer.places(), of_weight)
        return of_input, of_grid.view_as(layer.sketch_grid), None


def sketch(weight: Tensor, counted: Tensor, bits: int, groups: int) -> tuple[Tensor, Tensor]:
    """k-means of every part of every row.

    Args:
        weight: [outputs, inputs].
        counted: how much an input channel counts, [inputs].
        bits: 2^bits numbers a part.
        groups: parts of a row.

    Returns:
        grid [outputs, groups, 2^bits], ascending in each part, and codes (uint8, [outputs, inputs]).
    """
    rows, columns = weight.shape
    size = -(-columns // groups)
    grid = torch.zeros(rows, groups, 2**bits, device=weight.device)
    codes = torch.zeros(rows, columns, dtype=torch.uint8, device=weight.device)
    for group in range(groups):
        part = slice(group * size, min(columns, (group + 1) * size))
        for start in range(0, rows, ROWS_AT_ONCE):
            chunk = slice(start, start + ROWS_AT_ONCE)
            grid[chunk, group], codes[chunk, part] = kmeans(weight[chunk, part].float(), counted[part], 2**bits)
    return grid, codes


def kmeans(values: Tensor, counted: Tensor, centres: int) -> tuple[Tensor, Tensor]:
    """Weighted k-means on a line, for every row at once, from quantiles on.

    Args:
        values: [rows, n].
        counted: [n], not negative.
        centres: numbers a row.

    Returns:
        the centres, [rows, centres], ascending, and each value's nearest one (uint8, [rows, n]).
    """
    shares = (torch.arange(centres, device=values.device) + 0.5) / centres
    found = torch.quantile(values, shares, dim=1).T.contiguous()
    weights = (counted + 1e-12 + 1e-6 * counted.mean()).expand_as(values)  # a channel never seen still has its weight
    for _ in range(ROUNDS):
        nearest = _nearest(values, found)
        mass = torch.zeros_like(found).scatter_add_(1, nearest, weights)
        total = torch.zeros_like(found).scatter_add_(1, nearest, weights * values)
        found = torch.where(mass > 0, total / mass.clamp(min=1e-30), found)  # a centre without values stays
        found = found.sort(dim=1).values
    return found, _nearest(values, found).to(torch.uint8)


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    edges = (centres[:, 1:] + centres[:, :-1]) / 2
    return torch.searchsorted(edges.contiguous(), values.contiguous())

"""Our packed integer weights: b-bit codes in bytes, one scale and zero point per group, any device.

A weight w of a group with scale s and zero point z is stored as the code ``q = clamp(round(w / s) + z, 0, 2^b - 1)``
and read back as ``s (q - z)``. What chooses the codes is up to the quantizer (rounding, GPTQ, AWQ).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, nn


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (uint8, [rows, columns], each below 2^bits) as bytes (uint8, [rows, ceil(columns * bits / 8)], padded).

    The smallest run of whole bytes is packed at once: 8 codes in 3 bytes at 3 bits, 2 codes in a byte at 4.
    """
    per_run, run_bytes = _run(bits)
    rows = codes.shape[0]
    padded = nn.functional.pad(codes, (0, -codes.shape[1] % per_run)).reshape(rows, -1, per_run).to(torch.int32)
    word = (padded << _shifts(per_run, bits, codes.device)).sum(-1, keepdim=True, dtype=torch.int32)
    return ((word >> _shifts(run_bytes, 8, codes.device)) & 0xFF).to(torch.uint8).reshape(rows, -1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of :func:`pack`: codes, uint8, [rows, columns]."""
    per_run, run_bytes = _run(bits)
    rows = packed.shape[0]
    if bits == 8:
        return packed[:, :columns]
    runs = packed.reshape(rows, -1, run_bytes).to(torch.int32)
    word = (runs << _shifts(run_bytes, 8, packed.device)).sum(-1, keepdim=True, dtype=torch.int32)
    codes = (word >> _shifts(per_run, bits, packed.device)) & (2**bits - 1)
    return cast(Tensor, codes.to(torch.uint8).reshape(rows, -1)[:, :columns])


def _run(bits: int) -> tuple[int, int]:
    """Codes and bytes of the smallest run of whole bytes."""
    return 8 // gcd(8, bits), bits // gcd(8, bits)


def _shifts(n: int, step: int, device: torch.device) -> Tensor:
    return torch.arange(0, n * step, step, dtype=torch.int32, device=device)


@dataclass(frozen=True)
class Grid:
    """The values that codes of one layer can represent.

    Attributes:
        bits: bits of a code.
        group_size: neighbouring weights of a row that share a scale; the last group of a row may be shorter.
        symmetric: the zero point is 2^(bits-1) everywhere and is not stored.
    """

    bits: int
    group_size: int
    symmetric: bool

    def fit(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scales ([rows, groups], weight's dtype) and zero points (uint8, None if symmetric) that span each group.

        Zero is always in the range and is represented exactly. Asymmetric: ``s = (max - min) / (2^b - 1)``,
        ``z = round(-min / s)``. Symmetric: ``s = 2 max|w| / (2^b - 1)``, ``z = 2^(b-1)``.
        """
        groups = self._grouped(weight.float())
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        span = 2 * torch.maximum(-low, high) if self.symmetric else high - low
        scale = (span / (2**self.bits - 1)).to(weight.dtype)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a group of zeros
        if self.symmetric:
            return scale, None
        return scale, torch.round(-low / scale.float()).clamp(0, 2**self.bits - 1).to(torch.uint8)

    def encode(self, weight: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Nearest codes (uint8, [rows, columns])."""
        groups = self._grouped(weight.float())
        codes = torch.round(groups / scale.float().unsqueeze(-1)) + self._zero(zero)
        return codes.clamp(0, 2**self.bits - 1).to(torch.uint8).flatten(1)[:, : weight.shape[1]]

    def decode(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """The weights that codes represent ([rows, columns], the scale's dtype)."""
        values = self._grouped(codes.to(scale.dtype)) - self._zero(zero)
        return (values * scale.unsqueeze(-1)).flatten(1)[:, : codes.shape[1]]

    def per_group(self, rows: Tensor) -> Tensor:
        """Sums over each group: [rows, groups] from [rows, columns]."""
        return self._grouped(rows).sum(-1)

    def _grouped(self, rows: Tensor) -> Tensor:
        """[rows, columns] as [rows, groups, group_size]; the last group is filled up with zeros."""
        size = min(self.group_size, rows.shape[1])
        return nn.functional.pad(rows, (0, -rows.shape[1] % size)).reshape(rows.shape[0], -1, size)

    def _zero(self, zero: Tensor | None) -> Tensor | int:
        return 2 ** (self.bits - 1) if zero is None else zero.unsqueeze(-1)


class PackedLinear(nn.Linear):
    """A linear layer whose weight is held as packed codes and read back for every product.

    It is an ``nn.Linear`` so that adapters wrap it, but it has no weight parameter: nothing in it trains but the
    bias. ``weight`` is a dequantized copy; assigning to ``weight.data``, as merging does, rounds the new weight to
    the nearest codes. In-place operations on the copy itself are lost.

    Args:
        linear: the layer to replace; its bias is kept.
        grid: how codes are read.
        codes, scale, zero: as :class:`Grid` makes them.
        column_scale: a factor for each input column of the decoded weight ([columns]), or None.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    column_scale: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        grid: Grid,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        column_scale: Tensor | None = None,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.grid = grid
        self.register_buffer("packed", pack(codes, grid.bits))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.register_buffer("column_scale", column_scale)
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def dequantize(self) -> Tensor:
        """The weight the layer multiplies with, [out_features, in_features]."""
        weight = self.grid.decode(unpack(self.packed, self.grid.bits, self.in_features), self.scale, self.zero)
        return weight if self.column_scale is None else weight * self.column_scale

    def train_scales(self) -> nn.Parameter:
        """Turn the scales into a trainable float32 parameter of the same values; the codes stay as they are.

        Asked again, it gives the same parameter.
        """
        if not isinstance(self.scale, nn.Parameter):
            scale = self._buffers.pop("scale")
            assert scale is not None  # every layer has one
            self.scale = nn.Parameter(scale.float())
        return self.scale

    def requantize(self, weight: Tensor) -> None:
        """Round another weight of the same shape onto a newly fitted grid."""
        with torch.no_grad():
            if self.column_scale is not None:
                weight = weight / self.column_scale
            scale, zero = self.grid.fit(weight.to(self.scale.dtype))
            self.packed.copy_(pack(self.grid.encode(weight, scale, zero), self.grid.bits))
            self.scale.copy_(scale)
            if zero is not None and self.zero is not None:
                self.zero.copy_(zero)

    def scale_gradient(self, of_weight: Tensor) -> Tensor:
        """Gradient of the scales from the decoded weight's: [rows, groups] from [rows, columns]."""
        ones = torch.ones_like(self.scale)
        steps = self.grid.decode(unpack(self.packed, self.grid.bits, self.in_features), ones, self.zero)
        if self.column_scale is not None:
            steps = steps * self.column_scale
        return self.grid.per_group(of_weight * steps)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """A dequantized copy; see the class."""
        copy = self.dequantize().as_subclass(_DequantizedCopy)
        copy.owner = self
        return copy

    def forward(self, input: Tensor) -> Tensor:
        """``x W^T + b``; the gradient reaches the input (and a trainable bias, and trainable scales)."""
        output = cast(Tensor, _PackedProduct.apply(input, self.scale, self))  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias

    def extra_repr(self) -> str:
        """The shape and the grid."""
        return f"{super().extra_repr()}, {self.grid}"


class _DequantizedCopy(torch.Tensor):
    """A weight whose ``data`` can be assigned to; results of operations on it are plain tensors."""

    owner: PackedLinear
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:
        return self.as_subclass(torch.Tensor)

    @data.setter
    def data(self, value: Tensor) -> None:
        self.owner.requantize(value)


class _PackedProduct(torch.autograd.Function):
    """``x W^T`` that decodes W again in the backward pass, so that no decoded weight stays in memory between.

    With G = g^T x the gradient of the weight, that of a group's scale is the sum of G (q - z) over the group.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        if scale.requires_grad:
            ctx.save_for_backward(x)
        return nn.functional.linear(x, layer.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        layer = ctx.layer
        of_input = gradient @ layer.dequantize().to(gradient.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_input, None, None
        (x,) = ctx.saved_tensors
        of_weight = (gradient.flatten(0, -2).T @ x.flatten(0, -2)).float()
        return of_input, layer.scale_gradient(of_weight), None

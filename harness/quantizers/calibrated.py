"""GPTQ and AWQ from their equations, packed like ``rtn``: they run anywhere, without a special kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.quantizers.base import QuantizerDeclaration
from harness.quantizers.rtn import PackedQuantizer

if TYPE_CHECKING:  # heavy, and only for types
    from torch import Tensor, nn

    from harness.quantizers.calibration import ModelStatistics
    from harness.quantizers.packing import Grid, PackedLinear

_BOTH = frozenset({"before_training", "after_merge"})
_DEFAULTS = {"bits": 4, "group_size": 128, "symmetric": False}


class _Calibrated(PackedQuantizer):
    """Watches the inputs of every layer first."""

    calibration: ModelStatistics

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Mapping[str, object]]]) -> None:
        """Collect the layers' input statistics."""
        from harness.quantizers.calibration import ModelStatistics

        self.calibration = ModelStatistics()
        self.calibration.run(model, batches(self.declaration.calibration_batches))

    def facts(self) -> dict[str, Any]:
        """The calibration data's digest and size."""
        return self.calibration.facts()


class GPTQ(_Calibrated):
    """Columns are rounded one after another; the error of each is made good by those that are still to come.

    Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1, without the lazy blocks.
    """

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="gptq",
        summary="GPTQ from the paper's equations, packed like rtn; calibrated on training data, runs anywhere.",
        base="rtn",
        bits=4,
        moments=_BOTH,
        defaults={**_DEFAULTS, "damping": 0.01},
        source="arXiv:2210.17323; damping of 1 % as in section 3.3",
        calibration_batches=16,
    )

    def convert(self, name: str, linear: nn.Linear) -> PackedLinear:
        """The layer with its columns rounded in order."""
        from harness.quantizers.packing import PackedLinear

        gram = self.calibration.layers[name].gram
        return PackedLinear(linear, self.grid, *gptq(linear.weight.data, gram, self.grid, self.params["damping"]))


def gptq(weight: Tensor, gram: Tensor, grid: Grid, damping: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zero points of GPTQ.

    Args:
        weight: [rows, columns].
        gram: sum of ``x x^T`` over calibration tokens, [columns, columns].
        grid: its groups get their scales from the current weights when the group is reached.
        damping: share of the Hessian's mean diagonal that is added to it.
    """
    import torch

    from harness.quantizers.calibration import inverse_factor

    remaining = weight.float().clone()
    factor = inverse_factor(gram, damping)
    codes = torch.empty_like(weight, dtype=torch.uint8)
    scales: list[Tensor] = []
    zeros: list[Tensor | None] = []
    for column in range(weight.shape[1]):
        if column % grid.group_size == 0:
            scale, zero = grid.fit(remaining[:, column : column + grid.group_size].to(weight.dtype))
            scales.append(scale)
            zeros.append(zero)
        current = remaining[:, column : column + 1]
        codes[:, column : column + 1] = code = grid.encode(current, scales[-1], zeros[-1])
        error = (current - grid.decode(code, scales[-1], zeros[-1]).float()) / factor[column, column]
        remaining[:, column:] -= error * factor[column, column:]
    return codes, torch.cat(scales, 1), None if grid.symmetric else torch.cat([z for z in zeros if z is not None], 1)


class AWQ(_Calibrated):
    """Columns that see large inputs are scaled up before rounding and down after it, so that they lose less.

    The factor is ``s = mean|x|^a``; ``a`` is searched on a grid for the least output error (Lin et al. 2023,
    arXiv:2306.00978, equations 4 and 5). Here the factor stays with the layer instead of being folded into the layer
    before, so that any architecture is served; the paper's weight clipping is left out.
    """

    declaration: ClassVar[QuantizerDeclaration] = QuantizerDeclaration(
        name="awq",
        summary="AWQ scaling from the paper's equations, packed like rtn; calibrated on training data, runs anywhere.",
        base="rtn",
        bits=4,
        moments=_BOTH,
        defaults={**_DEFAULTS, "grid_points": 20},
        source="arXiv:2306.00978; 20 grid points as in section 3.2",
        calibration_batches=16,
    )

    def convert(self, name: str, linear: nn.Linear) -> PackedLinear:
        """The layer rounded under the best scaling found."""
        from harness.quantizers.packing import PackedLinear

        weight, grid, statistics = linear.weight.data, self.grid, self.calibration.layers[name]
        factors = awq_factors(weight, statistics.gram, statistics.magnitude, grid, self.params["grid_points"])
        scaled = weight * factors
        scale, zero = grid.fit(scaled)
        return PackedLinear(linear, grid, grid.encode(scaled, scale, zero), scale, zero, 1 / factors)


def awq_factors(weight: Tensor, gram: Tensor, magnitude: Tensor, grid: Grid, points: int) -> Tensor:
    """Scaling factors of the input columns ([columns], the weight's dtype) with the least output error.

    The output error ``sum |(W - W') x|^2`` over the calibration tokens is ``tr(D G D^T)`` with D = W - W'.
    ``a = 0`` (no scaling) is one of the points, so that the result is never worse than rounding to nearest.
    """
    import torch

    typical = magnitude.clamp(min=1e-12)
    best, least = torch.ones_like(weight[0]), float("inf")
    for point in range(points):
        factors = typical ** (point / points)
        factors = (factors / (factors.max() * factors.min()).sqrt()).to(weight.dtype)
        scaled = weight * factors
        scale, zero = grid.fit(scaled)
        difference = (weight - grid.decode(grid.encode(scaled, scale, zero), scale, zero) / factors).float()
        error = float(((difference @ gram) * difference).sum())
        if error < least:
            best, least = factors, error
    return best

"""Pruning as compression: weights of the body set to zero, unstructured or N of M.

Zeros are kept in dense tensors: no byte is saved in memory, and the records say so by measuring real bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError, shown
from harness.quantizers.base import Quantizer, QuantizerDeclaration
from harness.quantizers.layers import one_of, plain_linears

if TYPE_CHECKING:  # heavy, and only for types
    from torch import Tensor, nn

    from harness.quantizers.calibration import InputStatistics, ModelStatistics

PATTERNS = ("unstructured", "2:4", "4:8")
_SPARSEGPT_BLOCK = 128  # columns that get their mask together (section 3.3 of the paper)


class _Pruner(Quantizer):
    """Sets a share of the weights of every linear layer of the body to zero, layer by layer."""

    calibration: ModelStatistics | None = None
    zeros: int = 0
    weights: int = 0

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters; a pattern N:M and another sparsity contradict each other."""
        resolved = super().resolve(params, where=where)
        one_of("pattern", resolved["pattern"], PATTERNS, where)
        sparsity = resolved["sparsity"]
        if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 < sparsity < 1:
            raise UserError(f"sparsity must be between 0 and 1, not {shown(sparsity)}", where=where)
        if resolved["pattern"] != "unstructured" and sparsity != 0.5:
            raise UserError(f"pattern {resolved['pattern']} is a sparsity of 0.5, not {sparsity}", where=where)
        return resolved

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Mapping[str, object]]]) -> None:
        """Collect the layers' input statistics, where the criterion reads them."""
        from harness.quantizers.calibration import ModelStatistics

        if self.declaration.calibration_batches:
            self.calibration = ModelStatistics()
            self.calibration.run(model, batches(self.declaration.calibration_batches))

    def apply(self, model: nn.Module) -> nn.Module:
        """Prune in place."""
        import torch

        with torch.no_grad():
            for name, linear in plain_linears(model):
                pruned = self.prune(name, linear.weight.data)
                linear.weight.data.copy_(pruned)
                self.zeros += int((pruned == 0).sum())
                self.weights += pruned.numel()
        return model

    def prune(self, name: str, weight: Tensor) -> Tensor:
        """The pruned weight of the layer at module path ``name``."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """The share of zeros that was reached, and the calibration data."""
        return {"sparsity": self.zeros / self.weights, **(self.calibration.facts() if self.calibration else {})}

    def statistics(self, name: str) -> InputStatistics:
        """Statistics of the layer's calibration inputs."""
        if self.calibration is None:
            raise RuntimeError(f"{self.declaration.name} was applied before it was calibrated")
        return self.calibration.layers[name]

    def gram(self, name: str) -> Tensor:
        """Sum of ``x x^T`` over the layer's calibration inputs."""
        return self.statistics(name).gram


def keep_mask(score: Tensor, sparsity: float, pattern: str, *, per_row: bool) -> Tensor:
    """True where a weight stays: those of the highest score.

    Args:
        score: [rows, columns].
        sparsity: share of weights that go, rounded down to whole weights.
        pattern: ``unstructured``, or ``N:M``: N of every M neighbours in a row stay.
        per_row: whether unstructured scores compete within each row or within the whole matrix.

    Raises:
        UserError: the number of columns is no multiple of M.
    """
    import torch

    if pattern == "unstructured":
        pools = score if per_row else score.reshape(1, -1)
        kept = pools.shape[1] - int(sparsity * pools.shape[1])
    else:
        kept, size = map(int, pattern.split(":"))
        if score.shape[1] % size:
            raise UserError(f"pattern {pattern} needs rows of a multiple of {size} weights, not {score.shape[1]}")
        pools = score.reshape(-1, size)
    mask = torch.zeros_like(pools, dtype=torch.bool)
    mask.scatter_(1, pools.topk(kept, dim=1).indices, True)
    return mask.reshape(score.shape)


def sparsegpt(weight: Tensor, gram: Tensor, sparsity: float, pattern: str, damping: float) -> Tensor:
    """The pruned weight, the kept weights updated to make good what was removed.

    Masks are chosen for blocks of columns when their turn comes, by the least ``w^2 / [H^-1]_ii``; removing a
    weight moves those to its right as optimal brain surgery has it (Frantar and Alistarh 2023, arXiv:2301.00774,
    algorithm 1).
    """
    import torch

    from harness.quantizers.calibration import inverse_factor

    factor = inverse_factor(gram, damping)
    remaining = weight.float().clone()
    columns = weight.shape[1]
    width = _SPARSEGPT_BLOCK if pattern == "unstructured" else int(pattern.split(":")[1])
    for start in range(0, columns, width):
        block = slice(start, min(start + width, columns))
        score = remaining[:, block] ** 2 / factor.diagonal()[block] ** 2
        keep = keep_mask(score, sparsity, pattern, per_row=False)
        for column in range(block.start, block.stop):
            current = remaining[:, column].clone()
            gone = torch.where(keep[:, column - start], 0.0, current)
            remaining[:, column:] -= torch.outer(gone / factor[column, column], factor[column, column:])
            remaining[:, column] = current - gone  # exactly zero where it went
    return remaining.to(weight.dtype)


def _declare(name: str, summary: str, source: str, batches: int = 0, **defaults: object) -> QuantizerDeclaration:
    return QuantizerDeclaration(
        name=name,
        summary=summary,
        base="sparse",
        bits=32,
        moments=frozenset({"before_training", "after_merge"}),
        defaults={"sparsity": 0.5, "pattern": "unstructured", **defaults},
        source=source,
        refuses_merge="a dense adapter merged into a pruned weight fills its zeros again",
        calibration_batches=batches,
    )


class Magnitude(_Pruner):
    """The smallest weights of each layer go."""

    declaration: ClassVar[QuantizerDeclaration] = _declare(
        "prune-magnitude",
        "Magnitude pruning: the smallest weights of each layer become zero; no memory is saved.",
        "layer-wise magnitude, the baseline of arXiv:2306.11695",
    )

    def prune(self, name: str, weight: Tensor) -> Tensor:
        """Compare ``|w|`` within the layer."""
        keep = keep_mask(weight.abs(), self.params["sparsity"], self.params["pattern"], per_row=False)
        return weight * keep


class Wanda(_Pruner):
    """The weights of each row with the smallest ``|w| ||x||`` go, where x is the weight's input over all tokens.

    Source: Sun et al. 2023, arXiv:2306.11695, equation 1.
    """

    declaration: ClassVar[QuantizerDeclaration] = _declare(
        "prune-wanda",
        "Wanda: weights times the norm of their input, compared per row; no memory is saved.",
        "arXiv:2306.11695, equation 1",
        batches=16,
    )

    def prune(self, name: str, weight: Tensor) -> Tensor:
        """Compare ``|w| ||x||`` within each row."""
        score = weight.abs() * self.gram(name).diagonal().sqrt()
        return weight * keep_mask(score, self.params["sparsity"], self.params["pattern"], per_row=True)


class SparseGPT(_Pruner):
    """One-shot pruning with an update of the weights that stay."""

    declaration: ClassVar[QuantizerDeclaration] = _declare(
        "prune-sparsegpt",
        "SparseGPT: weights that cost the outputs least go, the others are updated; no memory is saved.",
        "arXiv:2301.00774, algorithm 1; damping of 1 % as there",
        batches=16,
        damping=0.01,
    )

    def prune(self, name: str, weight: Tensor) -> Tensor:
        """See :func:`sparsegpt`."""
        p = self.params
        return sparsegpt(weight, self.gram(name), p["sparsity"], p["pattern"], p["damping"])


class DSnoT(_Pruner):
    """Wanda's mask, rearranged without training until the pruned rows give the outputs' mean again.

    Source: Zhang et al. 2023, arXiv:2310.08915, equations 4 to 6; 50 cycles and a threshold of 0.1 as there.
    """

    declaration: ClassVar[QuantizerDeclaration] = _declare(
        "prune-dsnot",
        "DSnoT: from Wanda's mask, weights are grown and pruned in pairs against the mean output error.",
        "arXiv:2310.08915, equations 4 to 6; 50 cycles, threshold 0.1",
        batches=16,
        cycles=50,
        threshold=0.1,
    )

    def prune(self, name: str, weight: Tensor) -> Tensor:
        """See :func:`dsnot`."""
        p, seen = self.params, self.statistics(name)
        norm = seen.gram.diagonal().sqrt()
        keep = keep_mask(weight.abs() * norm, p["sparsity"], p["pattern"], per_row=True)
        mean = seen.total / seen.tokens
        variance = (seen.gram.diagonal() / seen.tokens - mean**2).clamp(min=1e-12)
        return weight * dsnot(
            weight.float(), keep, mean, variance, norm, p["pattern"], cycles=p["cycles"], threshold=p["threshold"]
        )


def dsnot(
    weight: Tensor,
    keep: Tensor,
    mean: Tensor,
    variance: Tensor,
    norm: Tensor,
    pattern: str,
    *,
    cycles: int,
    threshold: float,
) -> Tensor:
    """A mask with as many weights in every row (and group) as ``keep``, and a smaller mean output error.

    The expected error of a row is ``D = -sum over its pruned weights of w E[x]``. Each cycle restores the pruned weight
    with the largest ``sign(-D) w E[x] / Var[x]`` and removes, among the kept ones whose removal also brings D nearer
    to zero, that with the smallest ``|w| ||x||``; with N:M, one of the same group. A row rests when ``|D|`` is under
    the threshold. (Here it also rests when a pair would not lower ``|D|``, so that no row ends worse than it began.)

    Args:
        weight: [rows, columns], float32.
        keep: the mask to begin with, [rows, columns].
        mean, variance: of each input column over the calibration tokens, [columns].
        norm: Euclidean norm of each input column over those tokens, [columns].
    """
    import torch

    keep = keep.clone()
    effect = weight * mean
    cost = weight.abs() * norm
    size = weight.shape[1] if pattern == "unstructured" else int(pattern.split(":")[1])
    group = torch.arange(weight.shape[1], device=weight.device) // size
    rows = torch.arange(weight.shape[0], device=weight.device)
    resting = torch.zeros(weight.shape[0], dtype=torch.bool, device=weight.device)
    for _ in range(cycles):
        error = -(effect * ~keep).sum(1)
        sign = torch.sign(error).unsqueeze(1)
        growth = torch.where(keep, -torch.inf, -sign * effect / variance)
        grown = growth.argmax(1)
        removable = keep & (sign * effect > 0) & (group == group[grown].unsqueeze(1))
        removed = torch.where(removable, cost, torch.inf).argmin(1)
        after = error + effect[rows, grown] - effect[rows, removed]
        resting |= (error.abs() < threshold) | ~removable.any(1) | (after.abs() >= error.abs())
        moving = rows[~resting]
        if not len(moving):
            break
        keep[moving, grown[moving]] = True
        keep[moving, removed[moving]] = False
    return keep

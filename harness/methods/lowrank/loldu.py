"""LoLDU: a few numbers on the diagonal of a weight's LDU decomposition train (arXiv:2410.13618)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods.base import Declaration
from harness.methods.delta import ADAPTS, MERGE_REFUSES, REFUSES, parameter
from harness.methods.lowrank.factors import LowRank, whole
from harness.methods.modules import Linear

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

SMALLEST = 1e-6
"""Entries of the diagonal below this are not divided by: the rows of such a weight depend on each other."""


class LoLDU(LowRank):
    """With ``W = P L diag(d) U``: ``dW = P L_r diag(c z - s d_r) U_r``, of which z (r numbers) and the scale c train.

    L_r and U_r are the first r columns and rows of triangular matrices with ones on the diagonal, and frozen. z starts
    at d_r and c at s = alpha / r. The paper subtracts ``s P L_r diag(d_r) U_r`` from the base instead, which is the
    same sum; this way the base stays as it is and may be quantized.
    """

    tensors = ("loldu_z", "loldu_c", "loldu_d", "loldu_l", "loldu_u")
    declaration: ClassVar[Declaration] = Declaration(
        name="loldu",
        summary="Decomposes each weight into triangular factors and trains a few numbers of the diagonal between them.",
        family="adapter",
        trainable="r + 1 per linear layer of the blocks, and a classifier's head.",
        paper="2410.13618",
        bases=ADAPTS,
        refuses=REFUSES,
        merge_refuses=MERGE_REFUSES,
        mergeable="exactly",
        defaults={"r": 16, "alpha": 16},
        defaults_source="scale alpha/r, and the weight's own diagonal as the start, as in the released code; rank and "
        "rate are ours",
        lr_factor=10.0,
    )

    def size(self, layer: Linear) -> int:
        """The diagonal and the scale."""
        return self.rank(layer) + 1

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """Decompose the weight; keep the first r columns and rows."""
        import torch

        lower, diagonal, upper = ldu(whole(module), self.rank(layer))
        for name, values in (("loldu_l", lower), ("loldu_u", upper), ("loldu_d", diagonal)):
            module.register_buffer(name, values, persistent=False)
        module.register_parameter("loldu_z", parameter(diagonal.clone(), module))
        module.register_parameter("loldu_c", parameter(torch.tensor([self.scale]), module))

    def moved(self, module: Any) -> torch.Tensor:
        """c z - s d_r."""
        found: torch.Tensor = module.loldu_c * module.loldu_z - self.scale * module.loldu_d
        return found

    def added(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """P L_r diag(c z - s d_r) U_r x."""
        found: torch.Tensor = ((x.float() @ module.loldu_u.T) * self.moved(module)) @ module.loldu_l.T
        return found

    def delta(self, module: Any) -> torch.Tensor:
        """P L_r diag(c z - s d_r) U_r."""
        found: torch.Tensor = (module.loldu_l * self.moved(module)) @ module.loldu_u
        return found


def ldu(weight: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first r columns of P L, entries of d and rows of U: [outputs, r], [r], [r, inputs].

    P is applied as an order of rows; as a matrix it would be as large as outputs squared.
    """
    import torch

    packed, pivots, _ = torch.linalg.lu_factor_ex(weight)  # a zero on the diagonal is no error here
    order = list(range(len(weight)))
    for row, other in enumerate((pivots - 1).tolist()):
        order[row], order[other] = order[other], order[row]
    lower = torch.empty_like(packed[:, :r])
    lower[order] = packed[:, :r].tril(-1) + torch.eye(len(weight), r, device=weight.device)
    diagonal = packed.diagonal()[:r].clone()
    divisor = torch.where(diagonal.abs() > SMALLEST, diagonal, torch.ones_like(diagonal))
    return lower, diagonal, packed[:r].triu(1) / divisor[:, None] + torch.eye(r, weight.shape[1], device=weight.device)

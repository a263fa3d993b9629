"""NOLA: the factors are mixtures of random matrices that a seed draws again (arXiv:2310.02556)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods.base import Declaration
from harness.methods.delta import ADAPTS, MERGE_REFUSES, REFUSES, parameter
from harness.methods.lowrank.factors import LowRank
from harness.methods.modules import Linear
from harness.quantizers.layers import positive

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class NOLA(LowRank):
    """``dW = s B A`` with ``A = sum a_i A_i`` and ``B = sum b_j B_j``; A_i and B_j are uniform on [-1, 1) and frozen.

    They are drawn again from a seed in every forward and backward pass, so that only the mixing numbers a and b are
        stored and trained: as many for a large matrix as for a small one. b starts at zero.
    """

    tensors = ("nola_a", "nola_b", "nola_seed")
    declaration: ClassVar[Declaration] = Declaration(
        name="nola",
        summary="LoRA whose factors are mixtures of seeded random matrices, of which only the mixing numbers train.",
        family="adapter",
        trainable="2k per linear layer of the blocks, independent of its shape and the rank, and a classifier's head.",
        paper="2310.02556",
        bases=ADAPTS,
        refuses=REFUSES,
        merge_refuses=MERGE_REFUSES,
        mergeable="exactly",
        defaults={"k": 64, "r": 8, "alpha": 8},
        defaults_source="ours: the released code mixes about 1000 matrices into a factor, which takes as much longer "
        "to draw; rate: the best of three on the built-in nano model",
        lr_factor=3.0,
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: as in every low-rank adapter, or a number of matrices that is not a positive whole number.
        """
        resolved = super().resolve(params, where=where)
        positive("k of method 'nola'", resolved["k"], where)
        return resolved

    def size(self, layer: Linear) -> int:
        """The mixing numbers of both factors."""
        return 2 * int(self.params["k"])

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """a such that A's entries have the size of LoRA's; zeros for b; a seed of the layer's own."""
        import torch

        k = int(self.params["k"])
        a = torch.randn(k, generator=generator) / (k * layer.inputs) ** 0.5
        module.register_parameter("nola_a", parameter(a, module))
        module.register_parameter("nola_b", parameter(torch.zeros(k), module))
        own: Any = module
        own.nola_seed = int(torch.randint(2**62, (1,), generator=generator))

    def factors(self, module: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """B, [outputs, r], and A, [r, inputs]."""
        from harness.methods.lowrank.mixtures import mixture

        r, seed = int(self.params["r"]), module.nola_seed
        return (
            mixture(module.nola_b, ~seed, (module.out_features, r)),
            mixture(module.nola_a, seed, (r, module.in_features)),
        )

    def added(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """s B A x."""
        b, a = self.factors(module)
        return self.scale * ((x.float() @ a.T) @ b.T)

    def delta(self, module: nn.Module) -> torch.Tensor:
        """s B A."""
        b, a = self.factors(module)
        return self.scale * (b @ a)

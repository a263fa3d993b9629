"""SLoRA, NLoRA and IntTune: a small square matrix between LoRA's factors (arXiv:2502.14482)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods.base import Declaration
from harness.methods.delta import ADAPTS, MERGE_REFUSES, REFUSES, parameter
from harness.methods.lowrank.factors import KEEPS_NO_BASE, LowRank, kaiming, take_out, whole
from harness.methods.modules import Linear
from harness.quantizers.layers import one_of

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

CUT = 5e-2
"""Singular values of the corner below this share of the largest are not inverted: their inverse would be noise."""
SOURCE = "alpha equal to r as in the released code, whose rank of 128 is for 7B models"


class Structured(LowRank):
    """``dW = s B N A`` with N of r x r."""

    tensors: ClassVar[tuple[str, ...]] = ("nys_a", "nys_n", "nys_b")

    def size(self, layer: Linear) -> int:
        """All three matrices."""
        r = self.rank(layer)
        return r * (layer.inputs + layer.outputs) + r * r

    def core(self, module: Any) -> torch.Tensor:
        """The part between the factors."""
        found: torch.Tensor = module.nys_n
        return found

    def added(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """s B N A x."""
        found: torch.Tensor = ((x.float() @ module.nys_a.T) @ self.core(module).T) @ module.nys_b.T
        return self.scale * found

    def delta(self, module: Any) -> torch.Tensor:
        """s B N A."""
        found: torch.Tensor = module.nys_b @ self.core(module) @ module.nys_a
        return self.scale * found


class SLoRA(Structured):
    """A and N drawn as LoRA draws A; B starts at zero."""

    declaration: ClassVar[Declaration] = Declaration(
        name="slora",
        summary="LoRA with a small trained square matrix between its two factors.",
        family="adapter",
        trainable="Σ r(m + n) + r² over the linear layers of the blocks, and a classifier's head.",
        paper="2502.14482v1",
        bases=ADAPTS,
        refuses=REFUSES,
        merge_refuses=MERGE_REFUSES,
        mergeable="exactly",
        defaults={"r": 8, "alpha": 8},
        defaults_source=SOURCE,
        lr_factor=10.0,
    )

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """Kaiming-uniform A and N, zeros for B."""
        import torch

        r = self.rank(layer)
        module.register_parameter("nys_a", parameter(kaiming(r, layer.inputs, generator), module))
        module.register_parameter("nys_n", parameter(kaiming(r, r, generator), module))
        module.register_parameter("nys_b", parameter(torch.zeros(layer.outputs, r), module))


class NLoRA(Structured):
    """Starts from the weight's Nyström approximation ``W[:, :r] pinv(W[:r, :r]) W[:r, :]``, taken out of the base.

    The released code (``mode: repo``) does not take it out and puts the corner itself in the pseudo-inverse's place,
    so that it begins as another model than the base; the base, left as it is, may then be quantized.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="nlora",
        summary="SLoRA that starts from the Nyström approximation of the weight: its first rows, columns and corner.",
        family="adapter",
        trainable="Σ r(m + n) + r² over the linear layers of the blocks, and a classifier's head.",
        paper="2502.14482v1",
        bases=frozenset({"fp"}),
        refuses=KEEPS_NO_BASE,
        mergeable="exactly",
        defaults={"r": 8, "alpha": 8, "mode": "paper"},
        defaults_source=SOURCE,
        lr_factor=3.0,
    )

    @classmethod
    def declared(cls, params: Mapping[str, object]) -> Declaration:
        """In the mode ``repo`` the base is left alone and the start is not the base's function."""
        if params.get("mode", "paper") == "paper":
            return cls.declaration
        return dataclasses.replace(
            cls.declaration, bases=ADAPTS, refuses=REFUSES, merge_refuses=MERGE_REFUSES, identity_at_start=False
        )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: as in every low-rank adapter, or a mode that is neither ``paper`` nor ``repo``.
        """
        resolved = super().resolve(params, where=where)
        one_of(f"mode of method {cls.declaration.name!r}", resolved["mode"], ("paper", "repo"), where)
        return resolved

    @property
    def released(self) -> bool:
        """True if it follows the released code."""
        return bool(self.params["mode"] == "repo")

    def cut(self, module: nn.Module, layer: Linear) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A, N and B out of the weight."""
        weight, r = whole(module), self.rank(layer)
        corner = weight[:r, :r]
        return weight[:r].clone(), corner.clone() if self.released else corner.pinverse(CUT), weight[:, :r].clone()

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """All three matrices train; what they make at the start leaves the base."""
        for name, values in zip(self.tensors, self.cut(module, layer), strict=True):
            module.register_parameter(name, parameter(values, module))
        if not self.released:
            take_out(module, self.delta(module))


class IntTune(NLoRA):
    """``dW = s B (N - N_0) A``: of NLoRA's matrices N alone trains, so that the base can stay as it is, quantized too.

    The difference is what NLoRA's subtraction from the base comes to where A and B are frozen. The released code
    (``mode: repo``) has neither.
    """

    tensors = ("nys_a", "nys_n", "nys_b", "nys_start")
    declaration: ClassVar[Declaration] = Declaration(
        name="inttune",
        summary="NLoRA of which only the small square matrix between the factors trains.",
        family="adapter",
        trainable="Σ r² over the linear layers of the blocks, and a classifier's head.",
        paper="2502.14482v1",
        bases=ADAPTS,
        refuses=REFUSES,
        merge_refuses=MERGE_REFUSES,
        mergeable="exactly",
        defaults={"r": 8, "alpha": 8, "mode": "paper"},
        defaults_source=f"{SOURCE}; the rate is ours, the best of four on the built-in nano model: a step of N is "
        "multiplied by two small factors",
        lr_factor=300.0,
    )

    def size(self, layer: Linear) -> int:
        """The square matrix."""
        return self.rank(layer) ** 2

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """The square matrix trains; the factors follow from the base, and are not stored."""
        a, n, b = self.cut(module, layer)
        start = n.new_zeros(n.shape) if self.released else n.clone()
        for name, values in (("nys_a", a), ("nys_b", b), ("nys_start", start)):
            module.register_buffer(name, values, persistent=False)
        module.register_parameter("nys_n", parameter(n, module))

    def core(self, module: Any) -> torch.Tensor:
        """N - N_0."""
        found: torch.Tensor = module.nys_n - module.nys_start
        return found

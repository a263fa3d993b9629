"""Low-rank adapters with special optimizers: GradNormLoRP, and LoRA refactorized with a momentum reset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError, shown
from harness.methods.base import Declaration
from harness.methods.budget import gap, never_renewed
from harness.methods.modules import trainable
from harness.methods.optimizers.galore import lacks
from harness.methods.peft.method import PeftMethod
from harness.methods.peft.table import derived

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

    from harness.methods.optimizers.base import Group


class OwnOptimizer(PeftMethod):
    """A row of peft whose extra parameters ``own`` are the optimizer's."""


PAPER_GAP = 500
GRADNORM: dict[str, object] = {"mode": "paper", "projected_rank": 4, "update_gap": None, "scale": 4.0, "bits": 32}


class GradNormLoRP(OwnOptimizer):
    """W = m (W0 + B A) / |W0 + B A| per row, with Adam on a low-rank projection of the factors' gradients.

    ``mode: paper`` projects a gradient from both sides, U (U^T D V) V^T. ``mode: repo`` is the released optimizer: it
    projects the smaller side only and writes every factor as row lengths times directions, both of which it steps
    (:class:`harness.methods.optimizers.projected_variants.RowNormalisedAdamW`).
    """

    own = frozenset(GRADNORM)
    row = derived(
        "dora",
        GRADNORM,
        name="gradnormlorp",
        summary="DoRA's normalised weight and low-rank update; Adam sees projections of the factors' gradients.",
        family="optimizer",
        paper="2412.19616",
        defaults_source="projection as in the released code (rank 4 to 8, scale 4, and its gap of 500 steps, or a "
        "quarter of a shorter run); adapter as our DoRA row; bits: 8 stores the moments as in the paper's 8-bit form",
    )
    declaration: ClassVar[Declaration] = row.declaration

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Same as the base class; the mode is ``paper`` or ``repo``.

        Raises:
            UserError: another mode.
        """
        resolved = super().resolve(params, where=where)
        if resolved["mode"] not in ("paper", "repo"):
            raise UserError(f"mode of gradnormlorp must be paper or repo, not {shown(resolved['mode'])}", where=where)
        if resolved["bits"] not in (8, 32):
            raise UserError(f"bits of gradnormlorp must be 8 or 32, not {shown(resolved['bits'])}", where=where)
        return resolved

    @classmethod
    def remark(cls, params: Mapping[str, object], steps: int) -> str | None:
        """True if the subspace moves."""
        return never_renewed(params, steps)

    @classmethod
    def missing(cls, params: Mapping[str, object]) -> str | None:
        """The package bitsandbytes, for 8-bit moments."""
        return lacks("bitsandbytes", "bitsandbytes", "gradnormlorp") if params.get("bits") == 8 else None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Projected AdamW for the factors, plain AdamW for magnitudes and heads."""
        from harness.methods.optimizers import projected_variants as variants
        from harness.methods.optimizers.projected import ProjectedAdamW

        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        factors = [p for n, p in trained if "lora_A" in n or "lora_B" in n]
        others = [p for n, p in trained if not ("lora_A" in n or "lora_B" in n)]
        s, p = self.setting, self.params
        made: type[ProjectedAdamW]
        if p["mode"] == "paper":
            made = variants.EightBitTwoSidedAdamW if p["bits"] == 8 else variants.TwoSidedAdamW
        else:
            made = variants.EightBitRowNormalisedAdamW if p["bits"] == 8 else variants.RowNormalisedAdamW
        groups: list[Group] = [{"params": factors, "rank": int(p["projected_rank"])}, {"params": others, "rank": None}]
        return made(
            groups,
            **s.adamw,
            update_gap=gap(p["update_gap"], PAPER_GAP, s.steps),
            scale=float(p["scale"]),
        )


class RefactorizedLora(OwnOptimizer):
    """LoRA that periodically rewrites its product B A as balanced factors and restarts Adam's states."""

    own = frozenset({"resets"})
    row = derived(
        "lora",
        {"resets": 4},
        name="lora-refactor",
        summary="LoRA whose product is now and then rewritten as balanced factors U√S and √SV, with fresh Adam states.",
        family="optimizer",
        paper="2505.22922v1",
        defaults_source="4 resets spread over the run (every 200 steps in the paper's pre-training); adapter as "
        "our LoRA row",
    )
    declaration: ClassVar[Declaration] = row.declaration

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The protocol's AdamW; kept, because its states are reset."""
        import torch

        self._optimizer = torch.optim.AdamW(trainable(model), **self.setting.adamw, fused=True)
        return self._optimizer

    def on_step(self, model: nn.Module, step: int) -> None:
        """At each of the resets: refactorize every pair and drop its states."""
        every = max(1, self.setting.steps // (int(self.params["resets"]) + 1))
        if step % every or step >= self.setting.steps:
            return
        for a, b in pairs(model):
            refactorize(a, b)
            self._optimizer.state.pop(a, None)
            self._optimizer.state.pop(b, None)


def pairs(model: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """LoRA's A ([r, n]) and B ([m, r]) of every adapted layer."""
    parameters = dict(model.named_parameters())
    for name, a in parameters.items():
        if ".lora_A." in name:
            yield a, parameters[name.replace(".lora_A.", ".lora_B.")]


def refactorize(a: nn.Parameter, b: nn.Parameter) -> None:
    """B <- U √S and A <- √S V^T of the product's singular value decomposition, in place; the product stays."""
    import torch

    with torch.no_grad():
        q_b, r_b = torch.linalg.qr(b.float())
        q_a, r_a = torch.linalg.qr(a.float().T)
        u, s, v = torch.linalg.svd(r_b @ r_a.T)
        b.copy_(q_b @ u * s.sqrt())
        a.copy_(s.sqrt()[:, None] * (v @ q_a.T))

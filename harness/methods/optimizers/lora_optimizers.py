"""Low-rank adapters with an optimizer of their own: GradNormLoRP, and LoRA refactorized with a momentum reset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError
from harness.methods.base import Declaration
from harness.methods.peft_method import PeftMethod
from harness.methods.peft_table import derived

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class OwnOptimizer(PeftMethod):
    """A row of peft whose further parameters ``own`` are the optimizer's."""


GRADNORM: dict[str, Any] = {"mode": "paper", "projected_rank": 4, "update_gap": 500, "scale": 4.0}


class GradNormLoRP(OwnOptimizer):
    """W = m (W0 + B A) / |W0 + B A| per row, with Adam on a low-rank projection of the factors' gradients.

    ``mode: paper`` projects a gradient from both sides, U (U^T D V) V^T. ``mode: repo`` is the released optimizer: it
    projects the smaller side only. The row lengths that it also keeps are set back to the rows' own at every step,
    which leaves the projected step as it is.
    """

    own = frozenset(GRADNORM)
    row = derived(
        "dora",
        GRADNORM,
        name="gradnormlorp",
        summary="DoRA's normalised weight and low-rank update; Adam sees projections of the factors' gradients.",
        family="optimizer",
        paper="2412.19616",
        defaults_source="projection as in the released code (rank 4 to 8, gap 500, scale 4); adapter as our DoRA row",
        unverified=True,
    )
    declaration: ClassVar[Declaration] = row.declaration

    @classmethod
    def resolve(cls, params: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
        """As ever; the mode is ``paper`` or ``repo``.

        Raises:
            UserError: another mode.
        """
        resolved = super().resolve(params, where=where)
        if resolved["mode"] not in ("paper", "repo"):
            raise UserError(f"mode of gradnormlorp must be paper or repo, not {resolved['mode']!r}", where=where)
        return resolved

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Projected AdamW for the factors, plain AdamW for magnitudes and heads."""
        from harness.methods.optimizers.projected import ProjectedAdamW
        from harness.methods.optimizers.projected_variants import TwoSidedAdamW

        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        factors = [p for n, p in trained if "lora_A" in n or "lora_B" in n]
        others = [p for n, p in trained if not ("lora_A" in n or "lora_B" in n)]
        s, p = self.setting, self.params
        made = TwoSidedAdamW if p["mode"] == "paper" else ProjectedAdamW
        return made(
            [{"params": factors, "rank": int(p["projected_rank"])}, {"params": others, "rank": None}],
            lr=s.learning_rate,
            betas=s.betas,
            weight_decay=s.weight_decay,
            update_gap=int(p["update_gap"]),
            scale=float(p["scale"]),
        )


class RefactorizedLora(OwnOptimizer):
    """LoRA that now and then writes its product B A as balanced factors and lets Adam start anew on them."""

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

        s = self.setting
        trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=s.learning_rate, betas=s.betas, weight_decay=s.weight_decay, fused=True
        )
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

"""GaLore and its relatives: Adam in a low-rank subspace of the gradient, which moves with it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import util
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError, shown
from harness.methods import bases
from harness.methods.base import Batch, Declaration, Setting
from harness.methods.baselines import ONLY_FP, Full
from harness.methods.budget import gap, never_renewed
from harness.methods.modules import blocks, linears

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


def block_matrices(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of the blocks' linear layers, and all other parameters."""
    prefix, _ = blocks(model)
    inside = {f"{layer.name}.weight" for layer in linears(model) if layer.name.startswith(f"{prefix}.")}
    parameters = list(model.named_parameters())
    return [p for n, p in parameters if n in inside], [p for n, p in parameters if n not in inside]


def lacks(package: str, pip: str, name: str) -> str | None:
    """Reason why the method cannot run without its package, or None if it is installed."""
    return None if util.find_spec(package) else f"{name} needs the package {pip!r}: pip install {pip}"


class LowRankStates(Full):
    """Full fine-tuning whose optimizer treats the blocks' matrices and all else as two groups."""

    optimizer_class: ClassVar[str]
    """Of :mod:`harness.methods.optimizers.projected` or ``projected_variants``."""
    own: ClassVar[tuple[str, ...]] = ()
    """Parameters of the optimizer's class in addition to those of GaLore."""

    @classmethod
    def remark(cls, params: Mapping[str, object], steps: int) -> str | None:
        """True if the subspace moves."""
        return never_renewed(params, steps)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW whose states are projected for the matrices of the blocks."""
        own = {name: self.params[name] for name in self.own}
        layerwise = self.whole_steps
        return projected_adamw(model, self.params, self.setting, self.optimizer_class, layerwise=layerwise, **own)

    @property
    def whole_steps(self) -> bool:
        """True if the update happens in the backward pass."""
        return bool(self.params.get("layerwise", False))

    def training_step(self, model: nn.Module, batch: Batch) -> torch.Tensor | None:
        """With ``layerwise``, a forward and a backward pass that leaves no gradient behind."""
        if not self.whole_steps:
            return None
        outputs = model(**batch)
        loss = self.loss(outputs, batch, outputs.loss)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        return loss.detach()

    def expects_gradient(self, name: str) -> bool:
        """With ``layerwise`` none is left when the probe looks."""
        return not self.whole_steps

    def expects_change(self, name: str) -> bool:
        """With ``layerwise``, all but a bias on keys without rotary positions."""
        return self.whole_steps and not name.endswith("key.bias")


def projected_adamw(
    model: nn.Module, params: Mapping[str, Any], setting: Setting, kind: str = "ProjectedAdamW", **own: object
) -> torch.optim.Optimizer:
    """An optimizer over the whole model whose states are projected for the matrices of the blocks.

    Args:
        model: the model.
        params: ``rank``, ``update_gap``, ``scale``; may be more.
        setting: learning rate, betas and weight decay.
        kind: class of :mod:`harness.methods.optimizers.projected` or ``projected_variants``.
        own: arguments of this class in addition to GaLore's.
    """
    from harness.methods.optimizers import projected, projected_variants

    made: Any = getattr(projected_variants, kind, None) or getattr(projected, kind)
    matrices, others = block_matrices(model)
    optimizer: torch.optim.Optimizer = made(
        [{"params": matrices, "rank": int(params["rank"])}, {"params": others, "rank": None}],
        **setting.adamw,
        update_gap=gap(params["update_gap"], PAPER_GAP, setting.steps),
        scale=float(params["scale"]),
        **own,
    )
    return optimizer


PAPER_GAP = 200
SHAPE: dict[str, object] = {"rank": 8, "update_gap": None, "scale": 1.0, "layerwise": False}
LATER = {"layerwise": False}
SOURCE = (
    "rank as in GaLore's GLUE runs; the gap is the paper's 200 steps, or a quarter of a shorter run; the scale is "
    "ours, 1, at which the rate is full's; layerwise updates each weight inside the backward pass and keeps no other "
    "gradient, as the paper's most frugal form does, without clipping by the common norm"
)


def low_rank_row(
    name: str, summary: str, paper: str, *, defaults: Mapping[str, object], **declared: Any
) -> Declaration:
    """A declaration of full fine-tuning with another optimizer."""
    return Declaration(
        **{
            "name": name,
            "summary": summary,
            "family": "optimizer",
            "trainable": "All parameters.",
            "paper": paper,
            "bases": ONLY_FP,
            "refuses": bases.NOT_IN_PLACE,
            "mergeable": "exactly",
            "defaults": defaults,
            "defaults_source": SOURCE,
            "in_place": True,
            "later": {k: v for k, v in LATER.items() if k in defaults},
            **declared,
        }
    )


class GaLore(LowRankStates):
    """Full fine-tuning; the states of the blocks' matrices live in rank r."""

    optimizer_class = "ProjectedAdamW"
    declaration: ClassVar[Declaration] = low_rank_row(
        "galore",
        "Every weight trains, but Adam's states are kept in a low-rank subspace of the gradient.",
        "2403.03507v2",
        defaults=SHAPE,
    )


class GaLore8bit(LowRankStates):
    """GaLore with block-wise 8-bit moments."""

    optimizer_class = "EightBitProjectedAdamW"
    declaration: ClassVar[Declaration] = low_rank_row(
        "galore-8bit",
        "GaLore whose low-rank Adam states are stored in 8 bits, in bitsandbytes' block-wise dynamic format.",
        "2403.03507v2",
        defaults=SHAPE,
    )

    @classmethod
    def missing(cls, params: Mapping[str, object]) -> str | None:
        """The package bitsandbytes."""
        return lacks("bitsandbytes", "bitsandbytes", cls.declaration.name)


class QGaLore(GaLore8bit):
    """GaLore with 4-bit projectors that are renewed lazily, and 8-bit moments; weights stay in floating point."""

    optimizer_class = "LazyProjectedAdamW"
    own = ("threshold", "patience", "mode")
    declaration: ClassVar[Declaration] = low_rank_row(
        "q-galore",
        "GaLore with 8-bit states and 4-bit projectors, renewed ever less often where the subspace has settled; "
        "the weights themselves stay in floating point here, not in the paper's INT8.",
        "2407.08296",
        defaults={**SHAPE, "threshold": 0.4, "patience": 5, "mode": "paper"},
        later={**LATER, "mode": "paper"},
        defaults_source=f"threshold and 5 projectors as in the released code; {SOURCE}",
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, object]:
        """Same as the base class; the mode is ``paper`` or ``repo``.

        Raises:
            UserError: another mode.
        """
        mode = params.get("mode", "paper")
        if mode not in ("paper", "repo"):
            raise UserError(f"mode of q-galore must be paper or repo, not {shown(mode)}", where=where)
        return super().resolve(params, where=where)


class NaturalGaLore(LowRankStates):
    """GaLore whose projected gradient is multiplied by the inverse empirical Fisher matrix of the last steps."""

    optimizer_class = "NaturalProjectedAdamW"
    own = ("history", "damping")
    declaration: ClassVar[Declaration] = low_rank_row(
        "natural-galore",
        "GaLore on natural gradients: the projected gradient is divided by the Fisher matrix of the last 20; those 20 "
        "are optimizer state.",
        "2410.16029v1",
        defaults={**SHAPE, "history": 20, "damping": 1e-3},
        defaults_source=f"20 gradients and damping as in the paper's code; {SOURCE}",
    )


class Fira(LowRankStates):
    """GaLore's step plus the part outside the subspace, scaled as Adam scaled the part within."""

    declaration: ClassVar[Declaration] = low_rank_row(
        "fira",
        "GaLore's states, but the gradient outside the subspace is used too, scaled as Adam scaled the part within.",
        "2410.01623v3",
        defaults={"rank": 8, "update_gap": None},
        defaults_source=f"the growth limit 1.01 is the paper's; {SOURCE}",
    )

    @classmethod
    def missing(cls, params: Mapping[str, object]) -> str | None:
        """The package pytorch-optimizer."""
        return lacks("pytorch_optimizer", "pytorch-optimizer", cls.declaration.name)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """pytorch-optimizer's, with scale 1: any other one would be taken off the part outside the subspace as well."""
        from pytorch_optimizer import Fira as PackageFira

        matrices, others = block_matrices(model)
        s, rank = self.setting, int(self.params["rank"])
        projected: dict[str, object] = {
            "rank": rank,
            "update_proj_gap": gap(self.params["update_gap"], PAPER_GAP, s.steps),
            "scale": 1.0,
            "projection_type": "std",
        }
        low = [p for p in matrices if rank < min(p.shape)]
        rest = [*others, *(p for p in matrices if rank >= min(p.shape))]
        groups: list[dict[str, object]] = [{"params": low, **projected}, {"params": rest}]
        made: torch.optim.Optimizer = PackageFira(
            [g for g in groups if g["params"]],
            **s.adamw,
            eps=1e-8,
        )
        return made

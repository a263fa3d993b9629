"""One model out of several that were trained from the same base: soups, TIES, DARE, ... in one table.

Every ingredient is merged into the base first, so that any method whose result merges exactly can be one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import Unsupported, UserError, shown
from harness.methods import bases
from harness.methods.base import Declaration, Ingredient, Workshop
from harness.methods.baselines import ONLY_FP, Full
from harness.methods.modules import freeze

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

LAMBDAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.2)
"""Factors tried on validation where ``scale`` is ``auto``."""
OVER = ("seeds", "tasks")
WEIGHTS_ONLY = "the ingredients are merged into the base, and merging into such weights changes the model"


@dataclass(frozen=True)
class MergeRow:
    """A way of combining: its text, its paper, its own defaults, and whether the paper was read."""

    summary: str
    paper: str
    own: Mapping[str, Any]
    source: str
    unverified: bool = True
    revision: int = 1


TABLE: dict[str, MergeRow] = {
    "soup": MergeRow(
        "Uniform soup: the average of the models.",
        "2203.05482",
        {},
        "nothing to set; as in the released code",
        unverified=False,
    ),
    "soup-greedy": MergeRow(
        "Greedy soup: best model first, another one joins the average only if validation does not get worse.",
        "2203.05482",
        {},
        "nothing to set",
    ),
    "task-arithmetic": MergeRow(
        "Task arithmetic: the base plus the summed differences that training made, times one factor.",
        "2212.04089",
        {"scale": "auto"},
        f"auto: the best factor of {LAMBDAS} on validation",
    ),
    "ties": MergeRow(
        "TIES: small changes are trimmed, each weight's sign is elected, and only agreeing changes are averaged.",
        "2306.01708",
        {"density": 0.2, "scale": 1.0},
        "the paper's setting without validation: the top fifth and factor 1",
        unverified=False,
    ),
    "dare": MergeRow(
        "DARE: most changes are dropped at random and the others rescaled, then averaged.",
        "2311.03099",
        {"drop": 0.9, "scale": 1.0},
        "nine of ten changes dropped, as in the paper; factor 1",
        unverified=False,
    ),
    "breadcrumbs": MergeRow(
        "Breadcrumbs: of every tensor the smallest and the very largest changes are dropped, the rest is summed.",
        "2312.06795",
        {"bottom": 0.85, "top": 0.01, "scale": "auto"},
        f"shares in the paper's range; auto: the best factor of {LAMBDAS} on validation",
    ),
    "pcb": MergeRow(
        "PCB: changes are weighted by their size within a model and their agreement between models.",
        "2410.02396",
        {"density": 0.1, "scale": 1.2},
        "a tenth kept and factor 1.2, as in the paper's code",
        unverified=False,
        revision=2,
    ),
}


def _declaration(name: str) -> Declaration:
    row = TABLE[name]
    return Declaration(
        name=name,
        summary=row.summary,
        family="after training",
        trainable="None; the models were trained by the row that `of` names.",
        paper=row.paper,
        bases=ONLY_FP,
        refuses=bases.because(WEIGHTS_ONLY, bases.QUANTIZED, bases.DYNAMIC, "sparse"),
        mergeable="exactly",
        defaults={"of": None, "over": "seeds", **row.own},
        defaults_source=row.source,
        trains=False,
        in_place=True,
        needs_search=row.own.get("scale") == "auto" or name == "soup-greedy",
        combines=True,
        unverified=row.unverified,
        revision=row.revision,
    )


class Merged(Full):
    """The base plus lambda times what a rule makes of the ingredients' task vectors."""

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Same as the base class; ``of`` is required, and ``over`` is ``seeds`` or ``tasks``.

        Raises:
            UserError: ``of`` is missing, or ``over`` is something else.
        """
        resolved = super().resolve(params, where=where)
        if resolved["over"] not in OVER:
            raise UserError(f"over must be seeds or tasks, not {shown(resolved['over'])}", where=where)
        return resolved

    def attach(self, model: nn.Module) -> nn.Module:
        """The base itself, frozen."""
        freeze(model)
        return model

    def expected_trainable(self, model: nn.Module) -> int | None:
        """None of its parameters."""
        return 0

    def finalize(self, model: nn.Module, workshop: Workshop) -> nn.Module:
        """Combine the ingredients on the base.

        Raises:
            Unsupported: an ingredient cannot be merged, or changed no tensor of the base.
            UserError: a factor is to be chosen and the task has no validation split.
        """
        import torch

        base = {n: t.detach().cpu() for n, t in model.state_dict().items()}
        models = [merged_state(i) for i in workshop.ingredients]
        names = [n for n, t in base.items() if t.is_floating_point() and any(not torch.equal(m[n], t) for m in models)]
        if not names:
            raise Unsupported("the ingredients change no tensor of the base")
        start = torch.cat([base[n].float().flatten() for n in names])
        tau = torch.stack([torch.cat([m[n].float().flatten() for n in names]) - start for m in models])
        del models
        fit = _Fit(model, names, start, workshop)
        if self.declaration.name == "soup-greedy":
            self.picked = greedy(tau, fit)
            return model
        vector = self._rule(tau, [base[n].numel() for n in names])
        scales = LAMBDAS if self.params.get("scale") == "auto" else (float(self.params.get("scale", 1.0)),)
        best = min(scales, key=lambda s: fit.score(s * vector)) if len(scales) > 1 else scales[0]
        self.picked = {"scale": best}
        fit.write(best * vector)
        return model

    def facts(self) -> dict[str, Any]:
        """The factor, or the greedy soup's ingredients."""
        return self.picked

    def _rule(self, tau: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        from harness.methods.merging import rules

        p = self.params
        match self.declaration.name:
            case "soup":
                return rules.mean(tau)
            case "task-arithmetic":
                return rules.total(tau)
            case "ties":
                return rules.ties(tau, float(p["density"]))
            case "dare":
                return rules.dare(tau, float(p["drop"]), self.setting.seed)
            case "breadcrumbs":
                return rules.breadcrumbs(tau, sizes, float(p["bottom"]), float(p["top"]))
            case "pcb":
                return rules.pcb(tau, float(p["density"]))
        raise AssertionError(self.declaration.name)


@dataclass
class _Fit:
    """Writes base + vector into the model, and scores it."""

    model: nn.Module
    names: list[str]
    start: torch.Tensor
    workshop: Workshop

    def write(self, vector: torch.Tensor) -> None:
        import torch

        state, flat, at = self.model.state_dict(), self.start + vector, 0
        with torch.no_grad():
            for name in self.names:
                tensor = state[name]
                tensor.copy_(flat[at : at + tensor.numel()].reshape(tensor.shape))
                at += tensor.numel()

    def score(self, vector: torch.Tensor) -> float:
        if self.workshop.validation_nll is None:
            raise UserError(
                "this way of merging chooses on validation, and the task has no validation split",
                fix="Give 'scale' a number, or take another way of merging.",
            )
        self.write(vector)
        return self.workshop.validation_nll(self.model)


def merged_state(ingredient: Ingredient) -> dict[str, torch.Tensor]:
    """The ingredient as the weights of a plain model, on the host.

    Raises:
        Unsupported: its method does not merge exactly, or leaves tensors that a plain model does not have.
    """
    promise = ingredient.method.promise
    if promise.mergeable != "exactly":
        raise Unsupported(f"{ingredient.label} cannot be merged into its base exactly, so it cannot be an ingredient")
    base = ingredient.base()
    names = set(base.state_dict())
    model = ingredient.method.merge(ingredient.method.load(base, ingredient.folder))
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    if further := sorted(state.keys() - names):
        raise Unsupported(f"{ingredient.label} has tensors that the base lacks, for example {further[0]}")
    return state


def greedy(tau: torch.Tensor, fit: _Fit) -> dict[str, object]:
    """Write the greedy soup into the model; which ingredients it holds, best first."""
    alone = [fit.score(vector) for vector in tau]
    order = sorted(range(len(tau)), key=lambda i: alone[i])
    chosen, best = [order[0]], alone[order[0]]
    for candidate in order[1:]:
        score = fit.score(tau[[*chosen, candidate]].mean(dim=0))
        if score <= best:
            chosen, best = [*chosen, candidate], score
    fit.write(tau[chosen].mean(dim=0))
    return {"ingredients": chosen}


def __getattr__(name: str) -> type[Merged]:
    """The class of the row of this name, for the registry."""
    if name not in TABLE:
        raise AttributeError(name)
    body: dict[str, Any] = {"declaration": _declaration(name), "__doc__": TABLE[name].summary}
    return type(name, (Merged,), body)

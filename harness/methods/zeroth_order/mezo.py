"""MeZO (arXiv:2305.17333), which the whole zeroth-order family is built on, and the family's common declaration.

Every method of the family trains what ``scope`` says: all weights, LoRA's or a prefix's. Through an adapter they train
on bases that pass no gradient, because they need none. Imports nothing heavy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.digests import without_later
from harness.errors import UserError, did_you_mean, shown
from harness.methods import bases
from harness.methods.base import Batch, Declaration, Method
from harness.methods.modules import trainable

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from harness.methods.zeroth_order.directions import Mask


SCOPES = ("full", "lora", "prefix")
EPS = {"full": 1e-3, "lora": 1e-2, "prefix": 1e-1}
"""MeZO's perturbation for each scope (arXiv:2305.17333v3, its grids)."""
RATE = {"full": 1.0, "lora": 50.0, "prefix": 5000.0}
"""Learning rates relative to the scope ``full``, the ratios of MeZO's grids: 1e-6, 5e-5 and 5e-3."""
SOURCE = "the paper's full-parameter setting; its rates are a tenth of full fine-tuning's and below"


def row(
    name: str,
    summary: str,
    paper: str,
    own: Mapping[str, object] | None = None,
    source: str = SOURCE,
    *,
    lr_factor: float = 0.1,
    no_eps: bool = False,
    later: Mapping[str, object] | None = None,
) -> Declaration:
    """A declaration in the scope ``full``."""
    return Declaration(
        name=name,
        summary=summary,
        family="zeroth-order",
        trainable="All parameters; with `scope: lora` or `prefix`, those of that method.",
        paper=paper,
        bases=frozenset({"fp"}),
        refuses={
            **bases.because(f"{bases.INTEGER_WEIGHTS} (scope: lora or prefix)", bases.QUANTIZED | bases.DYNAMIC),
            **bases.because(f"{bases.DENSE_AGAIN} (scope: lora or prefix)", "sparse"),
        },
        mergeable="exactly",
        defaults={"scope": "full", **({} if no_eps else {"eps": EPS["full"]}), **(own or {}), "schedule": "sweep"},
        later={**(later or {}), "schedule": "sweep"},
        defaults_source=f"{source}; `schedule: constant` is the paper's, the sweep's is what all rows share",
        lr_factor=lr_factor,
        in_place=True,
    )


@dataclass(frozen=True)
class ZerothOrderStep:
    """One estimate and its update.

    Attributes:
        part: the parameters that are shifted and moved.
        seed: z is drawn from it.
        rate: learning rate now.
        mask: which entries of z count; None: all.
    """

    model: nn.Module
    batch: Batch
    part: list[nn.Parameter]
    seed: int
    rate: float
    mask: Mask | None = None


class Mezo(Method):
    """theta -= lr (rho z + wd theta) with rho = (L(theta + eps z) - L(theta - eps z)) / (2 eps).

    z is standard normal and never stored: a seed a step draws it again, four times. No gradient, no activation
    and no optimizer state is kept, so training takes the memory of inference.
    """

    declaration: ClassVar[Declaration] = row(
        "mezo",
        "Estimates the gradient along one random direction a step from two forward passes: inference memory.",
        "2305.17333v3",
        {"directions": 1},
        f"{SOURCE}; more than one direction a step averages their estimates, two forward passes each",
        later={"directions": 1},
    )

    # --- the trainable part: a custom method --------------------------------------------------------
    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Own parameters, and those of the method behind ``scope``; the scope ``full`` is left out, as it always was.

        Raises:
            UserError: an unknown scope or mode, or a parameter that neither has.
        """
        scope = params.get("scope", "full")
        if scope not in SCOPES:
            raise UserError(f"scope {scope!r} is unknown", where=where, fix=did_you_mean(str(scope), SCOPES))
        if scope == "prefix" and "prefix" in (why := cls.refused_scopes()):
            raise UserError(f"{cls.declaration.name}: {why['prefix']}", where=where)
        own = {name: value for name, value in cls.declaration.defaults.items() if name != "scope"}
        if "eps" in own:
            own["eps"] = EPS[scope]
        mine = {name: value for name, value in params.items() if name in own}
        others = {name: value for name, value in params.items() if name not in own and name != "scope"}
        if scope == "full" and others:
            known = cls.declaration.defaults
            name = next(iter(others))
            raise UserError(
                f"method {cls.declaration.name!r} has no parameter {name!r} in the scope full",
                where=where,
                fix=did_you_mean(name, known),
            )
        carried = {} if scope == "full" else {"scope": scope, **_carrier(scope).resolve(others, where=where)}
        resolved = {**own, **mine, **carried}
        if resolved.get("mode") not in (None, "paper", "repo"):
            raise UserError(f"mode must be paper or repo, not {shown(resolved['mode'])}", where=where)
        if resolved["schedule"] not in ("sweep", "constant"):
            raise UserError(f"schedule must be sweep or constant, not {shown(resolved['schedule'])}", where=where)
        return without_later(resolved, cls.declaration.later)

    @classmethod
    def refused_scopes(cls) -> dict[str, str]:
        """Scopes that make no sense here, and why."""
        return {}

    @classmethod
    def declared(cls, params: Mapping[str, Any]) -> Declaration:
        """In the scope of an adapter: on the adapter's bases and on those without gradients; merging as it does."""
        scope = params.get("scope", "full")
        d = cls.declaration
        if scope == "full":
            return d
        of = _carrier(scope).declaration
        needless = {kind for kind, why in of.refuses.items() if why == bases.NO_GRADIENT}
        return replace(
            d,
            trainable=of.trainable,
            kinds=of.kinds,
            bases=of.bases | needless,
            refuses={kind: why for kind, why in of.refuses.items() if kind not in needless},
            merge_refuses=of.merge_refuses,
            mergeable=of.mergeable,
            lr_factor=d.lr_factor * RATE[scope],
            identity_at_start=of.identity_at_start,
            in_place=False,
        )

    @functools.cached_property
    def carrier(self) -> Method:
        """The method whose parameters are trained."""
        scope = self.params.get("scope", "full")
        own = self.declaration.defaults.keys() | {"scope"}
        return _carrier(scope)({k: v for k, v in self.params.items() if k not in own}, self.setting)

    def attach(self, model: nn.Module) -> nn.Module:
        """As the method behind ``scope``."""
        return self.carrier.attach(model)

    def expected_trainable(self, model: nn.Module) -> int | None:
        """As the method behind ``scope``."""
        return self.carrier.expected_trainable(model)

    def save(self, model: nn.Module, folder: Path) -> None:
        """As the method behind ``scope``."""
        self.carrier.save(model, folder)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """As the method behind ``scope``."""
        return self.carrier.load(base, folder)

    def merge(self, model: nn.Module) -> nn.Module:
        """As the method behind ``scope``."""
        return self.carrier.merge(model)

    # --- the guards ----------------------------------------------------------------------------
    def expects_gradient(self, name: str) -> bool:
        """There are no gradients."""
        return False

    def expects_change(self, name: str) -> bool:
        """Every tensor is shifted at every step."""
        return True

    # --- training ------------------------------------------------------------------------------
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Holds the learning rate for the schedule; it never sees a gradient and keeps no state."""
        import torch

        self._step = 0
        trained = trainable(model)
        self._optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, lr=self.setting.learning_rate)
        return self._optimizer

    def training_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """One whole step; dropout is off, because all losses must be of the same function."""
        import torch

        seed = self.setting.seed * 1_000_003 + self._step
        self._step += 1
        with evaluating(model), torch.no_grad():
            return self.descend(model, batch, seed, self.rate_now())

    def rate_now(self) -> float:
        """The learning rate of this step."""
        if self.params["schedule"] == "constant":
            return self.setting.learning_rate
        return float(self._optimizer.param_groups[0]["lr"])

    def descend(self, model: nn.Module, batch: Batch, seed: int, rate: float) -> torch.Tensor:
        """Estimate and update; returns the mean of the losses."""
        import torch

        trained = trainable(model)
        number = int(self.params.get("directions", 1))
        if number == 1:
            step = ZerothOrderStep(model, batch, trained, seed, rate, self.mask(trained, seed))
            rho, loss = self.slope(step)
            self.update(step, rho)
            return loss
        seeds = [seed * number + index for index in range(number)]
        steps = [ZerothOrderStep(model, batch, trained, one, rate / number, self.mask(trained, one)) for one in seeds]
        found = [self.slope(step) for step in steps]  # all at the same weights
        for step, (rho, _) in zip(steps, found, strict=True):
            self.update(step, rho)
        return torch.stack([loss for _, loss in found]).mean()

    def mask(self, trained: list[nn.Parameter], seed: int) -> Mask | None:
        """Mask of the entries of z that count at this step; None: all."""
        return None

    def slope(self, step: ZerothOrderStep) -> tuple[float, torch.Tensor]:
        """rho, the derivative of the loss along z by a central difference, and the loss."""
        from harness.methods.zeroth_order.directions import shift

        eps = float(self.params["eps"])
        shift(step.part, step.seed, eps, mask=step.mask)
        up = self.task_loss(step.model, step.batch)
        shift(step.part, step.seed, -2 * eps, mask=step.mask)
        down = self.task_loss(step.model, step.batch)
        shift(step.part, step.seed, eps, mask=step.mask)
        return float(up - down) / (2 * eps), (up + down).detach() / 2

    def update(self, step: ZerothOrderStep, rho: float) -> None:
        """theta <- (1 - lr wd) theta - lr rho z."""
        from harness.methods.zeroth_order.directions import shift

        shift(step.part, step.seed, -step.rate * rho, scale=self.decay(step.rate), mask=step.mask)

    def decay(self, rate: float) -> float:
        """Remaining factor of a weight after weight decay at this rate."""
        return 1 - rate * self.setting.weight_decay

    def task_loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss of one forward pass."""
        outputs = model(**batch)
        return self.carrier.loss(outputs, batch, outputs.loss)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _carrier(scope: str) -> type[Method]:
    from harness.methods.catalog import METHODS

    return METHODS.get(scope)


def by_block(model: nn.Module, last: int = 0) -> list[list[nn.Parameter]]:
    """Trainable parameters by block: those outside the blocks first, then every block.

    With ``last``, two parts: all below, and the last so many blocks with a head behind them.
    """
    from harness.methods.modules import blocks, output_head

    like: PreTrainedModel = model
    inner = like.get_base_model() if hasattr(like, "get_base_model") else like
    _, layers = blocks(inner)
    parts = [[p for p in block.parameters() if p.requires_grad] for block in layers]
    seen = {id(p) for part in parts for p in part}
    outside = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    if not last:
        return [part for part in (outside, *parts) if part]
    head = output_head(inner)
    embedded = {id(p) for p in inner.get_input_embeddings().parameters()}
    behind = {id(p) for p in head.parameters()} - embedded if head is not None else set()
    upper = [*(p for part in parts[-last:] for p in part), *(p for p in outside if id(p) in behind)]
    up = {id(p) for p in upper}
    return [[p for p in model.parameters() if p.requires_grad and id(p) not in up], upper]

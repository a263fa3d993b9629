"""ComPEFT: a trained adapter as one sign a parameter, most of them zero, and a single length (arXiv:2311.13171)."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError, did_you_mean, shown
from harness.methods import bases
from harness.methods.base import Batch, Declaration, Method, Workshop
from harness.methods.modules import CLASSIFIER_NAMES
from harness.methods.optimizers.lora_optimizers import OwnOptimizer
from harness.methods.peft.method import PeftMethod

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn
    from transformers.utils import ModelOutput

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
SCALES = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
FILE = "ternary.safetensors"
OWN = ("of", "density", "scale")


class ComPeft(Method):
    """Trains the adapter ``of``, then keeps of its task vector the sign of the largest entries and one length.

    The task vector is tau = theta - theta_0 over all of the adapter's parameters together; what is kept is
    scale * std(tau) * sign(tau) on the ``density`` of largest magnitude. A classifier's fresh head is kept as it is.
    theta_0 is drawn again from the cell's seed when the file is read.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="compeft",
        summary="A trained adapter, compressed to a few signs and one length; what is scored is the compressed one.",
        family="after training",
        trainable="Those of the adapter that `of` names.",
        paper="2311.13171v2",
        bases=bases.ALL,
        refuses=bases.because(bases.NO_GRADIENT, bases.DYNAMIC),
        merge_refuses=bases.MERGES_QUANTIZED,
        mergeable="exactly",
        defaults={"of": "lora", "density": "auto", "scale": "auto"},
        defaults_source=f"auto: the best on validation of densities {DENSITIES} and scales {SCALES}, "
        "in the paper's range; the task vector is the change since the start, as in the paper (the released code for "
        "LoRA compresses the factors themselves, with LoRA's random start in them); rates are the adapter's",
        lr_factor=10.0,
        needs_search=True,
    )

    # --- the adapter ---------------------------------------------------------------------------
    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Own parameters, and those of the adapter.

        Raises:
            UserError: no such adapter, one whose start is not drawn from the seed alone, or a wrong parameter.
        """
        defaults = cls.declaration.defaults
        own = {**defaults, **{name: value for name, value in params.items() if name in OWN}}
        carrier = _adapter(str(own["of"]), where)
        others = {name: value for name, value in params.items() if name not in OWN}
        for name, low, high in (("density", 0.0, 1.0), ("scale", 0.0, float("inf"))):
            value = own[name]
            if value != "auto" and not (isinstance(value, int | float) and low < value <= high):
                raise UserError(f"{name} of compeft must be auto or a number above 0, not {shown(value)}", where=where)
        return {**own, **carrier.resolve(others, where=where)}

    @classmethod
    def declared(cls, params: Mapping[str, object]) -> Declaration:
        """On the adapter's bases, at its rates, merging as it does."""
        of = _adapter(str(params.get("of", "lora")), "").declaration
        return replace(
            cls.declaration,
            kinds=of.kinds,
            refuses_kind=of.refuses_kind,
            bases=of.bases,
            refuses=of.refuses,
            merge_refuses=of.merge_refuses,
            mergeable=of.mergeable,
            lr_factor=of.lr_factor,
            identity_at_start=of.identity_at_start,
        )

    @functools.cached_property
    def carrier(self) -> Method:
        """The adapter's method."""
        params = {name: value for name, value in self.params.items() if name not in OWN}
        return _adapter(str(self.params["of"]), "")(params, self.setting)

    def attach(self, model: nn.Module) -> nn.Module:
        """As the adapter, from the cell's seed; its start is remembered."""
        import torch

        torch.manual_seed(self.setting.seed)
        adapted = self.carrier.attach(model)
        self._start = {name: p.detach().cpu().clone() for name, p in trained(adapted)}
        return adapted

    def expected_trainable(self, model: nn.Module) -> int | None:
        """The adapter's."""
        return self.carrier.expected_trainable(model)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer | None:
        """The adapter's."""
        return self.carrier.optimizer(model)

    def loss(self, outputs: ModelOutput, batch: Batch, reference: torch.Tensor) -> torch.Tensor:
        """The adapter's."""
        return self.carrier.loss(outputs, batch, reference)

    def on_step(self, model: nn.Module, step: int) -> None:
        """The adapter's."""
        self.carrier.on_step(model, step)

    def expects_gradient(self, name: str) -> bool:
        """The adapter's."""
        return self.carrier.expects_gradient(name)

    def merge(self, model: nn.Module) -> nn.Module:
        """As the adapter."""
        return self.carrier.merge(model)

    # --- compression ---------------------------------------------------------------------------
    def finalize(self, model: nn.Module, workshop: Workshop) -> nn.Module:
        """Replace the adapter by its compressed self, chosen on validation where a number is left open.

        Raises:
            UserError: something is to be chosen and the task has no validation split.
        """
        import torch

        densities, scales = (
            (wanted,) if (wanted := self.params[name]) != "auto" else grid
            for name, grid in (("density", DENSITIES), ("scale", SCALES))
        )
        choices = list(itertools.product(densities, scales))
        if len(choices) > 1 and workshop.validation_nll is None:
            raise UserError(
                "compeft chooses density and scale on validation, and the task has no validation split",
                fix="Give both in its parameters.",
            )
        parts = [(name, p) for name, p in trained(model) if not is_head(name)]
        tau = torch.cat([(p.detach().cpu().float() - self._start[name].float()).flatten() for name, p in parts])
        best: tuple[float, float, float] | None = None
        for density, scale in choices:
            if len(choices) > 1 and workshop.validation_nll is not None:
                write(parts, self._start, ternary(tau, density), length(tau, scale))
                score = workshop.validation_nll(model)
                if best is None or score < best[0]:
                    best = (score, density, scale)
        _, density, scale = best or (0.0, *choices[0])
        self.chosen = {"density": density, "scale": scale}
        self._signs, self._length = ternary(tau, density), length(tau, scale)
        write(parts, self._start, self._signs, self._length)
        return model

    def facts(self) -> dict[str, Any]:
        """Density and scale."""
        return self.chosen

    def save(self, model: nn.Module, folder: Path) -> None:
        """Positions and values of signs, as packed and deflated bits; the length; a head as it is."""
        import torch
        from safetensors.torch import save_file

        if not hasattr(self, "_signs"):
            raise RuntimeError("compeft saves what finalize has compressed, and it was not called")
        signs = self._signs.numpy()
        kept = signs != 0
        tensors = {"kept": _deflated(kept), "positive": _deflated(signs[kept] > 0)}
        tensors["size"] = torch.tensor([len(signs), int(kept.sum())])
        tensors["length"] = torch.tensor([self._length])
        tensors |= {f"head.{n}": p.detach().cpu().contiguous() for n, p in trained(model) if is_head(n)}
        save_file(tensors, folder / FILE)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Draw the adapter's start from the seed again and add the signs."""
        import torch
        from safetensors.torch import load_file

        model, tensors = self.attach(base), load_file(folder / FILE)
        size, count = tensors["size"].tolist()
        signs = np.zeros(size, dtype=np.int8)
        signs[_inflated(tensors["kept"], size)] = np.where(_inflated(tensors["positive"], count), 1, -1)
        parameters = dict(trained(model))
        with torch.no_grad():
            for name, tensor in tensors.items():
                if name.startswith("head."):
                    parameters[name.removeprefix("head.")].copy_(tensor)
        parts = [(name, p) for name, p in parameters.items() if not is_head(name)]
        write(parts, self._start, torch.from_numpy(signs), float(tensors["length"]))
        return model


def _adapter(name: str, where: str) -> type[Method]:
    """The adapter's class.

    Raises:
        UserError: it is not one of peft's whose start follows from the seed alone.
    """
    from harness.methods.catalog import METHODS

    cls = METHODS.get(name, where=where)
    fixed = issubclass(cls, PeftMethod) and (issubclass(cls, OwnOptimizer) or not cls.row.variant)
    if not fixed:
        fits = [n for n in METHODS if issubclass(METHODS.get(n), PeftMethod)]
        raise UserError(
            f"compeft compresses an adapter of peft that starts from the seed alone, and {name!r} is none",
            where=where,
            fix=did_you_mean(name, fits),
        )
    return cls


def trained(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Names and parameters of what trains."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def is_head(name: str) -> bool:
    """True if a parameter is a classifier's."""
    return bool({*CLASSIFIER_NAMES} & {*name.split(".")})


def ternary(tau: torch.Tensor, density: float) -> torch.Tensor:
    """Signs (int8) of the ``density`` of entries that are largest in magnitude, zero elsewhere."""
    import torch

    signs = torch.zeros(tau.shape, dtype=torch.int8)
    largest = tau.abs().topk(max(1, round(density * tau.numel()))).indices
    signs[largest] = tau[largest].sign().to(torch.int8)
    return signs


def length(tau: torch.Tensor, scale: float) -> float:
    """scale * std(tau)."""
    return float(tau.std() * scale)


def write(
    parts: Iterable[tuple[str, nn.Parameter]], start: Mapping[str, torch.Tensor], signs: torch.Tensor, by: float
) -> None:
    """theta <- theta_0 + by * signs, parameter by parameter."""
    import torch

    at = 0
    with torch.no_grad():
        for name, parameter in parts:
            own = signs[at : at + parameter.numel()].reshape(parameter.shape)
            at += parameter.numel()
            parameter.copy_(start[name].float() + by * own)


def _deflated(flags: NDArray[np.bool_]) -> torch.Tensor:
    """Flags as deflated bits: near their entropy, since most are alike."""
    import torch

    return torch.frombuffer(bytearray(zlib.compress(np.packbits(flags).tobytes(), 9)), dtype=torch.uint8)


def _inflated(tensor: torch.Tensor, count: int) -> NDArray[np.bool_]:
    bits = np.frombuffer(zlib.decompress(tensor.numpy().tobytes()), dtype=np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)

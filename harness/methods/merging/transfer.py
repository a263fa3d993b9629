"""Moving what was trained on one base to another base of the same shape: PortLLM and fine-tuning transfer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import Unsupported
from harness.methods import bases
from harness.methods.base import Declaration, Method, Workshop
from harness.methods.baselines import ONLY_FP
from harness.methods.merging.merge_adapters import WEIGHTS_ONLY, Merged, merged_state
from harness.methods.modules import freeze

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn


class PortLlm(Method):
    """The adapter that row ``of`` trained on the model ``from``, put on this cell's model as it is."""

    declaration: ClassVar[Declaration] = Declaration(
        name="portllm",
        summary="An adapter trained on an older base is put on the updated one as it is, without any training there.",
        family="after training",
        trainable="None; the adapter was trained on the other base.",
        paper="2410.10870v3",
        bases=bases.ALL | bases.DYNAMIC,
        merge_refuses=bases.MERGES_QUANTIZED,
        mergeable="exactly",
        defaults={"of": None, "from": None},
        defaults_source="nothing to set",
        trains=False,
        needs_second_model=True,
        combines=True,
    )

    def attach(self, model: nn.Module) -> nn.Module:
        """The updated base, frozen."""
        freeze(model)
        return model

    def expected_trainable(self, model: nn.Module) -> int | None:
        """None of its parameters."""
        return 0

    def finalize(self, model: nn.Module, workshop: Workshop) -> nn.Module:
        """Load the adapter onto this base.

        Raises:
            Unsupported: the two bases differ in a shape or a name, or what was trained is not a change of weights.
        """
        (ingredient,) = workshop.ingredients
        if ingredient.method.promise.mergeable != "exactly" or ingredient.method.promise.in_place:
            raise Unsupported(f"portllm moves adapters that merge into the base, and {ingredient.label} is none")
        self._carrier = ingredient.method
        try:
            ported = ingredient.method.load(model, ingredient.folder)
        except (RuntimeError, KeyError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Unsupported(f"{ingredient.label} does not fit this base: {first}") from error
        freeze(ported)
        return ported

    def save(self, model: nn.Module, folder: Path) -> None:
        """The adapter, as its own method saves it."""
        self._carrier.save(model, folder)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """The adapter, as its own method loads it."""
        return self._carrier.load(base, folder)

    def merge(self, model: nn.Module) -> nn.Module:
        """As the adapter's method."""
        return self._carrier.merge(model)


class FineTuningTransfer(Merged):
    """W2 + lambda (W1' - W1): what fine-tuning added to the model ``from``, added to this cell's model."""

    declaration: ClassVar[Declaration] = Declaration(
        name="ft-transfer",
        summary="The weight difference that fine-tuning made on an older base is added to the updated base.",
        family="after training",
        trainable="None; the difference was trained on the other base.",
        paper="2503.20110v2",
        bases=ONLY_FP,
        refuses=bases.because(WEIGHTS_ONLY, bases.QUANTIZED, bases.DYNAMIC, "sparse"),
        mergeable="exactly",
        defaults={"of": None, "from": None, "scale": 1.0},
        defaults_source="the whole difference, as in the paper",
        trains=False,
        in_place=True,
        needs_second_model=True,
        combines=True,
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Same as the base class, without ``over``."""
        return Method.resolve.__func__(cls, params, where=where)  # type: ignore[attr-defined, no-any-return]  # a classmethod

    def finalize(self, model: nn.Module, workshop: Workshop) -> nn.Module:
        """Add the difference.

        Raises:
            Unsupported: a tensor that changed is not there, or of another shape.
        """
        import torch

        (ingredient,) = workshop.ingredients
        self.picked = {"scale": float(self.params["scale"])}
        before = {n: t.detach().cpu().clone() for n, t in ingredient.base().state_dict().items()}
        state = model.state_dict()
        with torch.no_grad():
            for name, after in merged_state(ingredient).items():
                if not after.is_floating_point() or torch.equal(after, before[name]):
                    continue
                if name not in state or state[name].shape != after.shape:
                    raise Unsupported(f"{ingredient.label} does not fit this base: {name} is of another shape here")
                difference = (after.float() - before[name].float()) * float(self.params["scale"])
                state[name].copy_(state[name].cpu().float() + difference)
        return model

"""Shared by the bottleneck adapters: positions, parameter counts, saving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError, did_you_mean
from harness.methods import bases
from harness.methods.base import Declaration, Method
from harness.methods.modules import classifier, count, feed_forwards, freeze, load_tensors, save_trainable

if TYPE_CHECKING:
    from torch import nn


ADAPTS = bases.ALL
REFUSES = bases.because(bases.NO_GRADIENT, bases.DYNAMIC)
FUNCTIONS = ("tanh", "relu", "gelu", "silu")
SOURCE = (
    "the code of LLM-Adapters, whose rate of 3e-4 is ten times that of full fine-tuning; there U is drawn too, here it "
    "begins at zero"
)


class BottleneckAdapter(Method):
    """A bottleneck at every block's feed-forward layer; everything of the base stays frozen."""

    beside: ClassVar[bool]
    """True if it reads the feed-forward layer's input, else its output."""
    uniform: ClassVar[bool] = False
    """True if D is drawn as LoRA's first factor."""

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: an unknown parameter or activation function.
        """
        resolved = super().resolve(params, where=where)
        function = resolved["function"]
        if function not in FUNCTIONS:
            fix = did_you_mean(str(function), FUNCTIONS)
            raise UserError(f"{cls.declaration.name} has no activation function {function!r}", where=where, fix=fix)
        return resolved

    def added(self, model: nn.Module) -> int:
        """Parameters of the bottlenecks: 2 b d at each block for a hidden size d."""
        width = int(self.params["bottleneck"])
        return sum(width * (place.last.outputs + place.first.inputs) for place in feed_forwards(model))

    def expected_trainable(self, model: nn.Module) -> int | None:
        """The bottlenecks' and the classifier's."""
        head = classifier(model)
        return self.added(model) + (count(head.parameters()) if head is not None else 0)

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze the base; attach a bottleneck to every feed-forward layer."""
        freeze(model)
        self.hang(model)
        head = classifier(model)
        for parameter in head.parameters() if head is not None else ():
            parameter.requires_grad_(True)
        return model

    def hang(self, model: nn.Module) -> None:
        """Hang the bottlenecks, drawn from the cell's seed."""
        import torch

        from harness.methods.adapters.network import Bottleneck, hang_after, hang_beside

        generator = torch.Generator(device="cpu").manual_seed(self.setting.seed)
        for place in feed_forwards(model):
            bottleneck = Bottleneck(
                place.first.inputs,
                place.last.outputs,
                width=int(self.params["bottleneck"]),
                function=str(self.params["function"]),
                scale=float(self.params["scale"]),
                uniform=self.uniform,
                generator=generator,
            )
            (hang_beside if self.beside else hang_after)(model, place, bottleneck)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what was trained."""
        save_trainable(model, folder)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Attach adapters of the same sizes and copy their tensors in."""
        model = self.attach(base)
        load_tensors(model, folder)
        return model


class ParallelAdapter(BottleneckAdapter):
    """``y <- FFN(x) + a U f(D x)`` at the feed-forward layer of every block."""

    declaration: ClassVar[Declaration] = Declaration(
        name="parallel-adapter",
        summary="A narrow non-linear layer parallel to the feed-forward layer of every block reads the same input.",
        family="adapter",
        trainable="2bd at each block, with d the hidden size and b the bottleneck's width; and a classifier's head.",
        paper="2304.01933",
        bases=ADAPTS,
        refuses=REFUSES,
        mergeable="no",
        defaults={"bottleneck": 256, "function": "tanh", "scale": 1.0},
        defaults_source=SOURCE,
        lr_factor=10.0,
    )
    beside = True


class SeriesAdapter(BottleneckAdapter):
    """``h <- h + a U f(D h)`` where h is what a block's feed-forward layer gives, before the residual sum."""

    declaration: ClassVar[Declaration] = Declaration(
        name="series-adapter",
        summary="A narrow non-linear layer after the feed-forward layer of every block adds to what that layer gives.",
        family="adapter",
        trainable="2bd at each block, with d the hidden size and b the bottleneck's width; and a classifier's head.",
        paper="2304.01933",
        bases=ADAPTS,
        refuses=REFUSES,
        mergeable="no",
        defaults={"bottleneck": 256, "function": "tanh", "scale": 1.0},
        defaults_source=SOURCE,
        lr_factor=10.0,
    )
    beside = False

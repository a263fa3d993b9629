"""Our own adapters: a trained term is added to the output of frozen linear layers, on any kind of base.

Parameters and a forward hook are attached to the layer, whose class does not change: quantized back ends need no
wrapper. What is trained is float32 on every base, and the sum has the layer's dtype.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness.methods import bases
from harness.methods.base import Method, Setting
from harness.methods.modules import (
    Linear,
    blocks,
    classifier,
    count,
    freeze,
    linears,
    load_tensors,
    save_trainable,
)

if TYPE_CHECKING:  # heavy, and only for types
    from collections.abc import Mapping

    import torch
    from torch import nn

NOT_WRITTEN = "it is folded into floating-point weights and our own packed layers; this library's tensor takes no sum"

ADAPTS = bases.ALL
REFUSES = bases.because(bases.NO_GRADIENT, bases.DYNAMIC)
MERGE_REFUSES = {
    **bases.because(NOT_WRITTEN, bases.QUANTIZED - bases.PACKED),
    **bases.because(bases.SPARSE_MERGE, "sparse"),
}


class Removable(Protocol):
    """A change of a layer that can be taken back."""

    def remove(self) -> None:
        """Take it back."""


class WeightDelta(Method):
    """``y += x dW^T`` in parallel to the linear layers of the blocks; a subclass defines dW."""

    tensors: ClassVar[tuple[str, ...]]
    """Attributes that :meth:`place` adds to a layer and :meth:`take_off` removes."""

    def __init__(self, params: Mapping[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self._hooks: dict[str, Removable] = {}

    def targets(self, model: nn.Module) -> list[Linear]:
        """The layers that are adapted: every linear layer of the blocks."""
        prefix, _ = blocks(model)
        return [layer for layer in linears(model) if layer.name.startswith(f"{prefix}.")]

    def size(self, layer: Linear) -> int:
        """Trainable numbers on one layer."""
        raise NotImplementedError

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """Hang parameters and buffers on a layer; ``generator`` (CPU) draws them."""
        raise NotImplementedError

    def added(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The term added to the layer's output for the input ``x``, in any dtype."""
        raise NotImplementedError

    def delta(self, module: nn.Module) -> torch.Tensor:
        """dW, [outputs, inputs]."""
        raise NotImplementedError

    def expected_trainable(self, model: nn.Module) -> int | None:
        """The layers' and the classifier's."""
        head = classifier(model)
        own = sum(self.size(layer) for layer in self.targets(model))
        return own + (count(head.parameters()) if head is not None else 0)

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze the base; adapt every target."""
        import torch

        layers = self.targets(model)
        freeze(model)
        generator = torch.Generator().manual_seed(self.setting.seed)
        for layer in layers:
            module = model.get_submodule(layer.name)
            self.place(module, layer, generator)
            self._hooks[layer.name] = module.register_forward_hook(self._hook)
        head = classifier(model)
        for parameter in head.parameters() if head is not None else ():
            parameter.requires_grad_(True)
        return model

    def _hook(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + self.added(module, inputs[0]).to(output.dtype)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what was trained; buffers follow from the seed."""
        save_trainable(model, folder)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Attach with the same seed and copy the trained tensors in."""
        model = self.attach(base)
        load_tensors(model, folder)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """W += dW, layer by layer; a packed layer rounds the sum."""
        import torch

        with torch.no_grad():
            for name in self._hooks:
                module: Any = model.get_submodule(name)
                weight = module.weight.data
                module.weight.data = weight + self.delta(module).to(weight.dtype)
        self.take_off(model)
        return model

    def take_off(self, model: nn.Module) -> None:
        """Remove what :meth:`attach` added to the layers and restore the base."""
        for name, hook in self._hooks.items():
            hook.remove()
            for attribute in self.tensors:
                delattr(model.get_submodule(name), attribute)
        self._hooks.clear()


def device_of(module: nn.Module) -> torch.device:
    """Device of a layer, quantized or not."""
    held: torch.Tensor = next(iter(module.state_dict().values()))
    return held.device


def parameter(values: torch.Tensor, like: nn.Module) -> nn.Parameter:
    """A float32 parameter on a layer's device."""
    import torch

    return torch.nn.Parameter(values.to(device=device_of(like), dtype=torch.float32))

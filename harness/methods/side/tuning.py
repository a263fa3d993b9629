"""Shared by the side-tuning methods: a frozen backbone, the side network as its submodule, files of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.methods.base import Method
from harness.methods.modules import classifier, count, freeze, load_tensors, save_trainable

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

    from harness.methods.side.network import SideNetwork

NAME = "side_network"


class SideTuning(Method):
    """A method whose trained parameters are a side network and a classifier's head."""

    def network(self, model: nn.Module) -> SideNetwork:
        """The side network for this backbone, on the CPU or the meta device."""
        raise NotImplementedError

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze the backbone and let the side network, in float32 on every base, listen to it."""
        from harness.methods.side.network import listen

        freeze(model)
        device = next(model.parameters()).device
        side = self.network(model).to(device)
        model.add_module(NAME, side)
        listen(model, side)
        head = classifier(model)
        for parameter in head.parameters() if head is not None else ():
            parameter.requires_grad_(True)
        return model

    def side_parameters(self, model: nn.Module) -> int:
        """The side network's parameters, by formula."""
        raise NotImplementedError

    def expected_trainable(self, model: nn.Module) -> int | None:
        """The side network's and the classifier's."""
        head = classifier(model)
        return self.side_parameters(model) + (count(head.parameters()) if head is not None else 0)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the side network and the classifier."""
        save_trainable(model, folder)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Attach a side network of the same sizes and copy its tensors in."""
        model = self.attach(base)
        load_tensors(model, folder)
        return model

"""LST: ladder side tuning (arXiv:2206.06522), and what it shares with QST.

The shared part: a frozen backbone, the side network as its submodule, files of its tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration, Method
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


class LST(SideTuning):
    """A ladder parallel to a frozen backbone: every rung mixes a block's hidden state into a narrow transformer.

    ``s_l = block_l(m_l down_l(h_l) + (1 - m_l) s_(l-1))`` with ``m_l = sig(a_l / 0.1)``, one a rung; the head reads
    up(s_L) and not the backbone's own last state. The side blocks begin as the backbone's, pruned to the rows and
    columns of greatest norm; what the backbone lacks (a gate in an encoder's feed-forward layer) is random.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="lst",
        summary=(
            "A ladder of narrow blocks, pruned from the frozen backbone's, reads its hidden states and answers alone; "
            "no gradient flows through the backbone."
        ),
        family="side network",
        trainable=(
            "With d = max(16, n/8): per block nd + 1 of its rung and 4d² + 3df + 2d of the block; 2nd at both ends; "
            "and a classifier's head."
        ),
        paper="2206.06522",
        bases=bases.ALL | bases.DYNAMIC,
        mergeable="no",
        defaults={"reduction": 8},
        defaults_source=(
            "the released code, whose rate of 3e-3 is far above full fine-tuning's; it ranks what is kept by Fisher "
            "information, which takes a backward pass through the backbone, here it is the norm"
        ),
        lr_factor=30.0,
        identity_at_start=False,
    )

    def network(self, model: nn.Module) -> SideNetwork:
        """The ladder, not yet pruned from anything."""
        from harness.methods.side.ladder import LadderNetwork
        from harness.methods.side.network import Sizes

        return LadderNetwork(Sizes.of(model, int(self.params["reduction"])))

    def attach(self, model: nn.Module) -> nn.Module:
        """As in every side network; then its blocks are initialised with the backbone's strongest rows and columns."""
        from harness.methods.side.ladder import prune_into

        model = super().attach(model)
        side: Any = model.get_submodule(NAME)
        prune_into(side, model)
        return model

    def side_parameters(self, model: nn.Module) -> int:
        """See the declaration."""
        from harness.methods.side.network import Sizes

        s = Sizes.of(model, int(self.params["reduction"]))
        return s.depth * (s.hidden * s.width + 1 + s.block_parameters) + 2 * s.hidden * s.width

"""QST: quantized side tuning (arXiv:2401.07159)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError
from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.side.lst import SideTuning

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

    from harness.methods.side.network import SideNetwork

MODES = ("paper", "repo")


class QST(SideTuning):
    """A narrow transformer parallel to a frozen backbone, which may be in 4 bits, fed through low-rank adapters.

    With h_l the backbone's hidden states and s_l the side network's: ``s_l = block_l((1 - sig(z_l)) down_l(h_l) +
    sig(z_l) s_(l-1))``, ``s_0 = down_0(embeddings)``, and the head reads ``a h_L + (1 - a) up(s_L)``. The paper's a
    starts at one, where the model is the base. ``mode: repo`` is the released network
    (:class:`harness.methods.side.network.GatedNetwork`), which mixes behind the final norm with sig(a), 0.73 at first.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="qst",
        summary=(
            "A side network a sixteenth as wide learns from the hidden states of a frozen backbone, through which no "
            "gradient flows, so that its activations need not be kept."
        ),
        family="side network",
        trainable=(
            "With d = max(16, n/16): per block r(n + d) + 3d of its adapter and gate and 4d² + 3df + 2d of the block; "
            "r(n + d) + 2d at the embeddings; nd + n at the output; and a classifier's head. With mode: repo nothing "
            "at the embeddings, and nd + 2n + d at the output."
        ),
        paper="2401.07159",
        bases=bases.ALL | bases.DYNAMIC,
        mergeable="no",
        defaults={"reduction": 16, "rank": 16, "mode": "paper"},
        defaults_source="the released code; its rate of 1e-4 is ten times that of full fine-tuning; at ten times a "
        "small encoder does not beat its head on TREC (0.45), at fifty it does (0.67)",
        lr_factor=50.0,
    )

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters; the mode is one of two."""
        resolved = super().resolve(params, where=where)
        if resolved["mode"] not in MODES:
            raise UserError(f"qst has no mode {resolved['mode']!r}", where=where, fix="Either 'paper' or 'repo'.")
        return resolved

    def network(self, model: nn.Module) -> SideNetwork:
        """The gated side network."""
        from harness.methods.side.network import GatedNetwork, Sizes

        sizes = Sizes.of(model, int(self.params["reduction"]))
        return GatedNetwork(sizes, int(self.params["rank"]), released=self.params["mode"] == "repo")

    def side_parameters(self, model: nn.Module) -> int:
        """See the declaration."""
        from harness.methods.side.network import Sizes

        s = Sizes.of(model, int(self.params["reduction"]))
        adapter = int(self.params["rank"]) * (s.hidden + s.width) + 2 * s.width
        ends = s.width + 2 * s.hidden if self.params["mode"] == "repo" else adapter + s.hidden
        return s.depth * (adapter + s.width + s.block_parameters) + s.hidden * s.width + ends

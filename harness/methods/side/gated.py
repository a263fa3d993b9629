"""QST's side network: low-rank adapters in front of every block, gates between backbone and side."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from harness.methods.side.network import SideNetwork, Sizes


class Adapter(nn.Module):
    """hidden -> rank -> width with a swish between, normalised: hidden states differ in size from block to block."""

    def __init__(self, sizes: Sizes, rank: int) -> None:
        super().__init__()
        self.into = nn.Linear(sizes.hidden, rank, bias=False)
        self.out = nn.Linear(rank, sizes.width, bias=False)
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to [..., width]."""
        return cast(Tensor, self.norm(self.out(nn.functional.silu(self.into(hidden)))))


class GatedNetwork(SideNetwork):
    """See :class:`harness.methods.side.qst.QST`.

    Args:
        sizes: of the network.
        rank: of its adapters.
        squashed: the output's gate is sig(a) instead of a.
    """

    def __init__(self, sizes: Sizes, rank: int, *, squashed: bool) -> None:
        super().__init__(sizes)
        self.squashed = squashed
        self.first = Adapter(sizes, rank)
        self.adapters = nn.ModuleList(Adapter(sizes, rank) for _ in range(sizes.depth))
        self.gates = nn.ParameterList(torch.full((sizes.width,), 0.5) for _ in range(sizes.depth))
        self.back = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.share = nn.Parameter(torch.ones(sizes.hidden))

    def beginning(self, embedded: Tensor) -> Tensor:
        """The embeddings through their adapter."""
        return cast(Tensor, self.first(embedded))

    def entering(self, index: int, tapped: Tensor, state: Tensor) -> Tensor:
        """A gate per channel weighs the backbone against the side network."""
        gate = torch.sigmoid(self.gates[index])
        return (1 - gate) * cast(Tensor, self.adapters[index](tapped)) + gate * state

    def leaving(self, state: Tensor, last: Tensor) -> Tensor:
        """A share of the backbone's last hidden state and the rest of the side network's."""
        share = torch.sigmoid(self.share) if self.squashed else self.share
        return share * last + (1 - share) * cast(Tensor, self.back(state))

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
        released: the network of the released code: the output's gate is sig(a) instead of a, the embeddings go through
            the first block's adapter, the side state is normalised before it goes back up, the up-projection has a
            bias, and the mix is made of the backbone's *normalised* hidden state and goes to the head as it is.
    """

    def __init__(self, sizes: Sizes, rank: int, *, released: bool) -> None:
        super().__init__(sizes)
        self.after_norm = released
        if not released:
            self.first = Adapter(sizes, rank)
        self.adapters = nn.ModuleList(Adapter(sizes, rank) for _ in range(sizes.depth))
        self.gates = nn.ParameterList(torch.full((sizes.width,), 0.5) for _ in range(sizes.depth))
        self.back = nn.Linear(sizes.width, sizes.hidden, bias=released)
        if released:
            self.side_norm = nn.RMSNorm(sizes.width)
        self.share = nn.Parameter(torch.ones(sizes.hidden))

    def beginning(self, embedded: Tensor) -> Tensor:
        """The embeddings through their adapter."""
        adapter = self.adapters[0] if self.after_norm else self.first
        return cast(Tensor, adapter(embedded))

    def entering(self, index: int, tapped: Tensor, state: Tensor) -> Tensor:
        """A gate per channel weighs the backbone against the side network."""
        gate = torch.sigmoid(self.gates[index])
        return (1 - gate) * cast(Tensor, self.adapters[index](tapped)) + gate * state

    def leaving(self, state: Tensor, last: Tensor) -> Tensor:
        """A share of the backbone's last hidden state and the rest of the side network's."""
        if not self.after_norm:
            return self.share * last + (1 - self.share) * cast(Tensor, self.back(state))
        share = torch.sigmoid(self.share)
        return share * last + (1 - share) * cast(Tensor, self.back(self.side_norm(state)))

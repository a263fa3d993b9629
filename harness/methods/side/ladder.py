"""LST's side network, and how its blocks are cut out of a backbone's."""

from __future__ import annotations

import re
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.methods.modules import blocks, linears
from harness.methods.side.network import SideNetwork, Sizes

TEMPERATURE = 0.1
ROLES = {
    "query": r".*(q_proj|query)",
    "key": r".*(k_proj|key)",
    "value": r".*(v_proj|value)",
    "output": r".*(o_proj|out_proj|attention\.output\.dense)",
    "gate": r".*gate_proj",
    "up": r".*(up_proj|fc1|intermediate\.dense)",
    "down": r".*(down_proj|fc2|(?<!attention\.)output\.dense)",
}
"""Names of the layers of a backbone's block that correspond to a :class:`SideBlock`'s."""


class LadderNetwork(SideNetwork):
    """See :class:`harness.methods.side.lst.LST`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.first = nn.Linear(sizes.hidden, sizes.width, bias=False)
        self.rungs = nn.ModuleList(nn.Linear(sizes.hidden, sizes.width, bias=False) for _ in range(sizes.depth))
        self.gates = nn.ParameterList(torch.zeros(1) for _ in range(sizes.depth))
        self.back = nn.Linear(sizes.width, sizes.hidden, bias=False)

    def beginning(self, embedded: Tensor) -> Tensor:
        """The embeddings, made narrow."""
        return cast(Tensor, self.first(embedded))

    def entering(self, index: int, tapped: Tensor, state: Tensor) -> Tensor:
        """One number a rung weighs the backbone against the ladder."""
        share = torch.sigmoid(self.gates[index] / TEMPERATURE)
        return share * cast(Tensor, self.rungs[index](tapped)) + (1 - share) * state

    def leaving(self, state: Tensor, last: Tensor) -> Tensor:
        """The ladder's state, made wide: the backbone's last one is read through the last rung alone."""
        return cast(Tensor, self.back(state))


@torch.no_grad()
def prune_into(side: LadderNetwork, model: nn.Module) -> None:
    """Fill the side blocks with the backbone's rows and columns of greatest norm.

    The channels of the residual stream are the same in every block, since all of them read and write one stream;
    inner channels are chosen block by block. Nothing happens on the meta device, where there are no values.
    """
    from harness.quantizers.measure import dequantize

    if next(side.parameters()).is_meta:
        return
    prefix, layers = blocks(model)
    names = {layer.name for layer in linears(model)}
    found: list[dict[str, Tensor]] = []
    for index, block in enumerate(layers):
        inside = [(n, m) for n, m in block.named_modules() if f"{prefix}.{index}.{n}" in names]
        roles = {role: next((m for n, m in inside if re.fullmatch(p, n)), None) for role, p in ROLES.items()}
        found.append({role: dequantize(module).float() for role, module in roles.items() if module is not None})
    hidden = side.sizes.hidden
    reading = [w for weights in found for w in weights.values() if w.shape[1] == hidden]
    if not reading:
        return
    stream = strongest(torch.stack([w.square().sum(0) for w in reading]).sum(0), side.sizes.width)
    for weights, target in zip(found, side.blocks, strict=True):
        _fill(cast(Any, target), weights, stream, side.sizes)


def _fill(target: Any, weights: dict[str, Tensor], stream: Tensor, sizes: Sizes) -> None:
    """Copy what fits: query, key and value read the stream, the output writes to it; so do up, gate and down."""
    for role in ("query", "key", "value"):
        if role in weights:
            kept = strongest(weights[role].square().sum(1), sizes.width)
            _put(getattr(target, role), weights[role], kept, stream)
    if "output" in weights:
        kept = strongest(weights["output"].square().sum(0), sizes.width)
        _put(target.output, weights["output"], stream, kept)
    if {"up", "down"} <= weights.keys():
        inner = strongest(weights["up"].square().sum(1) + weights["down"].square().sum(0), sizes.inner)
        for role in ("up", "gate"):
            if role in weights:
                _put(getattr(target, role), weights[role], inner, stream)
        _put(target.down, weights["down"], stream, inner)


def _put(layer: nn.Linear, weight: Tensor, rows: Tensor, columns: Tensor) -> None:
    cut = weight[rows][:, columns]
    layer.weight[: cut.shape[0], : cut.shape[1]] = cut


def strongest(scores: Tensor, number: int) -> Tensor:
    """Indices of the ``number`` largest scores (fewer if there are fewer), in order."""
    return scores.topk(min(number, len(scores))).indices.sort().values

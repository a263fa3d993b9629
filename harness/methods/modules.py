"""Find the parts of a transformers model that methods refer to, and store single tensors.

Sizes are read from a layer's ``in_features`` and ``out_features``, never from its weight: 4-bit weights are packed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import Unsupported

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn
    from transformers import PreTrainedConfig

TENSORS_FILE = "tensors.safetensors"
CLASSIFIER_NAMES = ("score", "classifier")


@dataclass(frozen=True)
class Linear:
    """A linear layer's dotted name, its sizes and whether it has a bias."""

    name: str
    inputs: int
    outputs: int
    bias: bool


@dataclass(frozen=True)
class FeedForward:
    """The layers at which a block's feed-forward part begins and ends: both the hidden size wide there."""

    first: Linear
    last: Linear


def linears(model: nn.Module) -> list[Linear]:
    """Every linear layer of the model's body, quantized or not: all but the output embedding and the classifier."""
    from torch.nn import Linear as TorchLinear

    get_output = getattr(model, "get_output_embeddings", lambda: None)
    heads = (get_output(), classifier(model))
    skip = {id(m) for head in heads if head is not None for m in head.modules()}
    return [
        Linear(name, int(m.in_features), int(m.out_features), m.bias is not None)
        for name, m in model.named_modules()
        if id(m) not in skip and (isinstance(m, TorchLinear) or {"in_features", "out_features"} <= m.__dict__.keys())
    ]


def targeted(layers: Sequence[Linear], target_modules: str | Iterable[str]) -> list[Linear]:
    """The layers that ``target_modules`` names."""
    names = target_modules if isinstance(target_modules, str) else list(target_modules)
    return [layer for layer in layers if names == "all-linear" or named_by(layer.name, names)]


def named_by(name: str, names: str | Iterable[str]) -> bool:
    """True if ``names``, a regular expression or a list of full or last parts, match the module called ``name``."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == n or name.endswith(f".{n}") for n in names)


def no_module(model: nn.Module, names: str | Iterable[str]) -> str:
    """The message for ``names`` that match no module: what was asked for, and what the model has."""
    asked = names if isinstance(names, str) else " or ".join(sorted(map(repr, names)))
    has = sorted({layer.name.rpartition(".")[2] for layer in linears(model)})
    return f"{type(model).__name__} has no module named {asked}; its linear layers are {', '.join(has)}"


def classifier(model: nn.Module) -> nn.Module | None:
    """The classification head of a sequence classifier, None for other models.

    DistilBERT's head has two layers, both drawn fresh, as two attributes; they are returned as one list.
    """
    from torch.nn import ModuleList

    for name in CLASSIFIER_NAMES:
        head: Any = getattr(model, name, None)
        if head is not None:
            before: Any = getattr(model, f"pre_{name}", None)
            return ModuleList([before, head]) if before is not None else head
    return None


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks and its dotted name.

    Raises:
        ValueError: the model has no module list as long as its configuration says it is deep.
    """
    from torch.nn import ModuleList

    config: PreTrainedConfig = model.config
    depth = config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, ModuleList) and len(module) == depth:
            return name, module
    raise ValueError(f"{type(model).__name__} has no list of {depth} transformer blocks")


def feed_forwards(model: nn.Module) -> list[FeedForward]:
    """The feed-forward part of every block: its linear layers that are not of attention, the first and the last.

    Raises:
        Unsupported: a block whose other linear layers do not lead from the hidden size back to it.
    """
    prefix, layers = blocks(model)
    found = linears(model)
    out = []
    for index in range(len(layers)):
        start = f"{prefix}.{index}."
        inside = [
            layer
            for layer in found
            if layer.name.startswith(start) and not re.search("attn|attention", layer.name.removeprefix(start))
        ]
        if len(inside) < 2 or inside[0].inputs != inside[-1].outputs:
            raise Unsupported(f"block {index} of {type(model).__name__} has no feed-forward part of linear layers")
        out.append(FeedForward(inside[0], inside[-1]))
    return out


def output_head(model: nn.Module) -> nn.Module | None:
    """The classifier of a sequence classifier, else the output embedding of a language model."""
    get_output: Any = getattr(model, "get_output_embeddings", lambda: None)
    return classifier(model) or get_output()


def add_bias(layer: nn.Module, dtype: torch.dtype) -> None:
    """Give a linear layer without a bias one of zeros, on the device of what it holds."""
    import torch

    untyped: Any = layer
    device = next(itertools.chain(layer.parameters(), layer.buffers())).device
    untyped.bias = torch.nn.Parameter(torch.zeros(untyped.out_features, dtype=dtype, device=device))


def freeze(model: nn.Module) -> None:
    """Take every parameter out of training."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Number of distinct parameters' elements (a tied tensor counts once)."""
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())


def narrow(places: torch.Tensor) -> torch.Tensor:
    """Indices in four bytes each, where none is too large for that."""
    import torch

    fits = not places.numel() or int(places.max()) <= torch.iinfo(torch.int32).max
    return places.to(torch.int32) if fits else places


def save_trainable(model: nn.Module, folder: Path) -> None:
    """Write the trainable parameters by name, as one safetensors file."""
    from safetensors.torch import save_file

    tensors = {n: p.detach().contiguous().cpu() for n, p in model.named_parameters() if p.requires_grad}
    save_file(tensors, folder / TENSORS_FILE)


def load_tensors(model: nn.Module, folder: Path, *, skip: Collection[str] = ()) -> None:
    """Copy what :func:`save_trainable` wrote into the parameters of the same names, but for ``skip``."""
    import torch
    from safetensors.torch import load_file

    with torch.no_grad():
        for name, tensor in load_file(folder / TENSORS_FILE).items():
            if name in skip:
                continue
            model.get_parameter(name).copy_(tensor)

"""S2FT: a few heads and a few feed-forward channels, each as a small dense matrix (arXiv:2412.06289)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration, Method
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
from harness.methods.selective.lofit import head_width, output_projections

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

DELTA, CHANNELS = "s2ft_delta", "s2ft_channels"


def down_projections(model: nn.Module) -> list[Linear]:
    """The feed-forward layers that lead back to the hidden size: more inputs than outputs, not of attention."""
    prefix, _ = blocks(model)
    return [
        layer
        for layer in linears(model)
        if layer.name.startswith(f"{prefix}.") and layer.inputs > layer.outputs and "attn" not in layer.name
    ]


class S2FT(Method):
    """y += x[channels] delta^T on every down projection, and on the attention's output projection with the channels of
    whole heads; delta (outputs x channels) starts at zero.

    The paper permutes channels so that the trained ones are adjacent, which is for speed; the function is the same, and
    so heads can be chosen under grouped queries too, which the released permutation cannot do.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="s2ft",
        summary="A few attention heads and feed-forward channels, drawn at random, train as small dense matrices.",
        family="selective",
        trainable="Σ m·max(1, round(d·n)) over the down projections, Σ m·w·max(1, round(o·h)) over the output "
        "projections of attention (h heads of width w), and a classifier's head.",
        paper="2412.06289",
        bases=bases.ALL,
        refuses=bases.because(bases.NO_GRADIENT, bases.DYNAMIC),
        merge_refuses=bases.because(
            "its channels are columns of a floating-point weight, which a quantized layer lacks", bases.QUANTIZED
        )
        | bases.because(bases.SPARSE_MERGE, "sparse"),
        mergeable="exactly",
        defaults={"channels": 0.03, "heads": 0.05},
        defaults_source=(
            "the paper's recipes: 3 % of the feed-forward channels (Llama-3), 5 % of the heads (Llama-2); at least one "
            "of each in a block, none of a kind whose share is 0"
        ),
        lr_factor=10.0,
        later={"heads": 0},
        unverified=True,
    )

    def _widths(self, model: nn.Module) -> list[tuple[Linear, int, int]]:
        """Layers with the width of what is drawn together (a channel, a head) and how many of them are drawn."""
        channels, heads = float(self.params["channels"]), float(self.params["heads"])
        found = []
        if heads > 0:
            width = head_width(model)
            for layer in output_projections(model):
                found.append((layer, width, max(1, round(heads * layer.inputs / width))))
        if channels > 0:
            found += [(layer, 1, max(1, round(channels * layer.inputs))) for layer in down_projections(model)]
        return found

    def expected_trainable(self, model: nn.Module) -> int | None:
        """Σ outputs x channels, and the classifier."""
        head = classifier(model)
        own = sum(layer.outputs * width * number for layer, width, number in self._widths(model))
        return own + (count(head.parameters()) if head is not None else 0)

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze the base; draw channels and add the deltas."""
        import torch

        layers = self._widths(model)
        freeze(model)
        generator = torch.Generator().manual_seed(self.setting.seed)
        self._drawn: dict[str, list[int]] = {}
        for layer, width, number in layers:
            module: Any = model.get_submodule(layer.name)
            device = next(iter(module.state_dict().values())).device
            drawn = torch.randperm(layer.inputs // width, generator=generator)[:number].sort().values
            self._drawn[layer.name] = drawn.tolist()
            channels = (drawn[:, None] * width + torch.arange(width)).flatten()
            module.register_buffer(CHANNELS, channels.to(device), persistent=False)
            zeros = torch.zeros(layer.outputs, len(channels), device=device)  # float32 on every base
            module.register_parameter(DELTA, torch.nn.Parameter(zeros))
            module.s2ft_hook = module.register_forward_hook(_add)
        head = classifier(model)
        for parameter in head.parameters() if head is not None else ():
            parameter.requires_grad_(True)
        return model

    def facts(self) -> dict[str, Any]:
        """The channels, or the heads, that were drawn on each layer."""
        return {"drawn": self._drawn}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Deltas and head; the channels follow from the seed and are checked on loading by their count."""
        save_trainable(model, folder)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Attach with the same seed and copy the deltas in."""
        model = self.attach(base)
        load_tensors(model, folder)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """W[:, channels] += delta."""
        import torch

        with torch.no_grad():
            for layer, _, _ in self._widths(model):
                module: Any = model.get_submodule(layer.name)
                module.weight[:, module.s2ft_channels] += module.s2ft_delta.to(module.weight.dtype)
                module.s2ft_hook.remove()
                delattr(module, DELTA)
                delattr(module, CHANNELS)
        return model


def _add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    delta: torch.Tensor = module.s2ft_delta
    added: torch.Tensor = output + (inputs[0][..., module.s2ft_channels].to(delta.dtype) @ delta.T).to(output.dtype)
    return added

"""SketchTune: weights become a few trainable numbers a row, and frozen codes that point at them (arXiv:2410.06364)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.methods import bases
from harness.methods.base import Batch, Declaration, Method, Setting
from harness.methods.modules import TENSORS_FILE, classifier, count, freeze, linears
from harness.quantizers.layers import plain_linears

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

BATCHES = 4
FILLS = "weights that share a number with zeros would fill the zeros of a sparse base"
OWN_SKETCH = "it makes its own sketch of floating-point weights; give it an unquantized base"


class SketchTune(Method):
    """Every row of a weight is cut into ``groups`` parts, each of which holds 2^bits numbers and a code per weight.

    Numbers and codes come from k-means over the part, each weight counted by the square of the inputs it meets. The
    codes are frozen; the numbers train, so that all weights with one code move together, and the tuned model is as
    small as the sketch.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="sketchtune",
        summary="Each row of a weight is compressed to sixteen shared numbers, and these numbers are what trains.",
        family="quantized weights",
        trainable="Σ m·groups·2^bits over the linear layers of the body, and a classifier's head.",
        paper="2410.06364",
        bases=frozenset({"fp"}),
        refuses={**bases.because(OWN_SKETCH, bases.QUANTIZED, bases.DYNAMIC), **bases.because(FILLS, "sparse")},
        mergeable="no",
        defaults={"bits": 4, "groups": 1},
        defaults_source=(
            "the released code's 16 numbers and fewest groups; its rates of 3e-5 to 8e-5 are above full fine-tuning's"
        ),
        lr_factor=3.0,
        identity_at_start=False,
    )

    def __init__(self, params: Mapping[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self.weights: dict[str, torch.Tensor] = {}

    @classmethod
    def check_merge(cls, base: str, params: Mapping[str, object] | None = None) -> str | None:
        """The sketch is all there is."""
        return "the trained numbers are the model's weights: there are no others to merge into"

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> None:
        """Sum the squares of every input channel over a few batches: the diagonal of the layer's Hessian."""
        import torch

        hooks = []
        for name, linear in plain_linears(model):

            def add(_module: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                found = inputs[0].detach().float().flatten(0, -2).square().sum(0)
                self.weights[name] = self.weights[name] + found if name in self.weights else found

            hooks.append(linear.register_forward_pre_hook(add))
        with torch.no_grad():
            for batch in batches(BATCHES):
                model(**batch)
        for hook in hooks:
            hook.remove()

    def expected_trainable(self, model: nn.Module) -> int | None:
        """Numbers of all rows, and the classifier."""
        head = classifier(model)
        body = {name for name, _ in plain_linears(model)}
        per_row = int(self.params["groups"]) * 2 ** int(self.params["bits"])
        own: int = sum(layer.outputs * per_row for layer in linears(model) if layer.name in body)
        return own + (count(head.parameters()) if head is not None else 0)

    def attach(self, model: nn.Module) -> nn.Module:
        """Put a sketch in the place of every linear layer of the body."""
        import torch

        from harness.methods.quantized.sketch import SketchLinear, sketch

        freeze(model)
        for name, linear in plain_linears(model):
            counted = self.weights.get(name, torch.ones(linear.in_features, device=linear.weight.device))
            grid, codes = sketch(linear.weight.data, counted, int(self.params["bits"]), int(self.params["groups"]))
            model.set_submodule(name, SketchLinear(linear, grid, codes, int(self.params["bits"])))
        _free_head(model)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        """Numbers, codes and the classifier: the whole of the sketch, since codes depend on the calibration."""
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        tensors |= {n: b for n, b in model.named_buffers() if n.endswith(".sketch_codes")}
        save_file({n: t.detach().contiguous().cpu() for n, t in tensors.items()}, folder / TENSORS_FILE)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Sketches from the stored numbers and codes; nothing is clustered again."""
        import torch
        from safetensors.torch import load_file

        from harness.methods.quantized.sketch import SketchLinear

        stored = load_file(folder / TENSORS_FILE)
        freeze(base)
        bits = int(self.params["bits"])
        for name, linear in plain_linears(base):
            device = linear.weight.device
            grid, codes = stored.pop(f"{name}.sketch_grid"), stored.pop(f"{name}.sketch_codes")
            base.set_submodule(name, SketchLinear(linear, grid.to(device), codes.to(device), bits, packed=True))
        with torch.no_grad():
            for name, tensor in stored.items():
                base.get_parameter(name).copy_(tensor)
        _free_head(base)
        return base


def _free_head(model: nn.Module) -> None:
    head = classifier(model)
    for parameter in head.parameters() if head is not None else ():
        parameter.requires_grad_(True)

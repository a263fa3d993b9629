"""SpIEL: sparse differences whose places move to where the gradient is (arXiv:2401.16405)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.delta import ADAPTS, MERGE_REFUSES, REFUSES, WeightDelta, device_of, parameter
from harness.methods.modules import TENSORS_FILE, Linear, load_tensors, narrow, trainable

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

DELTA, INDEX = "spiel_delta", "spiel_index"
DECODED = bases.FLOAT | bases.BNB_4BIT | bases.HQQ | bases.PACKED
"""Bases whose layers multiply with the very weight that decoding gives: there one product with the sum is enough."""
LATER_SHARE = 0.2
"""Share of the entries given up at the second choice of places; it falls to zero with the remaining steps."""


class _SpIEL(WeightDelta):
    """``y = x (W + scatter(index, delta))^T`` with r(m + n) entries a layer, drawn at random to begin with.

    Every ``interval`` steps (and once after the first ``watched``) the entries of smallest size are given up for others
    that begin at zero: all of them the first time, then a share that falls with time.
    """

    tensors = (DELTA, INDEX)

    def size(self, layer: Linear) -> int:
        """As many entries as LoRA of rank r has."""
        return min(int(self.params["r"]) * (layer.inputs + layer.outputs), layer.inputs * layer.outputs // 2)

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """Zeros at places drawn without replacement."""
        import torch

        drawn = torch.randperm(layer.inputs * layer.outputs, generator=generator)[: self.size(layer)]
        module.register_buffer(INDEX, drawn.to(device_of(module)), persistent=False)
        module.register_parameter(DELTA, parameter(torch.zeros(self.size(layer)), module))

    def attach(self, model: nn.Module) -> nn.Module:
        """Same as the base class; if the weight can be decoded, the layer multiplies once, with the sum of both."""
        model = super().attach(model)
        if self.setting.base in DECODED:
            for name, hook in self._hooks.items():
                hook.remove()
                self._hooks[name] = _Combined(model.get_submodule(name))
        return model

    def added(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x dW^T, a second product, on bases whose kernels multiply with something else than the decoded weight.

        The gradient of the whole weight exists for a moment, in the backward pass of one layer.
        """
        from harness.methods.selective.spiel_ops import sparse_product

        return sparse_product(x.float(), module)

    def delta(self, module: nn.Module) -> torch.Tensor:
        """The entries in their places."""
        from harness.methods.selective.spiel_ops import scattered

        return scattered(module)

    def adapted(self, model: nn.Module) -> list[Any]:
        """The layers that hold entries."""
        return [module for module in model.modules() if hasattr(module, DELTA)]

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """One whose state follows the entries to their new places."""
        self._optimizer = self.make_optimizer(model)
        return self._optimizer

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """See :meth:`optimizer`."""
        raise NotImplementedError

    def chooses_after(self, step: int) -> bool:
        """True if new positions are chosen after ``step`` steps (from 1)."""
        interval, first = int(self.params["interval"]), int(self.params["watched"])
        return step == first or (step > first and step % interval == 0 and step < self.setting.steps)

    def share(self, step: int) -> float:
        """Of the entries that are given up after ``step`` steps."""
        if step == int(self.params["watched"]):
            return 1.0
        return LATER_SHARE * (1 - step / max(1, self.setting.steps))

    def on_step(self, model: nn.Module, step: int) -> None:
        """If it is due: choose new positions in every layer."""
        import torch

        if self.chooses_after(step):
            with torch.no_grad():
                for module in self.adapted(model):
                    self.move(module, round(self.share(step) * len(module.spiel_delta)))

    def move(self, module: nn.Module, number: int) -> None:
        """Give up ``number`` entries of one layer for others."""
        raise NotImplementedError

    def save(self, model: nn.Module, folder: Path) -> None:
        """Entries, their places and the classifier."""
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        tensors |= {n: narrow(b) for n, b in model.named_buffers() if n.endswith(f".{INDEX}")}
        save_file({n: t.detach().contiguous().cpu() for n, t in tensors.items()}, folder / TENSORS_FILE)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Attach, and copy places and entries in."""
        from safetensors.torch import load_file

        model = self.attach(base)
        places = {n: t for n, t in load_file(folder / TENSORS_FILE).items() if n.endswith(f".{INDEX}")}
        for name, places_of_layer in places.items():
            model.get_buffer(name).copy_(places_of_layer)
        load_tensors(model, folder, skip=places.keys())
        return model


class _Combined:
    """A layer's forward pass as one product with W + delta, until it is removed."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.module.forward = self.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (W + delta)^T + b."""
        from harness.methods.selective.spiel_ops import combined_product

        y = combined_product(x, self.module)
        bias = self.module.bias
        return y if bias is None else y + bias.to(y.dtype)

    def remove(self) -> None:
        """The layer multiplies as its class does."""
        del self.module.forward


def _declare(name: str, summary: str, lr_factor: float, source: str) -> Declaration:
    return Declaration(
        name=name,
        summary=summary,
        family="selective",
        trainable="Σ r(m + n) entries over the linear layers of the blocks, and a classifier's head.",
        paper="2401.16405",
        bases=ADAPTS,
        refuses=REFUSES,
        merge_refuses=MERGE_REFUSES,
        mergeable="exactly",
        defaults={"r": 8, "interval": 20, "watched": 5},
        defaults_source=f"the released code, whose interval of 100 steps is for runs of thousands; {source}",
        lr_factor=lr_factor,
        revision=2,
    )


class SpIELAG(_SpIEL):
    """New places are those of the largest gradient, summed over ``watched`` steps on as many candidates as entries."""

    declaration: ClassVar[Declaration] = _declare(
        "spiel-ag",
        "Trains a few single weights of each matrix and moves them, now and then, to where the gradient is largest.",
        10.0,
        "the rate is ours",
    )

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW."""
        import torch

        return torch.optim.AdamW(trainable(model), **self.setting.adamw)

    def select(self, model: nn.Module, step: int) -> None:
        """Watch the gradients of the steps just before a choice."""
        from harness.methods.selective.spiel_ops import Watch

        ahead = range(step + 1, step + 1 + int(self.params["watched"]))
        watching = any(self.chooses_after(later) for later in ahead)
        for module in self.adapted(model):
            if watching and getattr(module, "spiel_watch", None) is None:
                module.spiel_watch = Watch(len(module.spiel_delta))

    def move(self, module: Any, number: int) -> None:
        """To the candidates of largest mean gradient; Adam's moments there are what was watched."""
        from harness.methods.selective.spiel_ops import grow, smallest

        watch, module.spiel_watch = module.spiel_watch, None
        mean, square = watch.moments()
        given_up = smallest(module, number)
        new, taken = grow(module, given_up, watch.candidates, mean.abs())
        state = self._optimizer.state[module.spiel_delta]
        first, second = self.setting.betas
        age = float(state["step"])
        at = given_up[: len(new)]
        # as large as the moments would be if the entry had been there from the start, which their correction assumes
        state["exp_avg"][at] = mean[taken] * (1 - first**age)
        state["exp_avg_sq"][at] = square[taken] * (1 - second**age)


class SpIELMA(_SpIEL):
    """The state is a number a row and a column (SM3, arXiv:1901.11150); entries go where the product is largest."""

    declaration: ClassVar[Declaration] = _declare(
        "spiel-ma",
        "As spiel-ag, with an optimizer state of one number per row and column, whose product says where to grow.",
        30.0,
        "its rates of 4e-4 to 2e-3 are far above full fine-tuning's",
    )

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SM3 on the entries."""
        from harness.methods.selective.spiel_ops import SparseSM3

        layers = {id(m.spiel_delta): m for m in self.adapted(model)}
        groups = [{"params": [p], "layer": layers.get(id(p))} for p in model.parameters() if p.requires_grad]
        s = self.setting
        return SparseSM3(groups, lr=s.learning_rate, weight_decay=s.weight_decay)

    def move(self, module: Any, number: int) -> None:
        """To the places of largest product that hold no entry."""
        from harness.methods.selective.spiel_ops import grow, smallest

        state = self._optimizer.state[module.spiel_delta]
        likely = (state["rows"][:, None] * state["columns"]).flatten()
        given_up = smallest(module, number)
        candidates = likely.topk(min(len(likely), 2 * len(module.spiel_delta))).indices
        grow(module, given_up, candidates, likely[candidates])

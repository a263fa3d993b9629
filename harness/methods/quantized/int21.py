"""INT2.1: a model in very few bits whose adapters first repair it, then learn the task (arXiv:2306.08162)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Batch, Declaration, Setting
from harness.methods.budget import search_length
from harness.methods.delta import WeightDelta, parameter
from harness.methods.modules import Linear, freeze
from harness.quantizers.layers import plain_linears
from harness.quantizers.rtn import RTN

if TYPE_CHECKING:  # heavy, and only for types
    from collections.abc import Iterator

    import torch
    from torch import nn

A, B = "int21_a", "int21_b"
OWN_BITS = "it rounds floating-point weights itself and needs them as the teacher; give it an unquantized base"


class Int21(WeightDelta):
    """The base is rounded to ``bits`` bits; LoRA on every layer is trained twice.

    First against the floating-point model, by the divergence of the two answers on training text (the paper's error
    correction), in ``prepare``; then on the task. The backward pass decodes weights again instead of keeping them.
    """

    tensors = (A, B)
    declaration: ClassVar[Declaration] = Declaration(
        name="int21",
        summary=(
            "Rounds the model to two bits, repairs it by adapters that learn to answer as the floating-point model "
            "did, and goes on training those on the task."
        ),
        family="quantized weights",
        trainable="Σ r(m + n) over the linear layers of the blocks, and a classifier's head.",
        paper="2306.08162v1",
        bases=bases.FLOAT,  # zero has its own code, so that pruned weights stay zero
        refuses=bases.because(OWN_BITS, bases.QUANTIZED, bases.DYNAMIC),
        mergeable="no",
        defaults={"bits": 2, "group_size": 32, "r": 8, "alpha": 16, "repair_steps": None, "repair_rate": 3e-3},
        defaults_source="2 bits as in the paper; groups, rank and the repair's rate are ours; the repair takes a "
        "quarter of the cell's steps",
        lr_factor=10.0,
        identity_at_start=False,
        needs_second_model=True,
        unverified=True,
    )

    def __init__(self, params: Mapping[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self.repaired: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def quantize(self, model: nn.Module) -> None:
        """Round every linear layer of the body to the nearest, packed."""
        own = {"bits": int(self.params["bits"]), "group_size": int(self.params["group_size"]), "symmetric": False}
        RTN(RTN.resolve(own), self.setting.kind, self.setting.device).apply(model)

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> dict[str, Any]:
        """Train the adapters against the floating-point model, which is there again afterwards."""
        import torch

        originals = dict(plain_linears(model))
        super_attach = WeightDelta.attach
        self.quantize(model)
        super_attach(self, model)
        own = [p for n, p in model.named_parameters() if n.endswith((A, B))]
        packed = {name: model.get_submodule(name) for name in originals}
        optimizer = torch.optim.AdamW(own, lr=float(self.params["repair_rate"]), weight_decay=0.0)
        losses = []
        for drawn in batches(self.search_steps):
            batch = {k: v for k, v in drawn.items() if k != "labels"}
            with torch.no_grad(), instead(model, originals, packed):
                teacher = model(**batch).logits
            loss = divergence(teacher, model(**batch).logits, batch.get("attention_mask"))
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
            optimizer.step()
            optimizer.zero_grad()
        for name, module in packed.items():
            if name in self._hooks:
                layer: Any = module
                self.repaired[name] = (layer.int21_a.detach(), layer.int21_b.detach())
        self._hooks.clear()
        for name, linear in originals.items():
            model.set_submodule(name, linear)
        freeze(model)
        return {"divergence": losses}

    @property
    def search_steps(self) -> int:
        """Steps of the repair; they are taken off those on the task."""
        return search_length(self.params, "repair_steps", self.setting.steps)

    def size(self, layer: Linear) -> int:
        """Two factors."""
        return int(self.params["r"]) * (layer.inputs + layer.outputs)

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """The repaired factors, or LoRA's start where nothing was repaired yet."""
        import torch

        r = int(self.params["r"])
        bound = layer.inputs**-0.5
        a = torch.empty(r, layer.inputs, device="cpu").uniform_(-bound, bound, generator=generator)
        b = torch.zeros(layer.outputs, r)
        first, second = self.repaired.get(layer.name, (a, b))
        module.register_parameter(A, parameter(first.clone(), module))
        module.register_parameter(B, parameter(second.clone(), module))

    def attach(self, model: nn.Module) -> nn.Module:
        """Round the base, then attach the adapters."""
        self.quantize(model)
        return super().attach(model)

    def added(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """s B A x."""
        scale = float(self.params["alpha"]) / int(self.params["r"])
        found: torch.Tensor = scale * ((x.float() @ module.int21_a.T) @ module.int21_b.T)
        return found


@contextmanager
def instead(model: nn.Module, others: Mapping[str, nn.Module], these: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within it the model has ``others`` in the places of ``these``."""
    for name, module in others.items():
        model.set_submodule(name, module)
    try:
        yield
    finally:
        for name, module in these.items():
            model.set_submodule(name, module)


def divergence(teacher: torch.Tensor, student: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """KL(teacher || student) of the answers, a mean over what counts: tokens that are not padding, or sequences."""
    import torch

    p, q = torch.log_softmax(teacher.float(), -1), torch.log_softmax(student.float(), -1)
    each = (p.exp() * (p - q)).sum(-1)
    return each[mask.bool()].mean() if mask is not None and each.shape == mask.shape else each.mean()

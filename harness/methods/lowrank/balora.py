"""BA-LoRA: PiSSA held near the pre-trained model's answers by three penalties (arXiv:2408.04556)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods.base import Batch, Declaration
from harness.methods.delta import parameter
from harness.methods.lowrank.factors import KEEPS_NO_BASE, LowRank, take_out, whole
from harness.methods.modules import Linear

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn
    from transformers.utils import ModelOutput


class BALoRA(LowRank):
    """``loss + l1 C + l2 D + l3 S`` over the logits z of the tuned and z0 of the original model.

    C keeps z near z0, D keeps answers different from each other, S keeps them in a few directions. The original
    model is the one with the factors of the start, of which a copy is kept: the base without factors lacks what they
    took out of it. A classifier's head is fresh and has no original: z0 is read through the head in training. S is
    computed from whole sequences; the released code takes columns of a vector there, which cannot run.
    """

    tensors = ("ba_a", "ba_b", "ba_a0", "ba_b0")
    declaration: ClassVar[Declaration] = Declaration(
        name="ba-lora",
        summary="PiSSA with penalties that keep answers near the original model's, diverse, and in few directions.",
        family="adapter",
        trainable="Σ r(m + n) over the linear layers of the blocks, and a classifier's head.",
        paper="2408.04556",
        bases=frozenset({"fp"}),
        refuses=KEEPS_NO_BASE,
        mergeable="exactly",
        defaults={"r": 8, "alpha": 8, "consistency": 1e-4, "diversity": 3e-4, "spectrum": 1e-4},
        defaults_source="weights of the penalties, and alpha equal to r, as in the released code, whose rank of 128 is "
        "for 7B models; the rate as pissa's here",
        lr_factor=10.0,
        needs_second_model=True,
        revision=2,
    )
    _original = False

    def size(self, layer: Linear) -> int:
        """Two factors."""
        return self.rank(layer) * (layer.inputs + layer.outputs)

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """The first singular directions, taken out of the weight; a copy of them is the original model's part."""
        import torch

        r = self.rank(layer)
        u, s, v = torch.linalg.svd(whole(module), full_matrices=False)
        root = (s[:r] / self.scale).sqrt()
        for name, values in (("a", root[:, None] * v[:r]), ("b", u[:, :r] * root)):
            module.register_parameter(f"ba_{name}", parameter(values.contiguous(), module))
            module.register_buffer(f"ba_{name}0", values.clone(), persistent=False)
        take_out(module, self.delta(module))

    def attach(self, model: nn.Module) -> nn.Module:
        """Same as the base class; the model runs a second time for the penalties."""
        self._model = super().attach(model)
        return self._model

    def added(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """s B A x, or what the original model had there."""
        a, b = (module.ba_a0, module.ba_b0) if self._original else (module.ba_a, module.ba_b)
        found: torch.Tensor = self.scale * ((x.float() @ a.T) @ b.T)
        return found

    def delta(self, module: Any) -> torch.Tensor:
        """s B A."""
        found: torch.Tensor = self.scale * (module.ba_b @ module.ba_a)
        return found

    def original_logits(self, batch: Batch) -> torch.Tensor:
        """Answers of the original model; the tuned one is restored afterwards."""
        import torch

        training = self._model.training
        self._original = True
        self._model.eval()
        try:
            with torch.no_grad():
                logits: torch.Tensor = self._model(**{k: v for k, v in batch.items() if k != "labels"}).logits
                return logits
        finally:
            self._original = False
            self._model.train(training)

    def loss(self, outputs: ModelOutput, batch: Batch, reference: torch.Tensor) -> torch.Tensor:
        """The task's loss and the three penalties, over positions that are not padding."""
        import torch

        from harness.methods.lowrank import penalties

        z, z0 = outputs.logits.float(), self.original_logits(batch).float()
        with torch.autocast(z.device.type, enabled=False):
            if self.setting.kind == "causal-lm":
                terms = penalties.generating(z, z0, batch["attention_mask"].bool())
            else:
                terms = penalties.classifying(z, z0)
        weights = (self.params["consistency"], self.params["diversity"], self.params["spectrum"])
        return reference + sum(float(w) * term for w, term in zip(weights, terms, strict=True))

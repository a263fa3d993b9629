"""LoRA-GGPO, as in the paper's first version: training under noise that the gradient scales (arXiv:2502.14538v1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods.base import Declaration
from harness.methods.delta import ADAPTS, MERGE_REFUSES, REFUSES, parameter
from harness.methods.lowrank.factors import LowRank, kaiming, whole
from harness.methods.modules import Linear

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class LoRAGGPO(LowRank):
    """LoRA; while it trains, row i of every weight is shifted by ``N(0, 1) c_i``, drawn again in every forward pass.

    ``c_i = (sigma sqrt(||W_0||^2 + ||dW_i||^2) + beta ||G_i||^2) / sqrt(m)``: ||W_0|| is the mean norm of the base's
    rows, dW_i and G_i are rows of the adapter's product and of ``s (B grad(A) + grad(B) A)``, after the last step.
    The paper's second version, under another name, has another rule.
    """

    tensors = ("ggpo_a", "ggpo_b", "ggpo_noise", "ggpo_norm")
    declaration: ClassVar[Declaration] = Declaration(
        name="lora-ggpo",
        summary="LoRA trained under random shifts of the weights, larger where weights and gradients are, to end where "
        "the loss is flat.",
        family="adapter",
        trainable="Σ r(m + n) over the linear layers of the blocks, and a classifier's head.",
        paper="2502.14538v1",
        bases=ADAPTS,
        refuses=REFUSES,
        merge_refuses=MERGE_REFUSES,
        mergeable="exactly",
        defaults={"r": 8, "alpha": 16, "sigma": 0.03, "beta": 0.01},
        defaults_source="rule, sigma and beta as in a community implementation, the authors' own being out of reach; "
        "rank and alpha as lora's here",
        lr_factor=10.0,
        unverified=True,
    )

    def size(self, layer: Linear) -> int:
        """Two factors."""
        return self.rank(layer) * (layer.inputs + layer.outputs)

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """LoRA's start, and the norm of the base's rows."""
        import torch

        r = self.rank(layer)
        module.register_parameter("ggpo_a", parameter(kaiming(r, layer.inputs, generator), module))
        module.register_parameter("ggpo_b", parameter(torch.zeros(layer.outputs, r), module))
        norm = whole(module).norm(dim=1).mean()
        module.register_buffer("ggpo_norm", norm, persistent=False)
        noise = float(self.params["sigma"]) * norm / layer.outputs**0.5  # no step yet: dW and G are zero
        module.register_buffer("ggpo_noise", noise.repeat(layer.outputs), persistent=False)

    def added(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """s B A x, and under training the noise's product."""
        from harness.methods.lowrank.mixtures import noisy_product

        x = x.float()
        found: torch.Tensor = self.scale * ((x @ module.ggpo_a.T) @ module.ggpo_b.T)
        return found + noisy_product(x, module.ggpo_noise) if module.training else found

    def on_step(self, model: nn.Module, step: int) -> None:
        """Set the noise of the next step while the gradients of this one are there."""
        import torch

        sigma, beta = float(self.params["sigma"]), float(self.params["beta"])
        with torch.no_grad():
            for name in self._hooks:
                layer: Any = model.get_submodule(name)
                a, b = layer.ggpo_a, layer.ggpo_b
                if a.grad is None or b.grad is None:  # an expert that no token was sent to
                    continue
                gradient = self.scale * (b @ a.grad + b.grad @ a)
                weights = (layer.ggpo_norm**2 + self.delta(layer).square().sum(1)).sqrt()
                size = sigma * weights + beta * gradient.square().sum(1)
                layer.ggpo_noise.copy_(size / layer.out_features**0.5)

    def delta(self, module: Any) -> torch.Tensor:
        """s B A."""
        found: torch.Tensor = self.scale * (module.ggpo_b @ module.ggpo_a)
        return found

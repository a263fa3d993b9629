"""NEFTune: noise on the embeddings while the model trains (arXiv:2310.05914)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.methods import bases
from harness.methods.base import Declaration
from harness.methods.baselines import ONLY_FP, Full
from harness.methods.peft.method import PeftMethod
from harness.methods.peft.table import derived

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

PAPER = "2310.05914"
ALPHA = 5.0
SOURCE = "noise_alpha 5, the smallest of the paper's 5, 10 and 15"


def add_noise(model: nn.Module, alpha: float) -> RemovableHandle:
    """Hook the noise onto the input embeddings; the handle takes it off.

    Each entry of an embedded sequence gets uniform noise within alpha / sqrt(L d), L its positions and d the width
    (paper, algorithm 1), in training mode alone.
    """
    import torch

    def hook(module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        bound = alpha / (output.shape[-2] * output.shape[-1]) ** 0.5
        return output + torch.empty_like(output).uniform_(-bound, bound)

    like: PreTrainedModel = model
    handle: RemovableHandle = like.get_input_embeddings().register_forward_hook(hook)
    return handle


class NefTune(Full):
    """Full fine-tuning with noisy embeddings."""

    declaration: ClassVar[Declaration] = Declaration(
        name="neftune",
        summary="Full fine-tuning with uniform noise added to the embeddings while it trains.",
        family="baseline",
        trainable="All parameters.",
        paper=PAPER,
        bases=ONLY_FP,
        refuses=bases.NOT_IN_PLACE,
        mergeable="exactly",
        defaults={"noise_alpha": ALPHA},
        defaults_source=SOURCE,
        in_place=True,
    )

    def attach(self, model: nn.Module) -> nn.Module:
        """As full fine-tuning, with the hook."""
        self._handle = add_noise(model, float(self.params["noise_alpha"]))
        return super().attach(model)

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the noise off."""
        self._handle.remove()
        return model


class LoraNefTune(PeftMethod):
    """LoRA with noisy embeddings."""

    own = frozenset({"noise_alpha"})
    row = derived(
        "lora",
        {"noise_alpha": ALPHA},
        name="lora-neftune",
        summary="LoRA with uniform noise added to the embeddings while it trains.",
        paper=PAPER,
        defaults_source=f"{SOURCE}; adapter as our LoRA row",
    )
    declaration: ClassVar[Declaration] = row.declaration

    def attach(self, model: nn.Module) -> nn.Module:
        """As LoRA, with the hook."""
        self._handle = add_noise(model, float(self.params["noise_alpha"]))
        return super().attach(model)

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the noise off."""
        self._handle.remove()
        return model

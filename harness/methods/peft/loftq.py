"""LoftQ: the base is rounded, and LoRA's factors start as the best low-rank correction of the error (arXiv:2310.08659).

peft's own initialisation runs on CUDA and XPU only, and leaves LoRA's scale out of account; the alternation of the
paper's algorithm 1 is written out here and runs everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.methods.peft.method import PeftMethod

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


class LoftQ(PeftMethod):
    """Q_t = q(W - A_t B_t) and A_(t+1) B_(t+1) = the best approximation of W - Q_t of the given rank, a few times."""

    def config(self, model: nn.Module) -> Any:
        """LoRA's configuration with its usual start, which :meth:`attach` replaces.

        Raises:
            UserError: the bits are neither 4 nor 8, or the number of rounds is not a whole number above 0.
        """
        config = super().config(model)
        self._bits, self._rounds = config.loftq_config["loftq_bits"], config.loftq_config["loftq_iter"]
        if self._bits not in (4, 8):
            raise UserError(f"loftq_bits must be 4 (nf4) or 8, not {self._bits!r}")
        if not isinstance(self._rounds, int) or self._rounds < 1:
            raise UserError(f"loftq_iter must be a whole number above 0, not {self._rounds!r}")
        config.init_lora_weights, config.loftq_config = True, {}
        return config

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model, round every target's weight and set its factors."""
        import torch
        from peft.tuners.lora import Linear

        adapted = super().attach(model)
        with torch.no_grad():
            for module in adapted.modules():
                if isinstance(module, Linear):
                    layer: Any = module
                    weight = layer.base_layer.weight
                    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                    rounded, left, right = alternate(weight.float(), len(a), self._bits, self._rounds)
                    weight.copy_(rounded)
                    b.copy_(left / layer.scaling["default"])
                    a.copy_(right)
        return adapted

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Round the fresh base in the same way, and put the trained factors on it."""
        from peft import load_peft_weights, set_peft_model_state_dict

        model = self.attach(base)
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        return model


def alternate(
    weight: torch.Tensor, rank: int, bits: int, rounds: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rounded weight and the two factors of its correction.

    Args:
        weight: [outputs, inputs], float32.
        rank: of the correction.
        bits: 4 (nf4, blocks of 64) or 8 (a scale per row).
        rounds: of the alternation.

    Returns:
        Q [outputs, inputs], B [outputs, rank], A [rank, inputs] with W near Q + B A.
    """
    import torch

    left = torch.zeros(weight.shape[0], rank, device=weight.device)
    right = torch.zeros(rank, weight.shape[1], device=weight.device)
    rounded = weight
    for _ in range(rounds):
        rounded = nearest(weight - left @ right, bits)
        u, s, v = torch.linalg.svd(weight - rounded, full_matrices=False)
        root = s[:rank].sqrt()
        left, right = u[:, :rank] * root, root[:, None] * v[:rank]
    return rounded, left, right


def nearest(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The weight rounded to nf4 or to 8-bit integers, and decoded again."""
    if bits == 8:
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        return (weight / scale).round() * scale
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
    decoded: torch.Tensor = dequantize_4bit(codes, state)
    return decoded.to(weight.dtype)

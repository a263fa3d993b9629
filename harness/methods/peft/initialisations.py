"""Initialisations that read data or change the base: CorDA, LoRA-GA, EVA, LoftQ and their like.

peft's own LoftQ (arXiv:2310.08659) runs on CUDA and XPU only, and leaves LoRA's scale out of account; the alternation
of the paper's algorithm 1 is written out here and runs everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError, shown
from harness.methods.base import Batch
from harness.methods.modules import blocks, linears, targeted
from harness.methods.peft.method import PeftMethod

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from peft import PeftConfig, PeftModel
    from torch import nn


class Reparameterized(PeftMethod):
    """The initialisation takes the adapter's first value off the base, so a fresh base does not fit the adapter.

    What is saved is the difference to the first adapter, which is plain LoRA of twice the rank on the untouched base:
    s(B·A - B₀·A₀) = s[B, -B₀]·[A; A₀].
    """

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model and keep the adapter's first value."""
        adapted = super().attach(model)
        self._first = {name: tensor.detach().cpu().clone() for name, tensor in _adapter_state(adapted).items()}
        return adapted

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the difference to the first value, as plain LoRA."""
        import torch
        from peft.utils import SAFETENSORS_WEIGHTS_NAME
        from safetensors.torch import save_file

        state = {}
        for name, tensor in _adapter_state(model).items():
            now = tensor.detach().cpu()
            if "lora_A" in name:
                now = torch.cat([now, self._first[name]], dim=0)
            elif "lora_B" in name:
                now = torch.cat([now, -self._first[name]], dim=1)
            state[name] = now.contiguous()
        save_file(state, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        adapted: PeftModel = model
        config = copy.deepcopy(adapted.peft_config["default"])
        grow = 2**0.5 if config.use_rslora else 2  # keeps the scale, alpha/r or alpha/√r
        config.init_lora_weights, config.inference_mode = True, True
        config.r, config.lora_alpha = 2 * config.r, grow * config.lora_alpha
        config.rank_pattern = {key: 2 * value for key, value in (config.rank_pattern or {}).items()}
        config.alpha_pattern = {key: grow * value for key, value in config.alpha_pattern.items()}
        config.save_pretrained(folder)


class FromData(Reparameterized):
    """An initialisation that reads training batches before the adapter is attached."""

    batches_read = 8  # at most; billed to the stage ``prepare``


class Corda(FromData):
    """CorDA: the weight is split along the principal directions of weight times input covariance."""

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """With the targets inside the blocks only: a covariance is one over tokens, a pooler sees single vectors."""
        params = super().config_params(model)
        return {**params, "target_modules": inside_blocks(model, params["target_modules"])}

    @property
    def wants_text(self) -> bool:
        """``kpm`` keeps what general text needs, so its covariance is that of such text; ``ipm`` follows the task's."""
        return bool(self.params["corda_method"] == "kpm")

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> None:
        """Gather the covariance of every target's input."""
        import torch
        from peft.tuners.lora.corda import preprocess_corda

        def run() -> None:
            with torch.no_grad():
                for batch in batches(self.batches_read):
                    for row in range(len(batch["input_ids"])):  # the covariance hook takes one sequence at a time
                        model(**_row(batch, row))

        preprocess_corda(model, self.config(model), run_model=run)


class LoraGa(FromData):
    """LoRA-GA: the factors start as singular vectors of the first gradient."""

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> None:
        """Sum the gradient of every target over the first batches."""
        from peft.tuners.lora.loraga import preprocess_loraga

        def step() -> None:
            for batch in batches(self.batches_read):
                model(**batch).loss.backward()

        preprocess_loraga(model, self.config(model), step)
        model.zero_grad(set_to_none=True)


class Eva(PeftMethod):
    """EVA: A starts as the principal directions of each target's input; the rank goes where they explain most."""

    batches_read = 8  # at most; billed to the stage ``prepare``

    def config_params(self, model: nn.Module) -> dict[str, object]:
        """Targets inside the blocks only (a pooler sees single vectors); a classifier's labels mask no tokens."""
        params = super().config_params(model)
        inside = inside_blocks(model, params["target_modules"])
        return {"use_label_mask": self.setting.kind == "causal-lm", **params, "target_modules": inside}

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> None:
        """Incremental singular value decomposition of every target's input."""
        from peft.tuners.lora.eva import get_eva_state_dict

        config = self.config(model)
        found = get_eva_state_dict(model, list(batches(self.batches_read)), config, show_progress_bar=False)
        # names as in the wrapped model: a name that is not found there is left at LoRA's own start
        self._directions = {f"base_model.model.{name}": directions for name, directions in found.items()}

    def attach(self, model: nn.Module) -> nn.Module:
        """Wrap the model and load the directions."""
        from peft import initialize_lora_eva_weights

        adapted = super().attach(model)
        initialize_lora_eva_weights(adapted, eva_state_dict=self._directions, show_progress_bar=False)
        return adapted

    def expected_trainable(self, model: nn.Module) -> int | None:
        """Unknown: the data decides how the ranks are shared out."""
        return None


class LoftQ(PeftMethod):
    """LoftQ: Q_t = q(W - A_t B_t), A_(t+1) B_(t+1) = best approximation of W - Q_t of the given rank, a few times."""

    def config(self, model: nn.Module) -> PeftConfig:
        """LoRA's configuration with its usual start, which :meth:`attach` replaces.

        Raises:
            UserError: the bits are neither 4 nor 8, or the number of rounds is not a whole number above 0.
        """
        config = super().config(model)
        self._bits, self._rounds = config.loftq_config["loftq_bits"], config.loftq_config["loftq_iter"]
        if self._bits not in (4, 8):
            raise UserError(f"loftq_bits must be 4 (nf4) or 8, not {shown(self._bits)}")
        if not isinstance(self._rounds, int) or self._rounds < 1:
            raise UserError(f"loftq_iter must be a whole number above 0, not {shown(self._rounds)}")
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
                    layer: Linear = module
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


def _adapter_state(adapted: nn.Module) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(adapted, save_embedding_layers=False)  # type: ignore[no-any-return]


def inside_blocks(model: nn.Module, target_modules: str | list[str]) -> list[str]:
    """Names of the targets that are inside the model's blocks."""
    prefix = blocks(model)[0]
    return [t.name for t in targeted(linears(model), target_modules) if t.name.startswith(f"{prefix}.")]


def _row(batch: Batch, row: int) -> dict[str, object]:
    """One sequence of a batch, without its padding."""
    keep = batch["attention_mask"][row].bool()
    return {name: batch[name][row : row + 1, keep] for name in ("input_ids", "attention_mask")}

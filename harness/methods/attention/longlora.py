"""LongLoRA: LoRA with trained embeddings and norms, under sparse attention while it trains (arXiv:2309.12307)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError
from harness.methods.base import Declaration
from harness.methods.modules import TENSORS_FILE, count, linears
from harness.methods.peft.method import PeftMethod
from harness.methods.peft.table import derived

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn


class LongLoRA(PeftMethod):
    """Attention in groups and LoRA on the attention's layers; what is saved and scored attends to everything.

    The positions' scale is left alone: a sweep trains at a model's own context length, and does not extend it.
    """

    own = frozenset({"groups"})
    row = derived(
        "lora",
        {"groups": 4, "target_modules": "attention"},
        name="longlora",
        summary="LoRA with trained embeddings and norms; in training tokens attend inside groups, half of the heads "
        "in groups shifted by half a group; at scoring all tokens attend to everything.",
        trainable="Σ r(n + m) over the attention's layers, and all parameters of embeddings and norms.",
        paper="2309.12307v3",
        defaults_source="groups of a quarter of the sequence, rank 8 and alpha 16 on q, k, v and o as in the released "
        "code; its rate of 2e-5 is the one of its full fine-tuning",
        lr_factor=1.0,
        unverified=True,
    )
    declaration: ClassVar[Declaration] = row.declaration

    @classmethod
    def resolve(cls, params: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
        """Same as the base class.

        Raises:
            UserError: ``groups`` is not a whole number above 0.
        """
        resolved = super().resolve(params, where=where)
        groups = resolved["groups"]
        if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
            raise UserError(f"groups of longlora must be a whole number above 0, not {groups!r}", where=where)
        return resolved

    def config_params(self, model: nn.Module) -> dict[str, Any]:
        """With ``attention`` spelt out."""
        params = super().config_params(model)
        if params["target_modules"] == "attention":
            params["target_modules"] = [
                layer.name for layer in linears(model) if "attn" in layer.name or "attention" in layer.name
            ]
        return params

    def expected_trainable(self, model: nn.Module) -> int | None:
        """LoRA's count, and the embeddings and norms."""
        added = super().expected_trainable(model)
        return None if added is None else added + count(p for _, p in _dense(model))

    def attach(self, model: nn.Module) -> nn.Module:
        """LoRA; embeddings and norms train in place; attention in groups until :meth:`finish`."""
        from harness.methods.attention.shifted import register

        like: Any = model
        self._before = like.config._attn_implementation
        like.set_attn_implementation(register(int(self.params["groups"])))
        adapted = super().attach(model)
        for _, parameter in _dense(adapted):
            parameter.requires_grad_(True)
        return adapted

    def finish(self, model: nn.Module) -> nn.Module:
        """Back to the attention that the cell asks for."""
        adapted: Any = model
        adapted.get_base_model().set_attn_implementation(self._before)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        """The adapter as in peft, plus trained embeddings and norms."""
        from safetensors.torch import save_file

        super().save(model, folder)
        save_file({n: p.detach().contiguous().cpu() for n, p in _dense(model)}, folder / TENSORS_FILE)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Adapter, embeddings and norms onto a fresh base, which attends to everything."""
        from harness.methods.modules import load_tensors

        model = super().load(base, folder)
        load_tensors(model, folder)
        return model


def _dense(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The base's own embeddings and norms."""
    for name, parameter in model.named_parameters():
        own = "lora_" not in name and "modules_to_save" not in name
        if own and ("embed" in name.lower() or "norm" in name.lower()):
            yield name, parameter

"""LongLoRA: LoRA with trained embeddings and norms, under sparse attention while it trains (arXiv:2309.12307)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import Unsupported, UserError, shown
from harness.methods.base import Declaration
from harness.methods.modules import TENSORS_FILE, count, linears
from harness.methods.peft.method import PeftMethod
from harness.methods.peft.table import derived

if TYPE_CHECKING:  # heavy, and only for types
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


class LongLoRA(PeftMethod):
    """Attention in groups and LoRA on the attention's layers; what is saved and scored attends to everything.

    With ``context``, a number of tokens beyond the model's own, rotary positions are interpolated as in the paper: they
    are divided by ceil(context / own), and the model takes that many tokens. The sweep's ``max_length`` decides how
    long the training sequences are.
    """

    own = frozenset({"groups", "context"})
    row = derived(
        "lora",
        {"groups": 4, "context": None, "target_modules": "attention"},
        name="longlora",
        summary="LoRA with trained embeddings and norms; in training tokens attend inside groups, half of the heads "
        "in groups shifted by half a group; at scoring all tokens attend to everything.",
        trainable="Σ r(n + m) over the attention's layers, and all parameters of embeddings and norms.",
        paper="2309.12307v3",
        defaults_source="groups of a quarter of the sequence, rank 8 and alpha 16 on q, k, v and o as in the released "
        "code; the rate is LoRA's: at full fine-tuning's, the released one, a small encoder gives one answer on TREC, "
        "at ten times that it learns (0.81)",
        lr_factor=10.0,
    )
    declaration: ClassVar[Declaration] = row.declaration

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Same as the base class.

        Raises:
            UserError: ``groups`` or ``context`` is not a whole number above 0.
        """
        resolved = super().resolve(params, where=where)
        groups = resolved["groups"]
        if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
            raise UserError(f"groups of longlora must be a whole number above 0, not {shown(groups)}", where=where)
        context = resolved["context"]
        if context is not None and (not isinstance(context, int) or isinstance(context, bool) or context < 1):
            raise UserError(f"context of longlora must be a number of tokens, not {shown(context)}", where=where)
        return resolved

    def config_params(self, model: nn.Module) -> dict[str, object]:
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

        like: PreTrainedModel = model
        self._lengthen(model)
        self._before = like.config._attn_implementation
        like.set_attn_implementation(register(int(self.params["groups"])))
        adapted = super().attach(model)
        for _, parameter in _dense(adapted):
            parameter.requires_grad_(True)
        return adapted

    def _lengthen(self, model: nn.Module) -> None:
        if self.params["context"] is not None:
            lengthen(model, int(self.params["context"]))
            if self.setting.tokenizer is not None:
                limit = self.setting.tokenizer.model_max_length
                self.setting.tokenizer.model_max_length = max(limit, int(self.params["context"]))

    def finish(self, model: nn.Module) -> nn.Module:
        """Back to the attention that the cell asks for."""
        adapted: PeftModel = model
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

        self._lengthen(base)
        model = super().load(base, folder)
        load_tensors(model, folder)
        return model


def lengthen(model: nn.Module, context: int) -> None:
    """Interpolate the rotary positions (arXiv:2306.15595), so that the model takes ``context`` tokens.

    A context that the model has anyway changes nothing.

    Raises:
        Unsupported: the model has no rotary positions, or they are scaled already.
    """
    like: PreTrainedModel = model
    config = like.config
    own = int(config.max_position_embeddings)
    factor = math.ceil(context / own)
    if factor <= 1:
        return
    holders = [module for module in model.modules() if getattr(module, "rotary_emb", None) is not None]
    stated = getattr(config, "rope_parameters", None)
    if not holders or stated is None:
        raise Unsupported(
            f"longlora lengthens a context by rotary positions, which {type(model).__name__} does not have"
        )
    if stated.get("rope_type", "default") != "default":
        raise Unsupported(f"longlora: the positions of this model are scaled already ({stated['rope_type']})")
    config.rope_parameters = {**stated, "rope_type": "linear", "factor": float(factor)}
    config.max_position_embeddings = own * factor
    for holder in holders:
        untyped: PreTrainedModel = holder
        device = next(iter(untyped.rotary_emb.buffers())).device
        untyped.rotary_emb = type(untyped.rotary_emb)(config).to(device)


def _dense(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The base's own embeddings and norms."""
    for name, parameter in model.named_parameters():
        own = "lora_" not in name and "modules_to_save" not in name
        if own and ("embed" in name.lower() or "norm" in name.lower()):
            yield name, parameter

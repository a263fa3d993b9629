"""Decoders that look to the right: the causal mask removed in all blocks or in some, for classification."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import Unsupported, UserError, shown
from harness.methods.base import Declaration
from harness.methods.modules import blocks
from harness.methods.peft.method import PeftMethod
from harness.methods.peft.table import derived

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

CLASSIFIES: dict[str, object] = {
    "kinds": frozenset({"sequence-classification"}),
    "refuses_kind": {
        "causal-lm": "a language model whose tokens see their successors has nothing left to predict",
    },
    "identity_at_start": False,
}


class LsUnLlama(PeftMethod):
    """LoRA and a classifier's head on a decoder without causal mask. A token sees every token that is not padding.

    The head reads the mean over the tokens: the last token alone sees all the others under a causal mask too, and
    without it in the last block would answer the same. An encoder has no causal mask, and is refused at attaching.
    """

    row = derived(
        "lora",
        {"r": 12, "alpha": 32, "dropout": 0.1},
        name="ls-unllama",
        summary="A decoder as a classifier: LoRA and a head on the mean of its tokens, with no causal mask at all.",
        paper="2310.01208v1",
        defaults_source="rank 12, alpha 32 and dropout 0.1 as in the released code, one of whose poolings the mean is; "
        "targets and rate as our LoRA row",
        **CLASSIFIES,
    )
    declaration: ClassVar[Declaration] = row.declaration

    @property
    def groups(self) -> str:
        """A digit for each group of blocks, from the input on: 1 where the mask is removed."""
        return "1"

    def attach(self, model: nn.Module) -> nn.Module:
        """Remove the mask, then LoRA and the head."""
        unmask(model, self.groups)
        return super().attach(model)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """As :meth:`attach`, with what was saved."""
        unmask(base, self.groups)
        return super().load(base, folder)


class LayerwiseUnmasked(LsUnLlama):
    """As :class:`LsUnLlama`, in some groups of blocks only."""

    own = frozenset({"groups"})
    row = derived(
        "lora",
        {"groups": "0011"},
        name="layerwise-unmask",
        summary="A decoder as a classifier: LoRA and a head on the mean of the tokens, without causal mask in chosen "
        "groups of blocks.",
        paper="2401.14556v3",
        defaults_source="four groups of blocks as in the paper, which finds that groups near the output gain most and "
        "the best choice to be the task's; adapter as our LoRA row (the paper's: QLoRA)",
        unverified=True,
        **CLASSIFIES,
    )
    declaration: ClassVar[Declaration] = row.declaration

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Same as the base class.

        Raises:
            UserError: ``groups`` is no text of the digits 0 and 1, or leaves every mask.
        """
        resolved = super().resolve(params, where=where)
        groups = resolved["groups"]
        if not isinstance(groups, str) or not re.fullmatch("[01]*1[01]*", groups):
            raise UserError(
                f"groups of layerwise-unmask must be digits 0 and 1, with a 1 among them, not {shown(groups)}",
                where=where,
                fix='Write it as text: groups: "0011" removes the mask in the upper half of the blocks.',
            )
        return resolved

    @property
    def groups(self) -> str:
        """As the sweep says."""
        return str(self.params["groups"])


def unmask(model: nn.Module, groups: str) -> None:
    """Remove the causal mask from the blocks whose group has a 1; padding stays hidden. The head reads the mean.

    Args:
        model: a decoder.
        groups: a digit for each of as many groups of blocks, which are as alike in size as the depth allows.

    Raises:
        Unsupported: the model has no causal attention, its blocks take no mask, or no block is in a group with a 1.
    """
    import torch
    from transformers.masking_utils import create_bidirectional_mask

    prefix, layers = blocks(model)
    chosen = [b for i, b in enumerate(layers) if groups[i * len(groups) // len(layers)] == "1"]
    if not chosen:
        raise Unsupported(f"with {len(layers)} blocks none is in a group of {groups!r} whose mask is removed")
    body: Any = model.get_submodule(prefix.rpartition(".")[0])
    padding: dict[str, Any] = {}

    def remember(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        padding["mask"] = inspect.signature(body.forward).bind(*args, **kwargs).arguments.get("attention_mask")

    def replace(
        block: Any, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        call = inspect.signature(block.forward).bind(*args, **kwargs)
        hidden = next(iter(call.arguments.values()))
        call.arguments["attention_mask"] = create_bidirectional_mask(body.config, hidden, padding["mask"])
        return call.args, call.kwargs

    def pool(_module: object, _args: object, output: Any) -> None:
        hidden = output.last_hidden_state
        real = torch.ones_like(hidden[..., :1]) if padding["mask"] is None else padding["mask"][..., None].to(hidden)
        mean = (hidden * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        output.last_hidden_state = mean.expand_as(hidden)  # whichever token the head reads

    body.register_forward_pre_hook(remember, with_kwargs=True)
    body.register_forward_hook(pool)
    for block in chosen:
        causal: list[Any] = [m for m in block.modules() if getattr(m, "is_causal", False)]
        if not causal or "attention_mask" not in inspect.signature(block.forward).parameters:
            raise Unsupported(f"the blocks of {type(model).__name__} have no causal mask that could be removed")
        for attention in causal:
            attention.is_causal = False  # read by attention without a mask
        block.register_forward_pre_hook(replace, with_kwargs=True)

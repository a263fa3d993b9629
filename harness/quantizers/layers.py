"""Layers that a quantizer changes: one policy for every back end.

Quantized: the weights of the linear layers of the transformer's body. Left in full precision: embeddings, norms,
biases, the language-model head (tied to the embeddings in many models), and everything after a classifier's encoder,
because fresh, randomly initialised heads must be trained, not rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from harness.errors import Unsupported, UserError, shown

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

HEADS: tuple[str, ...] = ("pooler", "pre_classifier", "classifier", "classification_head", "score", "lm_head")
"""Names of modules that stay in full precision, anywhere in the module path."""


def in_head(name: str) -> bool:
    """True if the module path ``name`` runs through one of :data:`HEADS`."""
    return not set(HEADS).isdisjoint(name.split("."))


def plain_linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of the body that still hold floating-point weights, with their module paths.

    Raises:
        Unsupported: there is none, so that "quantized" would be an empty word (for example GPT-2's ``Conv1D``).
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    found = [
        (name, module)
        for name, module in model.named_modules()
        if is_plain(module) and module is not output and not in_head(name)
    ]
    if not found:
        raise Unsupported("the model's body has no plain linear layers to quantize")
    return found


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """True if this is an ``nn.Linear`` proper with an ordinary tensor as its weight.

    Back ends either subclass ``nn.Linear`` or put a tensor subclass in the place of the weight.
    """
    import torch
    from torch import nn

    return (
        type(module) is nn.Linear and type(module.weight) is nn.Parameter and type(module.weight.data) is torch.Tensor
    )


def head_patterns(kind: str) -> list[str] | None:
    """Modules a back end of transformers must skip, or None where its own choice (the LM head) is the policy.

    Args:
        kind: ``causal-lm`` or ``sequence-classification``.
    """
    if kind == "causal-lm":
        return None
    # transformers matches a pattern as a regular expression from the start of the path, or as its end
    return [rf"(?:.*\.)?{head}" for head in HEADS]


def loaded_quantized(model: nn.Module) -> bool:
    """True if ``from_pretrained`` quantized this model, so that ``apply`` has nothing to do."""
    return bool(getattr(model, "is_quantized", False))


def one_of(name: str, value: object, allowed: tuple[object, ...], where: str) -> None:
    """Check a parameter against what the back end knows.

    Raises:
        UserError: ``value`` is none of ``allowed``.
    """
    # bool is an int in Python: "bits: true" must not pass for 1
    if isinstance(value, bool) != isinstance(allowed[0], bool) or value not in allowed:
        raise UserError(
            f"{name} {shown(value)} is not known", where=where, fix=f"One of: {', '.join(map(str, allowed))}."
        )


def positive(name: str, value: object, where: str, *, multiple_of: int = 1) -> None:
    """Check that a parameter is a positive whole number.

    Raises:
        UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or value % multiple_of:
        kind = "a positive whole number" if multiple_of == 1 else f"a positive multiple of {multiple_of}"
        raise UserError(f"{name} must be {kind}, not {shown(value)}", where=where)

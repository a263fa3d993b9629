"""LongLoRA's shifted sparse attention, as an attention function for transformers models.

torch and transformers are imported when :func:`register` is called, not before.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn


def register(groups: int) -> str:
    """Make attention in ``groups`` groups known to transformers; the name for ``set_attn_implementation``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    name = f"shifted-sparse-{groups}"
    AttentionInterface.register(name, functools.partial(attention, groups=groups))
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    groups: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """In training attention inside groups, half of the heads with groups half a group later; else full attention.

    A sequence that the groups do not divide is as if padded at its end. Whoever may see whom stays the model's own
    mask at the tokens' own positions, so that the group that joins the two ends leaks nothing from the future.

    Args:
        module: the attention layer; ``training`` and ``is_causal`` are read.
        query: [batch, heads, tokens, width].
        key: [batch, key-value heads, tokens, width].
        value: as ``key``.
        attention_mask: [batch, 1, tokens or 1, tokens], true where a token may be seen; None: all, or all earlier ones.
        groups: into how many a sequence is split.

    Returns:
        [batch, tokens, heads, width], and no weights.

    Raises:
        ValueError: keys of another length than the queries: it is no training on whole sequences.
    """
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if not module.training:
        full: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return full
    if options.get("softcap") is not None or query.shape[2] != key.shape[2]:
        raise ValueError("shifted sparse attention is for whole sequences, and without a cap on the scores")
    batch, heads, tokens, width = query.shape
    key, value = (repeat_kv(x, heads // x.shape[1]) for x in (key, value))
    size = -(-tokens // groups)
    causal = bool(getattr(module, "is_causal", True))
    halves = []
    for half, shift in ((slice(0, heads // 2), 0), (slice(heads // 2, heads), size // 2)):
        slots = (torch.arange(groups * size, device=query.device) + shift) % (groups * size)
        order = slots.view(groups, size)  # the position that each slot of each group holds
        seen = visible(attention_mask, order, tokens, causal=causal).expand(batch, -1, -1, -1, -1)
        held = slots.clamp(max=tokens - 1)
        q, k, v = (in_groups(x[:, half, held], groups) for x in (query, key, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen.flatten(0, 1), dropout_p=dropout, scale=scaling
        )
        back = (torch.arange(tokens, device=query.device) - shift) % (groups * size)
        halves.append(mixed.reshape(batch, groups, -1, size, width).transpose(1, 2).flatten(2, 3)[:, :, back])
    return torch.cat(halves, dim=1).transpose(1, 2).contiguous(), None


def in_groups(x: torch.Tensor, groups: int) -> torch.Tensor:
    """[batch, heads, tokens, width] as [batch x groups, heads, tokens of a group, width]."""
    batch, heads, _, width = x.shape
    return x.reshape(batch, heads, groups, -1, width).transpose(1, 2).flatten(0, 1)


def visible(mask: torch.Tensor | None, order: torch.Tensor, tokens: int, *, causal: bool) -> torch.Tensor:
    """Visible slots of its group for each slot: [batch or 1, groups, 1, size, size]. A slot always sees itself.

    Args:
        mask: as in :func:`attention`.
        order: [groups, size], positions; those from ``tokens`` on hold nothing.
        tokens: length of the sequence.
        causal: what no mask means.
    """
    import torch

    rows, columns = order[:, :, None], order[:, None, :]
    if mask is None:
        seen = (columns <= rows if causal else torch.ones_like(rows | columns, dtype=torch.bool))[None]
    else:
        full = mask.expand(-1, -1, tokens, tokens)[:, 0]
        seen = full[:, rows.clamp(max=tokens - 1), columns.clamp(max=tokens - 1)]
    itself = torch.eye(order.shape[1], dtype=torch.bool, device=order.device)
    return ((seen & (columns < tokens)) | itself)[:, :, None]

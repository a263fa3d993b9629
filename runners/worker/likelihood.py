"""Log-probabilities of token sequences under the model as it is now: batched by length, windows for what is too long,
one pass over a prompt that several continuations share.

Sharing a prompt means reading the model's cache of it. Not every method supports that (for example one that searches
for a token of the prompt in every call), so the first batch is scored both ways; a model that differs is scored without
sharing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from runners.worker.context import Context
from runners.worker.encoding import by_length, pad

SHARED_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference of a log-probability taken for rounding, relative to its size (at least 1 nat), by dtype."""

Ids = list[int]


class Window(NamedTuple):
    """Token ids: ``tail`` is scored, ``head`` is what it is conditioned on."""

    head: Ids
    tail: Ids


class LogProb(NamedTuple):
    """Log-probability of a continuation in nat, summed over its tokens, and whether greedy decoding would give it."""

    total: float
    greedy: bool


def windows(head: Ids, tail: Ids, limit: int) -> tuple[list[Window], bool]:
    """Windows of at most ``limit`` positions that together score every token of ``tail`` once; whether any was needed.

    The last token of a window is scored and never read, so head and tail hold ``limit + 1`` tokens. A head that does
    not fit loses its beginning. A tail that does not fit is scored in disjoint windows, each after the first
    conditioned on one token, as perplexity of a long text is.

    Args:
        head: at least one token.
        tail: at least one token.
    """
    if len(head) + len(tail) <= limit + 1:
        return [Window(head, tail)], False
    if len(tail) <= limit:
        return [Window(head[len(tail) - limit - 1 :], tail)], True
    found = [Window(head[-1:], tail[:limit])]
    for at in range(limit, len(tail), limit):
        found.append(Window(tail[at - 1 : at], tail[at : at + limit]))
    return found, True


def log_probs(ctx: Context, asked: Sequence[Window]) -> list[LogProb]:
    """Log-probability of each tail after its head, in the order given. Every window must fit the model."""
    out: list[LogProb | None] = [None] * len(asked)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, window in enumerate(asked):
        groups.setdefault(tuple(window.head), []).append(i)
    together = [rows for head, rows in groups.items() if len(rows) > 1 and len(head) > 1]
    shared = {i for rows in together for i in rows}
    alone = [i for i in range(len(asked)) if i not in shared]
    shares: bool | None = None  # not known before the first batch
    for batch in _batches_of_groups(asked, together, ctx.evaluation.batch_size):
        order = [i for rows in batch for i in rows]
        if shares is None:
            found = _plain_in_batches(ctx, [asked[i] for i in order])
            ctx.facts["shared_prompts"] = verdict = _compare(ctx, asked, batch, found)
            shares = bool(verdict["used"])
        elif shares:
            found = _shared(ctx, asked, batch)
        else:
            found = _plain_in_batches(ctx, [asked[i] for i in order])
        for i, value in zip(order, found, strict=True):
            out[i] = value
    for i, value in zip(alone, _plain_in_batches(ctx, [asked[i] for i in alone]), strict=True):
        out[i] = value
    return [value for value in out if value is not None]


def _batches_of_groups(asked: Sequence[Window], groups: list[list[int]], size: int) -> list[list[list[int]]]:
    """Groups, longest heads first, such that a batch holds ``size`` continuations at most (or one group)."""
    batches: list[list[list[int]]] = []
    held = 0
    for rows in sorted(groups, key=lambda rows: (-len(asked[rows[0]].head), rows[0])):
        if not batches or held + len(rows) > size:
            batches.append([])
            held = 0
        batches[-1].append(rows)
        held += len(rows)
    return batches


def _plain_in_batches(ctx: Context, asked: Sequence[Window]) -> list[LogProb]:
    """Every window as a separate row, batched by length."""
    out: list[LogProb | None] = [None] * len(asked)
    for batch in by_length([len(w.head) + len(w.tail) for w in asked], ctx.evaluation.batch_size):
        for i, value in zip(batch, _plain(ctx, [asked[i] for i in batch]), strict=True):
            out[i] = value
    return [value for value in out if value is not None]


def _plain(ctx: Context, batch: Sequence[Window]) -> list[LogProb]:
    """One row per window; right padding, which a causal model does not see, so that no mask is needed."""
    ids = pad([w.head + w.tail[:-1] for w in batch], ctx.tokenizer.pad_token_id).to(ctx.device)
    logits = token_logits(ctx.model(input_ids=ids).logits, ids.shape[1])
    return [_read(logits[k, len(w.head) - 1 : len(w.head) - 1 + len(w.tail)], w.tail) for k, w in enumerate(batch)]


def _read(logits: torch.Tensor, tail: Ids) -> LogProb:
    """Logits [tokens, vocabulary] that predict ``tail``."""
    wanted = torch.tensor(tail, device=logits.device)
    logp = logits.detach().float().log_softmax(-1)
    total = logp.gather(-1, wanted[:, None]).sum()
    return LogProb(float(total), bool((logp.argmax(-1) == wanted).all()))


def _compare(ctx: Context, asked: Sequence[Window], batch: list[list[int]], plain: list[LogProb]) -> dict[str, Any]:
    """True if prompts may be shared with this model; otherwise the reason."""
    try:
        shared = _shared(ctx, asked, batch)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return {"used": False, "why": f"{type(error).__name__}: {error}"[:300]}
    worst = max(abs(a.total - b.total) / max(1.0, abs(b.total)) for a, b in zip(shared, plain, strict=True))
    allowed = SHARED_TOLERANCE.get(next(ctx.model.parameters()).dtype, 1e-3)
    if not worst <= allowed:
        why = f"log-probabilities after a shared prompt differ by {worst:.3g}, {allowed:g} allowed"
        return {"used": False, "why": why}
    return {"used": True, "worst_difference": worst}


def _shared(ctx: Context, asked: Sequence[Window], batch: list[list[int]]) -> list[LogProb]:
    """One row per prompt, then one row per continuation on the prompts' cache.

    The prompt's last token is read with the continuation, whose first token it predicts. Prompts are padded on the
    right and read without a mask, which a causal model does not need and attention is faster without; in the cache
    the padding is masked.
    """
    heads = [asked[rows[0]].head[:-1] for rows in batch]
    ids = pad(heads, ctx.tokenizer.pad_token_id).to(ctx.device)
    cache = ctx.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    order = [i for rows in batch for i in rows]
    owner = torch.tensor([k for k, rows in enumerate(batch) for _ in rows], device=ctx.device)
    cache.batch_select_indices(owner)
    rest = [asked[i].head[-1:] + asked[i].tail[:-1] for i in order]
    more = pad(rest, ctx.tokenizer.pad_token_id).to(ctx.device)
    mask = torch.cat([pad([[1] * len(h) for h in heads], 0)[owner.cpu()], pad([[1] * len(r) for r in rest], 0)], dim=1)
    lengths = torch.tensor([len(h) for h in heads], device=ctx.device)[owner]
    logits = ctx.model(
        input_ids=more,
        attention_mask=mask.to(ctx.device),
        position_ids=lengths[:, None] + torch.arange(more.shape[1], device=ctx.device)[None],
        past_key_values=cache,
        use_cache=True,
    ).logits
    return [_read(logits[k, : len(asked[i].tail)], asked[i].tail) for k, i in enumerate(order)]


def token_logits(logits: torch.Tensor, width: int) -> torch.Tensor:
    """Logits of the real tokens: soft prompts put virtual positions in front, which are dropped."""
    return logits[:, -width:]

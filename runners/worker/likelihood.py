"""Log-probabilities of token sequences under the model as it is now: batched by length, windows for what is too long,
one pass over a prompt that several continuations share.

Sharing a prompt means reading the model's cache of it. Not every method supports that (for example one that searches
for a token of the prompt in every call), so two or three prompts are scored both ways; a model that differs is scored
without sharing.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from runners.worker import likelihood
from runners.worker.context import Context, context_length, told
from runners.worker.encoding import by_length, encode_pair, pad

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import Cache, PreTrainedModel

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
    together = sorted((rows for rows in groups.values() if len(rows) > 1), key=lambda r: (-len(asked[r[0]].head), r[0]))
    shared = {i for rows in together for i in rows}
    alone = [i for i in range(len(asked)) if i not in shared]
    shares: bool | None = None  # not known before the first batch
    probe, others = _probe(asked, together)
    batches = _batches_of_groups(asked, others, ctx.evaluation.batch_size)
    for batch in told(ctx, [*([probe] if probe else []), *batches]):
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


def _probe(asked: Sequence[Window], groups: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """The groups that are scored both ways, and the others: little work, and as different as the groups get.

    They are the longest head, the shortest, and the one with the longest continuation.
    """
    if not groups:
        return [], []
    longest = max(range(len(groups)), key=lambda k: max(len(asked[i].tail) for i in groups[k]))
    chosen = sorted({0, longest, len(groups) - 1})
    return [groups[k] for k in chosen], [group for k, group in enumerate(groups) if k not in chosen]


def _batches_of_groups(asked: Sequence[Window], groups: list[list[int]], size: int) -> list[list[list[int]]]:
    """Groups in their order, such that a batch has ``size`` rows at most (or one group).

    A head is a row of the first pass, a continuation of two and more tokens one of the second.
    """
    batches: list[list[list[int]]] = []
    held = 0
    for rows in groups:
        needed = max(1, sum(len(asked[i].tail) > 1 for i in rows))
        if not batches or held + needed > size:
            batches.append([])
            held = 0
        batches[-1].append(rows)
        held += needed
    return batches


def _plain_in_batches(ctx: Context, asked: Sequence[Window]) -> list[LogProb]:
    """Every window as a separate row, batched by length."""
    out: list[LogProb | None] = [None] * len(asked)
    for batch in told(ctx, by_length([len(w.head) + len(w.tail) for w in asked], ctx.evaluation.batch_size)):
        for i, value in zip(batch, _plain(ctx, [asked[i] for i in batch]), strict=True):
            out[i] = value
    return [value for value in out if value is not None]


def _plain(ctx: Context, batch: Sequence[Window]) -> list[LogProb]:
    """One row per window; right padding, which a causal model does not see, so that no mask is needed.

    Only positions from the shortest head's end on get logits: with a vocabulary of 49,152 words the unused logits of
    the prompts take a fifth of the pass.
    """
    ids = pad([w.head + w.tail[:-1] for w in batch], ctx.tokenizer.pad_token_id).to(ctx.device)
    _, logits, first = last_logits(ctx.model, ids, min(len(w.head) for w in batch) - 1)
    starts = [len(w.head) - 1 - first for w in batch]
    return [
        _read(logits[k, at : at + len(w.tail)], w.tail) for k, (at, w) in enumerate(zip(starts, batch, strict=True))
    ]


def last_logits(model: PreTrainedModel, ids: torch.Tensor, first: int, **more: object) -> tuple[Any, torch.Tensor, int]:
    """The model's output, its logits of the positions from ``first`` on, and the position they really begin at.

    A model that does not take ``logits_to_keep``, or ignores it, gives all of them. Soft prompts put virtual positions
    in front, which are dropped.

    Args:
        ids: token ids, shape (rows, positions).
        more: additional arguments of the model.
    """
    width = ids.shape[1]
    if first > 0 and takes_logits_to_keep(model):
        more["logits_to_keep"] = width - first
    output = model(input_ids=ids, **more)
    found = min(width, output.logits.shape[1])
    return output, token_logits(output.logits, found), width - found


def takes_logits_to_keep(model: PreTrainedModel) -> bool:
    """True if the architecture under ``model`` can compute the logits of the last positions alone."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(plain.forward).parameters


def _read(logits: torch.Tensor, tail: Ids) -> LogProb:
    """Logits [tokens, vocabulary] that predict ``tail``."""
    wanted = torch.tensor(tail, device=logits.device)
    logp = logits.detach().float().log_softmax(-1)
    total = logp.gather(-1, wanted[:, None]).sum()
    return LogProb(float(total), bool((logp.argmax(-1) == wanted).all()))


def _compare(ctx: Context, asked: Sequence[Window], batch: list[list[int]], plain: list[LogProb]) -> dict[str, object]:
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

    The prompt's last token predicts the first token of all its continuations, so a second pass reads those of two and
    more tokens only. Prompts are padded on the right and read without a mask, which a causal model does not need and
    attention is faster without; in the cache the padding is masked.
    """
    heads = [asked[rows[0]].head for rows in batch]
    owner = [k for k, rows in enumerate(batch) for _ in rows]
    asked_ = [asked[i] for rows in batch for i in rows]
    longer = [k for k, window in enumerate(asked_) if len(window.tail) > 1]
    ids = pad(heads, ctx.tokenizer.pad_token_id).to(ctx.device)
    output, logits, first = last_logits(ctx.model, ids, min(map(len, heads)) - 1, use_cache=bool(longer))
    last = torch.stack([logits[k, len(head) - 1 - first] for k, head in enumerate(heads)])
    logp = last.detach().float().log_softmax(-1)
    best = logp.argmax(-1).tolist()
    opening = torch.tensor([window.tail[0] for window in asked_], device=logp.device)
    totals = logp[torch.tensor(owner, device=logp.device), opening].tolist()
    found = [LogProb(total, best[k] == window.tail[0]) for total, k, window in zip(totals, owner, asked_, strict=True)]
    if longer:
        rest = _on_the_cache(
            ctx, output.past_key_values, heads, [owner[k] for k in longer], [asked_[k] for k in longer]
        )
        for k, more in zip(longer, rest, strict=True):
            found[k] = LogProb(found[k].total + more.total, found[k].greedy and more.greedy)
    return found


def _on_the_cache(
    ctx: Context, cache: Cache, heads: Sequence[Ids], owner: Sequence[int], continuations: Sequence[Window]
) -> list[LogProb]:
    """All but the first token of continuations of two and more tokens, read on the cache of their heads.

    Args:
        cache: of the heads, padded on the right; it is changed.
        owner: which head each continuation follows.
    """
    select = torch.tensor(owner, device=ctx.device)
    cache.batch_select_indices(select)
    rest = [window.tail[:-1] for window in continuations]
    more = pad(rest, ctx.tokenizer.pad_token_id).to(ctx.device)
    read = pad([[1] * len(head) for head in heads], 0)[torch.tensor(owner)]
    mask = torch.cat([read, pad([[1] * len(r) for r in rest], 0)], dim=1)
    lengths = torch.tensor([len(heads[k]) for k in owner], device=ctx.device)
    logits = ctx.model(
        input_ids=more,
        attention_mask=mask.to(ctx.device),
        position_ids=lengths[:, None] + torch.arange(more.shape[1], device=ctx.device)[None],
        past_key_values=cache,
        use_cache=True,
    ).logits
    return [_read(logits[k, : len(w.tail) - 1], w.tail[1:]) for k, w in enumerate(continuations)]


def token_logits(logits: torch.Tensor, width: int) -> torch.Tensor:
    """Logits of the real tokens: soft prompts put virtual positions in front, which are dropped."""
    return logits[:, -width:]


class Answers(NamedTuple):
    """Of each pair: log p(answer | prompt) in nat, summed over its tokens; the answer's tokens; whether it was cut."""

    logps: list[float]
    lengths: list[int]
    cut: list[bool]


def answer_logps(ctx: Context, pairs: Sequence[tuple[str, str]], *, end: bool = True) -> Answers:
    """Sum of log p(answer token | prompt, answer so far) per (prompt, answer).

    A pair longer than the context is cut, never dropped: the prompt loses its beginning; an answer that alone is
    longer is scored in windows (:func:`runners.worker.likelihood.windows`).

    Args:
        end: whether the end-of-sequence token belongs to the answer (generation: yes; choices: no).
    """
    limit = context_length(ctx)
    flat: list[likelihood.Window] = []
    owner: list[int] = []
    lengths, cut = [], []
    for i, (prompt, answer) in enumerate(pairs):
        head, tail = encode_pair(ctx.tokenizer, prompt, answer, end=end)
        parts, shortened = likelihood.windows(head, tail, limit)
        flat += parts
        owner += [i] * len(parts)
        lengths.append(len(tail))
        cut.append(shortened)
    logps = [0.0] * len(pairs)
    for i, found in zip(owner, likelihood.log_probs(ctx, flat), strict=True):
        logps[i] += found.total
    return Answers(logps, lengths, cut)

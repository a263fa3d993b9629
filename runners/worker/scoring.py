"""The model's side of scoring: generations, log-probabilities and logits, batched by length.

What counts as right is decided in :mod:`tasks.scoring` from what this module produces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness.errors import Unsupported
from runners.worker.context import Context
from runners.worker.encoding import by_length, encode_answer, encode_prompt, encode_training, pad
from tasks import scoring
from tasks.task import Item, Task


def score(ctx: Context, task: Task, items: Sequence[Item]) -> list[scoring.Scored]:
    """Score ``items`` with the model as it is now, in the order given."""
    kind = task.definition.kind
    with torch.inference_mode():
        if kind == "sequence-classification":
            logits, cut = classification_logits(ctx, items)
            return scoring.score_classification(task, items, logits, cut=cut)
        if kind == "generation":
            logps, lengths, cut = answer_logps(ctx, [(i.prompt, i.answer) for i in items])
            texts = generate(ctx, task, items) if task.definition.judges_completions else None
            return scoring.score_generation(task, items, texts, logp_answers=logps, lengths=lengths, cut=cut)
        if kind == "multiple-choice":
            flat = [(item.prompt, choice) for item in items for choice in item.choices]
            logps, lengths, cut = answer_logps(ctx, flat, end=False)
            return scoring.score_choices(
                task, items, _per_item(items, logps), lengths=_per_item(items, lengths), cut=_per_item(items, cut)
            )
    raise Unsupported(f"tasks of kind {kind} have no scorer yet")


def mean_nll(ctx: Context, task: Task, items: Sequence[Item]) -> tuple[float, int]:
    """Mean negative log-likelihood of the right answers (nat), and the number of items. Generates nothing."""
    with torch.inference_mode():
        if task.definition.kind == "sequence-classification":
            logits, _ = classification_logits(ctx, items)
            logp = torch.from_numpy(logits).log_softmax(-1)
            values = [-float(logp[i, item.label]) for i, item in enumerate(items)]
        else:
            logps, _, _ = answer_logps(ctx, [(i.prompt, i.answer) for i in items])
            values = [-v for v in logps]
    return float(np.mean(values)), len(values)


def classification_logits(ctx: Context, items: Sequence[Item]) -> tuple[np.ndarray, list[bool]]:
    """Logits [items, classes] (float32) and which inputs were longer than the context and were cut."""
    limit = context_length(ctx)
    rows, _ = encode_training(ctx.tokenizer, items, ctx.kind, limit)
    lengths = [len(r["input_ids"]) for r in rows]
    out: list[np.ndarray | None] = [None] * len(items)
    for batch in by_length(lengths, ctx.evaluation.batch_size):
        ids, mask = _padded([rows[i]["input_ids"] for i in batch], ctx)
        logits = ctx.model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()
        for position, row in zip(batch, logits, strict=True):
            out[position] = row
    full = [len(ctx.tokenizer(i.prompt)["input_ids"]) > limit for i in items]
    return np.stack([row for row in out if row is not None]), full


def answer_logps(
    ctx: Context, pairs: Sequence[tuple[str, str]], *, end: bool = True
) -> tuple[list[float], list[int], list[bool]]:
    """Sum of log p(answer token | prompt, answer so far) per pair, answer lengths in tokens, and what was cut.

    Args:
        end: whether the end-of-sequence token belongs to the answer (generation: yes; choices: no).
    """
    limit = context_length(ctx)
    rows = []
    for prompt, answer in pairs:
        tail = encode_answer(ctx.tokenizer, answer)
        head = encode_prompt(ctx.tokenizer, prompt)
        tail = tail if end else tail[:-1]
        rows.append((head[-max(1, limit - len(tail)) :], tail, len(head) + len(tail) > limit))
    logps = [0.0] * len(rows)
    for batch in by_length([len(h) + len(t) for h, t, _ in rows], ctx.evaluation.batch_size):
        ids, mask = _padded([rows[i][0] + rows[i][1] for i in batch], ctx)
        logits = _token_logits(ctx.model(input_ids=ids, attention_mask=mask).logits, ids.shape[1])
        for k, i in enumerate(batch):
            head, tail, _ = rows[i]
            at = logits[k, len(head) - 1 : len(head) - 1 + len(tail)].float().log_softmax(-1)
            logps[i] = float(at.gather(-1, ids[k, len(head) : len(head) + len(tail), None]).sum())
    return logps, [len(t) for _, t, _ in rows], [c for *_, c in rows]


def _token_logits(logits: torch.Tensor, width: int) -> torch.Tensor:
    """Logits of the real tokens: soft prompts put virtual positions in front, which are dropped."""
    return logits[:, -width:]


def generate(ctx: Context, task: Task, items: Sequence[Item]) -> list[str]:
    """One completion per item, decoded without special tokens."""
    decoding = ctx.evaluation.decoding
    new_tokens = decoding.max_new_tokens or task.definition.max_new_tokens
    limit = context_length(ctx) - new_tokens
    prompts = [encode_prompt(ctx.tokenizer, i.prompt)[-limit:] for i in items]
    settings: dict[str, Any] = {
        "max_new_tokens": new_tokens,
        "do_sample": decoding.temperature > 0,
        "pad_token_id": ctx.tokenizer.pad_token_id,
        "eos_token_id": ctx.tokenizer.eos_token_id,
    }
    if decoding.temperature > 0:
        settings |= {"temperature": decoding.temperature, "top_k": decoding.top_k or 0, "top_p": decoding.top_p or 1.0}
    out = [""] * len(items)
    torch.manual_seed(ctx.seed)
    for batch in by_length([len(p) for p in prompts], ctx.evaluation.batch_size):
        ids, mask = _padded([prompts[i] for i in batch], ctx, left=True)
        produced = ctx.model.generate(input_ids=ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
        texts = ctx.tokenizer.batch_decode(produced, skip_special_tokens=True)
        for position, text in zip(batch, texts, strict=True):
            out[position] = text
    return out


def probe_logits(ctx: Context, model: Any) -> torch.Tensor:
    """Logits of the fixed probe batch (float32, on the CPU): what the reload and merge checks compare."""
    model.eval()
    inputs = {k: v for k, v in ctx.probe_batch.items() if k != "labels"}
    with torch.inference_mode():
        logits: torch.Tensor = model(**inputs).logits.float().cpu()
    if ctx.kind == "causal-lm":
        logits = _token_logits(logits, inputs["input_ids"].shape[1])
        logits = logits * inputs["attention_mask"].cpu()[..., None]  # padding positions mean nothing
    return logits


def context_length(ctx: Context) -> int:
    """Positions the model has, in tokens (the tokenizer's limit where it is smaller)."""
    config: Any = ctx.model.config
    return int(min(config.max_position_embeddings, ctx.tokenizer.model_max_length))


def _padded(rows: list[list[int]], ctx: Context, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of rows, on the device. The mask comes from lengths: pad may equal EOS."""
    ids = pad(rows, ctx.tokenizer.pad_token_id, left=left)
    mask = pad([[1] * len(r) for r in rows], 0, left=left)
    return ids.to(ctx.device), mask.to(ctx.device)


def _per_item(items: Sequence[Item], flat: Sequence[Any]) -> list[list[Any]]:
    out, at = [], 0
    for item in items:
        out.append(list(flat[at : at + len(item.choices)]))
        at += len(item.choices)
    return out

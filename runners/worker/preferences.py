"""Scores of preference tasks on a live model: pairs by log-probability, and how far it has moved from its base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from harness.objectives.base import token_labels
from harness.objectives.losses import divergence, labelled_logits, top_log_probs
from runners.worker.batches import to_device
from runners.worker.context import BaseAnswers
from runners.worker.encoding import Collator, by_length, encode_training
from runners.worker.likelihood import answer_logps
from tasks import preference_scoring
from tasks.scored import Scored
from tasks.task import Item, Task

if TYPE_CHECKING:
    from runners.worker.context import Context

T = TypeVar("T")

KL_ITEMS = 100
"""Test items whose tokens the divergence from the base is taken over."""
KL_TOP = 64
"""Tokens of each position that are separate; all others count as one."""


def remember_base(ctx: Context) -> None:
    """Ask the base about the test items: rewards and the divergence are relative to it."""
    if ctx.task.definition.kind != "preference" or ctx.random_weights:
        return
    items = ctx.splits.test
    with torch.inference_mode():
        found = answer_logps(ctx, _asked(items)).logps
        ctx.base_said = BaseAnswers(top=dict(_top(ctx, items[:KL_ITEMS])))
    at = 0
    for item in items:
        n = 2 if item.rejected else 1
        ctx.base_said.log_probs[item.id] = tuple(found[at : at + n])
        at += n


def score_items(ctx: Context, task: Task, items: Sequence[Item]) -> list[Scored]:
    """The items, scored with the model as it is now; rewards are relative to what the base said."""
    answers = answer_logps(ctx, _asked(items))
    known = ctx.base_said.log_probs if task is ctx.task else {}
    said = [known.get(item.id) for item in items]
    if any(item.good is not None for item in items):
        judged = [one[0] for one in said if one is not None]
        reference = judged if len(judged) == len(items) else None
        return preference_scoring.score_judged(items, answers.logps, answers.lengths, answers.cut, reference)
    pairs = [one for one in said if one is not None]
    return preference_scoring.score_pairs(
        items,
        _twos(answers.logps),
        _twos(answers.lengths),
        [a or b for a, b in _twos(answers.cut)],
        [(a, b) for a, b in pairs] if len(pairs) == len(items) else None,
    )


def record_divergence(ctx: Context, *, prefix: str = "") -> None:
    """Record ``reference_kl`` of the model as it is: 0 for the base itself."""
    if ctx.task.definition.kind != "preference":
        return
    source = f"on the chosen answers of {KL_ITEMS} test items at most; {KL_TOP} tokens and the rest"
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for position, logits in _logits(ctx, ctx.splits.test[:KL_ITEMS]):
            indices, log_probs = (t.to(logits.device) for t in ctx.base_said.top[position])
            found = divergence(logits, indices, log_probs, direction="reverse")
            total += float(found.double().sum())
            tokens += len(found)
    ctx.record(f"{prefix}reference_kl", total / tokens, source=source, n=tokens)


def choice_nll(ctx: Context, items: Sequence[Item]) -> float:
    """Mean negative log-probability of the chosen answer among the two, in nat; what tuning selects by."""
    return preference_scoring.choice_nll(score_items(ctx, ctx.task, items))


def _asked(items: Sequence[Item]) -> list[tuple[str, str]]:
    return [(i.prompt, text) for i in items for text in ((i.answer, i.rejected) if i.rejected else (i.answer,))]


def _twos(flat: Sequence[T]) -> list[tuple[T, T]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _logits(ctx: Context, items: Sequence[Item]) -> Iterator[tuple[int, torch.Tensor]]:
    """Position of each item and the logits that predict its answer's tokens, [tokens, V]."""
    rows, _ = encode_training(ctx.tokenizer, items, ctx.kind, ctx.training.max_length)
    collate = Collator(ctx.tokenizer.pad_token_id)
    for positions in by_length([len(row["input_ids"]) for row in rows], ctx.evaluation.batch_size):
        batch = to_device(ctx, collate([rows[i] for i in positions]))
        labels = batch.pop("labels")
        logits, _ = labelled_logits(ctx.model(**batch).logits, labels)
        sizes = [sum(label != -100 for label in token_labels(rows[i])[1:]) for i in positions]
        yield from zip(positions, torch.split(logits, sizes), strict=True)


def _top(ctx: Context, items: Sequence[Item]) -> list[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    found = []
    for position, logits in _logits(ctx, items):
        indices, log_probs = top_log_probs(logits, KL_TOP)
        found.append((position, (indices.cpu(), log_probs.cpu())))
    return found

"""Completions of prompts: transformers' ``generate``, batched by length, stopped as soon as every row has an end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from harness.spec_axes import Decoding
from runners.worker.context import Context, context_length, told
from runners.worker.encoding import by_length, pad

STOP_CHECK_EVERY = 8
"""Tokens between two checks for a stop text: text beyond one is cut off, so a late check changes nothing."""

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Completion:
    """Completion of a prompt.

    Attributes:
        text: without special tokens, before the first stop text.
        tokens: those written before the end-of-sequence token, or all; the stop text and what follows included.
        cut: True if the beginning of the prompt was cut off to make room.
    """

    text: str
    tokens: int
    cut: bool


class StopTexts(StoppingCriteria):  # type: ignore[misc]  # transformers has no types here
    """Ends rows whose new text holds one of the stop texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], prompt_width: int) -> None:
        self.tokenizer, self.stops, self.width = tokenizer, tuple(stops), prompt_width
        self.ended: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, _scores: object, **_more: object) -> torch.Tensor:
        """Finished rows, a boolean per row."""
        if self.ended is None:
            self.ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if (input_ids.shape[1] - self.width) % STOP_CHECK_EVERY == 0:
            for row in (~self.ended).nonzero().flatten().tolist():
                text = self.tokenizer.decode(input_ids[row, self.width :], skip_special_tokens=True)
                self.ended[row] = any(stop in text for stop in self.stops)
        return self.ended


def complete(
    ctx: Context,
    prompts: Sequence[Ids],
    *,
    new_tokens: int,
    stops: Sequence[str] = (),
    decoding: Decoding,
    keep: Collection[int] = (),
) -> list[Completion]:
    """One completion per prompt, in the order given. A prompt too long loses its beginning.

    Args:
        new_tokens: at most so many, fewer than the model has positions.
        stops: texts that end a completion; none of them is part of it.
        keep: special tokens that are part of the text (:func:`runners.worker.answerable.special_ids`).
    """
    limit = context_length(ctx) - new_tokens
    settings: dict[str, Any] = {
        "max_new_tokens": new_tokens,
        "do_sample": decoding.temperature > 0,
        "pad_token_id": ctx.tokenizer.pad_token_id,
        "eos_token_id": ctx.tokenizer.eos_token_id,
    }
    if decoding.temperature > 0:
        settings |= {"temperature": decoding.temperature, "top_k": decoding.top_k or 0, "top_p": decoding.top_p or 1.0}
    kept = [prompt[-limit:] for prompt in prompts]
    out: list[Completion | None] = [None] * len(prompts)
    for batch in told(ctx, by_length([len(p) for p in kept], ctx.evaluation.batch_size), "generating"):
        ids = pad([kept[i] for i in batch], ctx.tokenizer.pad_token_id, left=True).to(ctx.device)
        mask = pad([[1] * len(kept[i]) for i in batch], 0, left=True).to(ctx.device)
        ends = StoppingCriteriaList([StopTexts(ctx.tokenizer, stops, ids.shape[1])] if stops else [])
        produced = ctx.model.generate(input_ids=ids, attention_mask=mask, stopping_criteria=ends, **settings)
        for i, row in zip(batch, produced[:, ids.shape[1] :].tolist(), strict=True):
            text = as_text(ctx.tokenizer, row, keep)
            before = before_any(text, stops)
            tokens = written(row, ctx.tokenizer, padded=len(before) < len(text))
            out[i] = Completion(before, tokens, len(prompts[i]) > limit)
    return [found for found in out if found is not None]


def as_text(tokenizer: PreTrainedTokenizerBase, ids: Ids, keep: Collection[int] = ()) -> str:
    """The text up to the end-of-sequence token, without special tokens but for those to ``keep``."""
    if not keep:
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    dropped = set(tokenizer.all_special_ids) - set(keep)
    return str(tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=False))


def before_any(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of ``stops``."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def written(row: Ids, tokenizer: PreTrainedTokenizerBase, *, padded: bool) -> int:
    """Tokens before the end of the sequence; where a stop text ended the row, without the padding behind it."""
    if tokenizer.eos_token_id in row:
        return row.index(tokenizer.eos_token_id)
    count = len(row)
    while padded and count and row[count - 1] == tokenizer.pad_token_id:
        count -= 1
    return count

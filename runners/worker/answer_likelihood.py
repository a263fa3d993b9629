"""Log-probability of whole answers under the model as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runners.worker import likelihood
from runners.worker.context import Context, context_length
from runners.worker.encoding import encode_answer, encode_prompt


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
        tail = encode_answer(ctx.tokenizer, answer)
        tail = tail if end else tail[:-1]
        parts, shortened = likelihood.windows(encode_prompt(ctx.tokenizer, prompt), tail, limit)
        flat += parts
        owner += [i] * len(parts)
        lengths.append(len(tail))
        cut.append(shortened)
    logps = [0.0] * len(pairs)
    for i, found in zip(owner, likelihood.log_probs(ctx, flat), strict=True):
        logps[i] += found.total
    return Answers(logps, lengths, cut)

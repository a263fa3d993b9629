"""The model's side of scoring: generations, log-probabilities and logits, batched by length.

What counts as right is decided in :mod:`tasks.scoring` from what this module produces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.errors import Unsupported, UserError
from runners.worker import answerable, likelihood, preferences, sandbox
from runners.worker.completion import Completion, complete
from runners.worker.context import Context, context_length, told
from runners.worker.encoding import by_length, encode_prompt, encode_training, pad
from runners.worker.likelihood import answer_logps
from tasks import scoring
from tasks.task import Item, Task

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedModel


def score(ctx: Context, task: Task, items: Sequence[Item]) -> list[scoring.Scored]:
    """Score ``items`` with the model as it is now, in the order given.

    If the method shows worked examples, they precede the prompts of the cell's own task.
    """
    kind = task.definition.kind
    items = with_examples(ctx, task, items)
    with torch.inference_mode():
        if kind == "sequence-classification":
            logits, cut = classification_logits(ctx, items)
            return scoring.score_classification(task, items, logits, cut=cut)
        if kind == "preference":
            return preferences.score_items(ctx, task, items)
        if kind == "generation":
            return _score_generation(ctx, task, items)
        if kind == "language-modelling":
            texts = answer_logps(ctx, [("", i.answer) for i in items], end=False)
            return scoring.score_texts(items, texts.logps, lengths=texts.lengths, cut=texts.cut)
        flat = [(item.before(k), choice) for item in items for k, choice in enumerate(item.choices)]
        found = answer_logps(ctx, flat, end=False)
        return scoring.score_choices(
            task,
            items,
            _per_item(items, found.logps),
            lengths=_per_item(items, found.lengths),
            cut=_per_item(items, found.cut),
        )


def _score_generation(ctx: Context, task: Task, items: Sequence[Item]) -> list[scoring.Scored]:
    """Likelihood of the right answers; where completions are judged, their own lengths and what they were cut by."""
    answers = answer_logps(ctx, [(i.prompt, i.answer) for i in items])
    if not task.definition.wants_completions:
        return scoring.score_generation(
            task, items, None, logp_answers=answers.logps, lengths=answers.lengths, cut=answers.cut
        )
    times = samples_of(ctx, task)
    asked = [item for item in items for _ in range(times)]
    given = generate(ctx, task, asked)
    texts = [c.text for c in given]
    return scoring.score_generation(
        task,
        asked,
        texts,
        logp_answers=[logp for logp in answers.logps for _ in range(times)],
        lengths=[c.tokens for c in given],
        cut=[c.cut for c in given],
        passed=sandbox.judge(ctx, asked, texts) if task.definition.program else None,
    )


def samples_of(ctx: Context, task: Task) -> int:
    """Completions per item.

    Raises:
        UserError: several are asked for of a task that is judged by one.
    """
    samples = ctx.evaluation.decoding.samples
    if samples > 1 and not task.definition.program:
        raise UserError(
            f"decoding asks for {samples} samples an item, and the task {task.definition.name!r} is judged by one",
            fix="Several samples are for tasks with a 'program' (pass@k).",
        )
    return samples


def mean_nll(ctx: Context, task: Task, items: Sequence[Item]) -> tuple[float, int]:
    """Mean negative log-likelihood of the right answers (nat), and the number of items. Generates nothing.

    Of a preference task: of the chosen answer where only the two of the pair are possible.
    """
    items = with_examples(ctx, task, items)
    with torch.inference_mode():
        if task.definition.kind == "sequence-classification":
            logits, _ = classification_logits(ctx, items)
            logp = torch.from_numpy(logits).log_softmax(-1)
            values = [-float(logp[i, item.label]) for i, item in enumerate(items)]
        elif task.definition.kind == "preference":
            return preferences.choice_nll(ctx, items), len(items)
        else:
            values = [-v for v in answer_logps(ctx, [(i.prompt, i.answer) for i in items]).logps]
    return float(np.mean(values)), len(values)


def classification_logits(ctx: Context, items: Sequence[Item]) -> tuple[np.ndarray, list[bool]]:
    """Logits [items, classes] (float32) and which inputs were longer than the context and were cut."""
    limit = context_length(ctx)
    rows, _ = encode_training(ctx.tokenizer, items, ctx.kind, limit)
    lengths = [len(r["input_ids"]) for r in rows]
    out: list[np.ndarray | None] = [None] * len(items)
    for batch in told(ctx, by_length(lengths, ctx.evaluation.batch_size)):
        ids = pad([rows[i]["input_ids"] for i in batch], ctx.tokenizer.pad_token_id).to(ctx.device)
        # the mask comes from lengths: pad may equal EOS
        mask = pad([[1] * lengths[i] for i in batch], 0).to(ctx.device)
        logits = ctx.model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()
        for position, row in zip(batch, logits, strict=True):
            out[position] = row
    full = [len(ctx.tokenizer(i.prompt)["input_ids"]) > limit for i in items]
    return np.stack([row for row in out if row is not None]), full


def with_examples(ctx: Context, task: Task, items: Sequence[Item]) -> Sequence[Item]:
    """The items as the model is asked them: with worked examples in front where the method shows some.

    Only the cell's own task has them: other skills are asked as they always are.
    """
    if ctx.examples is None or task is not ctx.task:
        return items
    completion = new_tokens(ctx, task) if task.definition.wants_completions else 0
    return ctx.examples.before(items, tokenizer=ctx.tokenizer, positions=context_length(ctx), completion=completion)


def stops_of(ctx: Context, task: Task) -> tuple[str, ...]:
    """Stop texts of a completion: after worked examples also the separator between two of them."""
    shown = ctx.examples if task is ctx.task else None
    return (*task.definition.stop, *((shown.separator,) if shown is not None else ()))


def generate(ctx: Context, task: Task, items: Sequence[Item]) -> list[Completion]:
    """One completion per item, decoded without special tokens and cut before the task's first stop."""
    prompts = [encode_prompt(ctx.tokenizer, i.prompt) for i in items]
    torch.manual_seed(ctx.seed)
    return complete(
        ctx,
        prompts,
        new_tokens=new_tokens(ctx, task),
        stops=stops_of(ctx, task),
        decoding=ctx.evaluation.decoding,
        keep=answerable.special_ids(ctx.tokenizer, [i.answer for i in items]),
    )


def new_tokens(ctx: Context, task: Task) -> int:
    """Tokens of a completion at most.

    Raises:
        Unsupported: they leave no room for a prompt in the model's context.
    """
    wanted = ctx.evaluation.decoding.max_new_tokens or task.definition.max_new_tokens
    room = context_length(ctx)
    if wanted >= room:
        raise Unsupported(
            f"the task {task.definition.name!r} generates up to {wanted} tokens and the model has {room} positions, so "
            "that no prompt fits; set decoding: {max_new_tokens: ...} lower"
        )
    return wanted


def probe_logits(ctx: Context, model: PreTrainedModel) -> torch.Tensor:
    """Logits of the fixed probe batch (float32, on the CPU): what the reload and merge checks compare."""
    model.eval()
    inputs = {k: v for k, v in ctx.probe_batch.items() if k != "labels"}
    with torch.inference_mode():
        logits: torch.Tensor = model(**inputs).logits.float().cpu()
    if ctx.kind == "causal-lm":
        logits = likelihood.token_logits(logits, inputs["input_ids"].shape[1])
        logits = logits * inputs["attention_mask"].cpu()[..., None]  # padding positions mean nothing
    return logits


def _per_item(items: Sequence[Item], flat: Sequence[object]) -> list[list[Any]]:
    out, at = [], 0
    for item in items:
        out.append(list(flat[at : at + len(item.choices)]))
        at += len(item.choices)
    return out

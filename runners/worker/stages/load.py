"""Stage ``load``: find the model's files; read the tokenizer and the task's items; tokenize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.models import gguf_files, nano, skeleton
from harness.objectives.base import TokenSequence
from runners.worker import answerable, chat, lm_eval_suite, trainrows
from runners.worker.batches import to_device
from runners.worker.context import Context, Splits
from runners.worker.encoding import Collator, encode_training
from runners.worker.loading import hub_revision
from tasks.data import contamination, load_split, task_digest, unpinned
from tasks.task import SPLITS, Item, SplitName, load_task

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedTokenizerBase

PROBE_ITEMS = 8
"""Test items whose logits the reload and merge checks compare."""


def run(ctx: Context) -> None:
    """Fill ``path``, ``tokenizer``, ``splits``, ``train_rows`` and ``probe_batch``."""
    if not ctx.trial:
        lm_eval_suite.prepare(ctx)
    ctx.path = model_path(ctx)
    ctx.tokenizer = tokenizer(ctx)
    ctx.method.setting = replace(ctx.method.setting, tokenizer=ctx.tokenizer)
    ctx.quantizer.tokenizer = ctx.tokenizer
    use = ctx.job.cell["task"]
    wanted: list[SplitName] = (
        ["test"] if use.get("test_only") or ctx.scores_only else [s for s in SPLITS if not (ctx.trial and s == "test")]
    )
    read = {
        split: load_split(ctx.task, split, data_root=data_root(ctx), max_items=use[f"{split}_items"], seed=ctx.seed)
        if split in wanted and split in ctx.task.definition.splits
        else []
        for split in SPLITS
    }
    ctx.splits = Splits(**read)
    probed = (ctx.splits.test or ctx.splits.validation)[:PROBE_ITEMS]
    probe_rows, _ = encode_training(ctx.tokenizer, probed, ctx.kind, ctx.training.max_length)
    ctx.probe_batch = to_device(ctx, Collator(ctx.tokenizer.pad_token_id)(probe_rows))
    trainrows.encode_answers(ctx)
    if (asking := chat.of(ctx.tokenizer)) is not None and probed:
        ctx.facts["chat"] = asking.facts(probed[0].prompt)
    check_rows(ctx)
    answerable.check(ctx)
    if loose := unpinned(ctx.task, data_root=data_root(ctx), splits=wanted):
        ctx.facts["unpinned"] = loose
    if "train" in wanted:  # else nothing was compared, and a count of 0 would say that it was
        double = contamination(ctx.splits.train, ctx.splits.test)
        ctx.facts["contamination"] = {"test_items_in_train": len(double), "items": double[:20]}


def check_rows(ctx: Context) -> None:
    """A batch needs as many rows as it is large: the rest of an epoch that fills none is left out.

    Raises:
        UserError: the training split is smaller.
    """
    rows, size = len(ctx.train_rows), ctx.training.batch_size
    if ctx.trains and rows < size:
        raise UserError(
            f"the task {ctx.task.definition.name!r} has {rows} training rows here, and a batch needs {size}",
            fix="Lower training.batch_size, or give the task more rows (train_items).",
        )


def encoded(ctx: Context, items: Sequence[Item]) -> tuple[list[TokenSequence], int]:
    """Items with their right answers as training rows of this cell, and how many were cut."""
    return encode_training(ctx.tokenizer, items, ctx.kind, ctx.training.max_length)


def model_path(ctx: Context) -> str:
    """Argument of ``from_pretrained``; builds a built-in model that is not in the cache yet."""
    roots = [Path(w) for w in ctx.job.workspaces]

    def examples(name: str, n: int) -> list[tuple[str, str]]:
        items = load_split(load_task(name, roots), "train", data_root=data_root(ctx), max_items=n, seed=0)
        return [(item.prompt, item.answer) for item in items]

    path = nano.locate(
        ctx.job.model,
        cache=Path(ctx.job.cache),
        examples=examples,
        task_digest=lambda name: task_digest(load_task(name, roots), data_root=data_root(ctx)),
        progress=lambda step, steps: ctx.say("progress", what="pre-training the built-in model", at=step, of=steps),
        dtype=ctx.job.cell["model"]["dtype"],
        revision=ctx.job.cell["model"].get("revision"),
    )
    if (origin := gguf_files.facts_of(Path(path))) is not None:
        ctx.facts["weights_from"] = origin
    if skeleton.is_bare(path) and ctx.quantizes_before and ctx.quantizer.load_kwargs():
        # this quantizer acts while a checkpoint is read, so the random weights must be one
        return str(skeleton.with_weights(Path(path), dtype=ctx.job.cell["model"]["dtype"]))
    return path


def tokenizer(ctx: Context) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a pad token.

    Raises:
        UserError: it has neither a pad nor an end-of-sequence token.
        Unsupported: the cell asks in chat form, and the tokenizer's template does not allow it.
    """
    from transformers import AutoTokenizer

    model = ctx.job.cell["model"]
    try:
        loaded = AutoTokenizer.from_pretrained(
            ctx.path, revision=hub_revision(ctx), trust_remote_code=model["trust_remote_code"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConnectionError | TimeoutError):
            raise
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200].strip()}"
        if reason.endswith(":"):  # the first line of a list: transformers found no file of any kind
            reason = "no readable tokenizer.json, tokenizer.model or vocabulary file"
        raise UserError(
            f"the model {model['id']!r} has no tokenizer that can be read ({reason})",
            fix="Save its tokenizer beside the weights: tokenizer.save_pretrained(FOLDER).",
        ) from error
    if loaded.pad_token_id is None:
        if loaded.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {model['id']!r} has neither a pad nor an end-of-sequence token",
                fix="Add a pad token to the tokenizer and save it again.",
            )
        loaded.pad_token = loaded.eos_token
        ctx.facts["pad_token"] = "eos"
    if loaded.eos_token_id is None and ctx.kind == "causal-lm":
        raise UserError(
            f"the tokenizer of {model['id']!r} has no end-of-sequence token, and an answer ends with one",
            fix="Name it in the tokenizer (tokenizer.eos_token = ...) and save it again.",
        )
    if model.get("prompt_format") == "chat":
        chat.use(loaded, chat.Chat(loaded, model["id"], model.get("system_prompt")))
    return loaded


def data_root(ctx: Context) -> Path | None:
    """Folder with data sets that users keep themselves, None where there is none."""
    return Path(ctx.job.data_root) if ctx.job.data_root else None

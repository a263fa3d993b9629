"""Right answers that no completion can equal, found before anything is trained.

A completion is tokens, decoded. An answer whose text the tokenizer cannot write (characters that it maps to its unknown
token, say) is wrong whatever the model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import UserError
from runners.worker.completion import as_text, before_any
from runners.worker.context import Context
from runners.worker.encoding import encode_answer
from tasks.parsers import PARSERS
from tasks.task import Item, Task

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedTokenizerBase

SHOWN = 3


def special_ids(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> frozenset[int]:
    """Special tokens that the text of right answers spells, such as ``<sep>``: in a completion they are text too."""
    reserved = {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    special = set(tokenizer.all_special_ids) - reserved
    return frozenset(i for answer in answers for i in encode_answer(tokenizer, answer)[:-1] if i in special)


def check(ctx: Context) -> None:
    """Encode and decode every right answer of the tasks whose completions are judged.

    Raises:
        UserError: the decoded answer is another one; names the items.
    """
    if ctx.random_weights:
        return
    if ctx.kind == "causal-lm":
        check_items(ctx.tokenizer, ctx.task, ctx.splits.test or ctx.splits.validation)


def check_items(tokenizer: PreTrainedTokenizerBase, task: Task, items: Sequence[Item]) -> None:
    """Raise a UserError for items of ``task`` whose right answers are lost between text and tokens."""
    definition = task.definition
    if definition.kind != "generation" or not definition.judges_completions:
        return
    parse = PARSERS.get(definition.parser)
    keep = special_ids(tokenizer, [item.answer for item in items])
    lost = []
    for item in items:
        text = as_text(tokenizer, encode_answer(tokenizer, item.answer), keep)
        if parse(before_any(text, definition.stop)) != parse(before_any(item.answer, definition.stop)):
            lost.append((item, text))
    if lost:
        item, text = lost[0]
        names = ", ".join(one.id for one, _ in lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
        raise UserError(
            f"the tokenizer cannot write the right answer of {len(lost)} of {len(items)} items ({names}): "
            f"{item.answer[-60:]!r} becomes {text[-60:]!r}",
            where=f"task {definition.name!r}",
            fix="Correct the rows, or use a model whose tokenizer knows these characters.",
        )

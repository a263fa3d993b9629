"""Items to token ids, and token ids to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch

from harness.errors import UserError
from harness.objectives.base import Example, Row, TokenSequence, token_labels
from runners.worker import chat as chats
from runners.worker.chat import Chat
from tasks.task import Item

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a position that carries no loss (PyTorch's convention)."""


def encode_training(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], kind: str, max_length: int
) -> tuple[list[TokenSequence], int]:
    """Training rows, and how many were longer than ``max_length`` tokens and were cut.

    A causal row is prompt + answer + EOS with the loss on answer and EOS alone; a row cut so far that no answer
    token is left would carry no loss, so the prompt is cut from the left instead. In a chat the earlier answers of the
    assistant carry loss as well (:mod:`runners.worker.chat`).
    """
    rows: list[TokenSequence] = []
    cut = 0
    for item in items:
        if kind == "sequence-classification":
            ids = tokenizer(item.prompt)["input_ids"]
            cut += len(ids) > max_length
            rows.append({"input_ids": _keep_ends(ids, max_length), "labels": item.label})
            continue
        head, tail = encode_pair(tokenizer, item.prompt, item.answer)
        labels = earlier_answers(tokenizer, item.prompt, head)
        over = len(head) + len(tail) - max_length
        if over > 0:
            cut += 1
            tail = tail[: max_length - 1]
            head, labels = head[-(max_length - len(tail)) :], labels[-(max_length - len(tail)) :]
        rows.append({"input_ids": head + tail, "labels": labels + tail})
    return rows, cut


def _keep_ends(ids: list[int], max_length: int) -> list[int]:
    """Cut a classifier's input but keep its last token, the separator."""
    return ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Prompt ids with the tokenizer's own special tokens, without an end-of-sequence token at the end.

    Never empty: where prompt and tokenizer give nothing there is one start token, for the answer's first token must
    be predicted from something.
    """
    if (chat := asks(tokenizer, prompt)) is not None:
        return chat.head(prompt)
    ids: list[int] = tokenizer(prompt)["input_ids"]
    ids = ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    return ids or [start_token(tokenizer)]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, *, end: bool = True
) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of the answer with the end of sequence (without it where ``end`` is False)."""
    if (chat := asks(tokenizer, prompt)) is not None:
        return chat.pair(prompt, answer, end=end)
    tail = encode_answer(tokenizer, answer)
    return encode_prompt(tokenizer, prompt), tail if end else tail[:-1]


def earlier_answers(tokenizer: PreTrainedTokenizerBase, prompt: str, head: list[int]) -> list[int]:
    """Labels of the prompt's ids: none carries loss, except in a chat the assistant's own earlier turns."""
    chat = asks(tokenizer, prompt)
    marks = chat.earlier_answers(prompt, head) if chat is not None else [False] * len(head)
    return [token if marked else IGNORED for token, marked in zip(head, marks, strict=True)]


def asks(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Chat | None:
    """The chat in whose form ``prompt`` is asked; None for plain text, and where there is no question."""
    return chats.of(tokenizer) if prompt else None


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token before a text without a prefix: BOS, or the end of the preceding sequence.

    Raises:
        UserError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(
        "a prompt is empty, and the tokenizer has neither a beginning- nor an end-of-sequence token",
        fix="Give the task a prompt, or the tokenizer one of the two.",
    )


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Answer ids followed by the end of sequence."""
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def pad(rows: Sequence[list[int]], value: int, *, left: bool = False) -> torch.Tensor:
    """Rows of ids as one [rows, longest] tensor."""
    width = max(map(len, rows))
    filled = [[value] * (width - len(r)) + r if left else r + [value] * (width - len(r)) for r in rows]
    return torch.tensor(filled)


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], items: Sequence[Item], kind: str, max_length: int
) -> tuple[list[Row], int]:
    """Rows of several sequences each, and how many sequences were cut. A classifier's rows hold the item's class."""
    if kind == "sequence-classification":
        plain, cut = encode_training(tokenizer, items, kind, max_length)
        return [{"sequences": [row], "extra": dict(e.numbers)} for row, e in zip(plain, examples, strict=True)], cut
    rows: list[Row] = []
    cut = 0
    for example in examples:
        parts = [Item("", prompt, completion) for prompt, completion in example.sequences]
        sequences, shortened = encode_training(tokenizer, parts, kind, max_length)
        cut += shortened
        rows.append({"sequences": sequences, "extra": dict(example.numbers)})
    return rows, cut


def extras_of(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Values of the rows besides their sequences: numbers as [rows], tensors joined along the labelled tokens."""
    joined: dict[str, torch.Tensor] = {}
    for name, first in rows[0].get("extra", {}).items():
        values = [row["extra"][name] for row in rows]
        several = isinstance(first, torch.Tensor)
        joined[name] = torch.cat([torch.as_tensor(v) for v in values]) if several else torch.tensor(values)
    return joined


class Collator:
    """Rows to a batch. ``tokens`` is the number of non-padding tokens, for an honest throughput.

    A row is ``{"input_ids", "labels"}``, or several of them under ``sequences`` with ``extra`` beside them: the batch
    then holds the first sequences of all rows, then the second ones, and their :func:`extras_of` under ``extra``.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Row] | Sequence[TokenSequence]) -> dict[str, object]:
        """A batch with input_ids, attention_mask, labels and tokens; and extra where the rows hold more."""
        if "sequences" in rows[0]:
            whole = cast("Sequence[Row]", rows)
            flat = [row["sequences"][i] for i in range(len(whole[0]["sequences"])) for row in whole]
            extra = extras_of(whole)
            return {**self(flat), **({"extra": extra} if extra else {})}
        plain = cast("Sequence[TokenSequence]", rows)
        ids = pad([r["input_ids"] for r in plain], self.pad_token_id)
        lengths = torch.tensor([len(r["input_ids"]) for r in plain])
        mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
        if isinstance(plain[0]["labels"], int):
            labels = torch.tensor([r["labels"] for r in plain])
        else:
            labels = pad([token_labels(r) for r in plain], IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "tokens": int(lengths.sum())}


class PackedCollator(Collator):
    """Rows that share sequences: the same rows and labels in fewer, fuller sequences.

    Each row attends to itself alone, and its positions begin at 0. The first token of a row is never a label, so that
    no row is predicted from the one before.

    Args:
        pad_token_id: fills the rest of a sequence.
        max_length: tokens of a sequence.
        mask_dtype: None for a mask of truth values, which ``sdpa`` takes; else that of the numbers added to the
            attention's scores.
    """

    def __init__(self, pad_token_id: int, max_length: int, mask_dtype: torch.dtype | None = None) -> None:
        super().__init__(pad_token_id)
        self.max_length = max_length
        self.mask_dtype = mask_dtype

    def __call__(self, rows: Sequence[Row] | Sequence[TokenSequence]) -> dict[str, object]:
        """A batch with input_ids, attention_mask [sequences, 1, width, width], position_ids, labels, tokens, rows."""
        plain = cast("Sequence[TokenSequence]", rows)
        packed = [[plain[i] for i in places] for places in fill([len(r["input_ids"]) for r in plain], self.max_length)]
        ids = pad([[t for r in members for t in r["input_ids"]] for members in packed], self.pad_token_id)
        labels = pad([[t for r in members for t in (IGNORED, *token_labels(r)[1:])] for members in packed], IGNORED)
        lengths = [[len(r["input_ids"]) for r in members] for members in packed]
        owner = pad([[n for n, size in enumerate(sizes, 1) for _ in range(size)] for sizes in lengths], 0)
        positions = pad([[at for size in sizes for at in range(size)] for sizes in lengths], 0)
        earlier = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        seen = (owner[:, :, None] == owner[:, None, :]) & earlier
        mask = seen[:, None]
        if self.mask_dtype is not None:
            mask = torch.zeros(mask.shape, dtype=self.mask_dtype).masked_fill(~mask, torch.finfo(self.mask_dtype).min)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "labels": labels,
            "tokens": sum(map(sum, lengths)),
            "rows": len(rows),
        }


def fill(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Positions of the rows in each sequence of at most ``room`` tokens: the longest first, each where it first fits.

    A row longer than ``room`` has a sequence to itself.
    """
    sequences: list[tuple[int, list[int]]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for at, (used, members) in enumerate(sequences):
            if used + lengths[i] <= room:
                sequences[at] = (used + lengths[i], [*members, i])
                break
        else:
            sequences.append((lengths[i], [i]))
    return [members for _, members in sequences]


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of positions, longest first: little padding, and an out-of-memory shows at the first batch."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

"""Formats of a multiple-choice question: how the same row is asked, and what is scored. Pure: nothing here scores.

``finetune`` is the prompt of the paper that a task follows. It is often learned only by training: a base model that
never saw it scores near chance, and every gain measured from there is too large. ``cloze`` and ``letter`` are formats
that a base model can read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness.errors import UserError
from tasks.task import FORMATS, Format, Item, RawQuestion, Task
from tasks.template import FieldError, lookup, render

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

__all__ = ["FORMATS", "asked", "formats_of", "in_format"]


def formats_of(task: Task) -> tuple[Format, ...]:
    """The formats that the task can be asked in."""
    return FORMATS if task.definition.raw is not None else ("finetune",)


def in_format(task: Task, name: Format, *, where: str = "") -> Task:
    """The task, asked in another format.

    Raises:
        UserError: the task has no such format.
    """
    if name not in formats_of(task):
        has = "is no multiple-choice task" if task.definition.kind != "multiple-choice" else "has no 'raw' question"
        raise UserError(
            f"the task {task.definition.name!r} {has}, so it cannot be asked as {name!r}",
            where=where,
            fix="Leave 'format' out, or say in the task's file under 'raw' where question and options are.",
        )
    return replace(task, format=name)


def asked(task: Task, item: Item, row: Mapping[str, object], where: str) -> Item:
    """The item in the task's format.

    Cloze and letter prompts are those of lm-evaluation-harness: ``cloze`` scores the text of every option after the
    question alone; ``letter`` lists the options behind letters and scores the letters.

    Args:
        item: as the task's own prompt asks it, which says how many options there are and which is right.
        row: the row it was made from.
        where: what people call the row.

    Raises:
        UserError: question and options are not where the task's ``raw`` says.
    """
    raw = task.definition.raw
    if task.format == "finetune" or raw is None:
        return item
    try:
        question, options = _read(raw, row, len(item.choices))
    except FieldError as error:
        raise UserError(f"{error}; the format {task.format!r} needs it", where=where) from None
    if task.format == "letter":
        letters = LETTERS[: len(options)]
        listed = "".join(f"\n{letter}. {option}" for letter, option in zip(letters, options, strict=True))
        choices = tuple(f" {letter}" for letter in letters)
        return replace(item, prompt=f"{question}{listed}\nAnswer:", answer=choices[item.label], choices=choices)
    if raw.blank:
        return _filled(item, raw.blank, question, options, where)
    prompt = render(raw.cloze, {**row, "question": question})
    choices = tuple(f" {option}" for option in options)
    return replace(item, prompt=prompt, answer=choices[item.label], choices=choices)


def _filled(item: Item, blank: str, question: str, options: tuple[str, ...], where: str) -> Item:
    """Every option put into the blank: what follows the blank is scored after each of them (Trinh and Le 2018,
    arXiv:1806.02847, partial evaluation)."""
    before, mark, after = question.partition(blank)
    if not mark or not after.strip():
        raise UserError(f"the question has no {blank!r} with a text behind it", where=where)
    contexts = tuple(before + option for option in options)
    rest = f" {after.strip()}"
    return replace(item, prompt=contexts[item.label], answer=rest, choices=(rest,) * len(options), contexts=contexts)


def _read(raw: RawQuestion, row: Mapping[str, object], n: int) -> tuple[str, tuple[str, ...]]:
    """Question and the texts of its ``n`` options.

    Raises:
        FieldError: they are not where ``raw`` says, or not as many.
    """
    text = render(raw.question, row)
    start = text.find(raw.after)
    if start < 0:
        raise FieldError(f"the question has no {raw.after!r} in front")
    end = text.rfind(raw.before) if raw.before else len(text)
    if end < 0:
        raise FieldError(f"nothing says {raw.before!r} behind the question and its options")
    text = text[start + len(raw.after) : end]
    if raw.marker:
        text, options = _listed(text, raw.marker, n)
    elif isinstance(raw.options, str):
        found = lookup(raw.options, row)
        if not isinstance(found, list | tuple):
            raise FieldError(f"column {raw.options!r} holds no list of options")
        options = tuple(str(option).strip() for option in found)
    else:
        options = tuple(render(option, row).strip() for option in raw.options)
    if len(options) != n or not all(options):
        raise FieldError(f"{n} options are named and {len([o for o in options if o])} have a text")
    if not text.strip():
        raise FieldError("the question is empty")
    return text.strip(), options


def _listed(text: str, marker: str, n: int) -> tuple[str, tuple[str, ...]]:
    """The text before the first option, and the options, which follow ``marker`` with their numbers."""
    options: list[str] = []
    upto = len(text)
    for number in range(n, 0, -1):
        mark = marker.replace("{n}", str(number))
        start = text.rfind(mark, 0, upto)
        if start < 0:
            raise FieldError(f"{n} options are named and there is no {mark.strip()!r}")
        options.insert(0, text[start + len(mark) : upto].strip())
        upto = start
    one_more = marker.replace("{n}", str(n + 1))
    if one_more in text:
        raise FieldError(f"{n} options are named and there is {one_more.strip()!r}")
    return text[:upto], tuple(options)

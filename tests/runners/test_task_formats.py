"""The base in every format of its task, with an oracle that can read only one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from runners.worker import prompt_variants
from runners.worker.context import Context, Splits
from runners.worker.scoring import mean_nll, score
from tasks.data import load_split
from tasks.formats import in_format
from tasks.task import Item, Task, load_task
from tests.runners.context import context
from tests.runners.oracle import Oracle
from tests.tasks.conftest import data_root

__all__ = ["data_root"]  # a fixture

ITEMS = 12


def items(task: Task, data_root: Path) -> list[Item]:
    return load_split(task, "test", data_root=data_root, max_items=ITEMS, seed=0)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def cell(task: Task, data_root: Path, tokenizer: Any, said: dict[str, str], **use: Any) -> Context:
    script = {
        tuple(tokenizer(prompt)["input_ids"]): tokenizer(answer, add_special_tokens=False)["input_ids"]
        for prompt, answer in said.items()
    }
    ctx = context(Oracle(tokenizer, script, positions=4096), tokenizer, batch_size=8)
    ctx.task = task
    ctx.splits = Splits([], [], items(task, data_root))
    ctx.job = SimpleNamespace(  # type: ignore[assignment]
        data_root=str(data_root), cell={"model": {}, "task": {"test_items": ITEMS, **use}}
    )
    ctx.method = SimpleNamespace(declaration=SimpleNamespace(trains=False, combines=False))  # type: ignore[assignment]
    return ctx


def test_a_base_that_reads_letters_only_is_best_in_letters(data_root: Path, tokenizer: Any) -> None:
    task = load_task("openbookqa", [])
    said = {item.prompt: item.answer for item in items(in_format(task, "letter"), data_root)}
    ctx = cell(task, data_root, tokenizer, said, format="finetune")
    prompt_variants.in_every_format(ctx, score(ctx, task, ctx.splits.test))
    assert ctx.metrics["letter_accuracy"].value == 1.0
    assert ctx.metrics["best_format_accuracy"].value == 1.0
    assert ctx.metrics["best_format_accuracy"].details["best"].startswith("letter_accuracy")
    assert (ctx.metrics["finetune_accuracy"].value or 0.0) < 1.0
    assert {row["arm"] for row in ctx.samples} == {"format-cloze", "format-letter"}
    assert {row["item"] for row in ctx.samples} == {item.id for item in ctx.splits.test}


@pytest.mark.parametrize(("trains", "use"), [(True, {"format": "cloze"}), (False, {})])
def test_only_a_base_of_a_named_format_is_asked_again(
    data_root: Path, tokenizer: Any, trains: bool, use: dict[str, str]
) -> None:
    ctx = cell(load_task("openbookqa", []), data_root, tokenizer, {"x": "y"}, **use)
    ctx.method.declaration.trains = trains  # type: ignore[misc]
    prompt_variants.in_every_format(ctx, [])
    assert ctx.metrics == {}


def test_an_option_in_a_blank_is_scored_by_what_follows(data_root: Path, tokenizer: Any) -> None:
    task = in_format(load_task("winogrande", []), "cloze")
    asked = items(task, data_root)
    right = {item.contexts[item.label]: item.answer for item in asked}
    ctx = cell(task, data_root, tokenizer, right)
    assert all(s.correct for s in score(ctx, task, asked))
    swapped = [replace(i, label=1 - i.label) for i in asked]
    assert not any(s.correct for s in score(ctx, task, swapped))
    assert (
        mean_nll(ctx, task, asked)[0]
        < mean_nll(ctx, task, [replace(i, prompt=i.contexts[1 - i.label]) for i in asked])[0]
    )

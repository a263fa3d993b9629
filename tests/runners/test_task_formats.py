"""The base in every format of its task, with an oracle that can read only one of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from harness.spec import Evaluation
from runners.worker import prompt_variants
from runners.worker.context import Context, Splits
from runners.worker.main import skills
from runners.worker.scoring import mean_nll, score
from runners.worker.stages import retain
from tasks.data import load_split
from tasks.formats import in_format
from tasks.task import Item, Task, load_task
from tests.runners.conftest import Bench
from tests.runners.context import Oracle, context
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


def test_a_kept_skill_is_asked_in_the_format_of_the_sweep(
    data_root: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retain, "SKILL_ITEMS", ITEMS)
    said = {item.prompt: item.answer for item in items(in_format(load_task("openbookqa", []), "letter"), data_root)}
    found = {}
    for use in ("openbookqa", {"name": "openbookqa", "format": "letter"}):
        evaluation = Evaluation.model_validate({"retain": [use]})
        assert evaluation.model_dump(mode="json")["retain"] == [use]  # what a key holds; by name alone as in older keys
        ctx = cell(load_task("trec-text", []), data_root, tokenizer, said)
        ctx.retain = skills(ctx.task, evaluation, [])
        retain.score_skills(ctx, arm="base", metric="base_retained_accuracy")
        found[ctx.retain[0].format] = ctx.metrics["base_retained_accuracy"].value
        assert ctx.metrics["base_retained_accuracy"].n == len(ctx.samples)
    assert found["letter"] == 1.0 > found["finetune"]


def test_a_classifier_is_asked_no_skill_answered_in_words(data_root: Path, tokenizer: Any) -> None:
    evaluation = Evaluation.model_validate({"retain": ["openbookqa"]})
    ctx = cell(load_task("trec-text", []), data_root, tokenizer, {})
    ctx.kind, ctx.evaluation = "sequence-classification", evaluation
    ctx.retain = skills(load_task("trec", []), evaluation, [])
    retain.score_skills(ctx, arm="base", metric="base_retained_accuracy")
    found = ctx.metrics["base_retained_accuracy"]
    assert found.value is None
    assert "a sequence-classification model cannot be asked openbookqa" in found.source + str(found.details)


@pytest.mark.parametrize(
    ("retained", "said"),
    [
        ([{"name": "sst2", "format": "cloze"}], "the task 'sst2' is no multiple-choice task"),
        (["arc-easy", {"name": "arc-easy", "format": "cloze"}], "the task 'arc-easy' is named twice"),
    ],
)
def test_a_skill_that_cannot_be_asked_so_is_refused_by_the_plan(bench: Bench, retained: list[Any], said: str) -> None:
    path = bench.write(methods=["none"], evaluation={"retain": retained})
    done = bench("plan", str(path))
    assert done.returncode == 2
    assert said in done.stderr


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


TEXTS = ["the cat sat on the mat", "a quick brown fox", "held out from everything"]
TASK = """
name: prose
version: 1
summary: Three lines.
kind: language-modelling
licence: none
source: {files: {train: prose.jsonl, test: prose.jsonl}}
splits:
  train: {from: train}
  test: {from: test}
answer: "{text}"
"""


def with_texts(bench: Bench) -> None:
    folder = bench.root / "tasks"
    folder.mkdir()
    (folder / "prose.yaml").write_text(TASK)
    (folder / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))


@pytest.mark.slow
def test_the_same_texts_are_scored_before_and_after(bench: Bench) -> None:
    with_texts(bench)
    path = bench.write(
        methods=["none", {"name": "full", "learning_rate": 1e-2}],
        training={"steps": 10, "batch_size": 4, "learning_rate": 1e-2, "max_length": 32},
        evaluation={"batch_size": 8, "held_out": ["prose"]},
    )
    done = bench("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    records = {r["cell"]["method"]["name"]: r for r in bench.records()}
    for record in records.values():
        samples = pq.read_table(
            bench.root / "results" / "samples" / f"{record['samples']['digest']}.parquet"
        ).to_pylist()
        for arm, name in (("base", "base_held_out_bits_per_byte"), ("retained", "held_out_bits_per_byte")):
            rows = [row for row in samples if row["arm"] == arm and row["task"] == "prose"]
            assert sorted(row["answer"] for row in rows) == sorted(TEXTS)
            nats = -sum(row["logp_answer"] for row in rows)
            of = sum(len(text.encode()) for text in TEXTS)
            assert record["metrics"][name]["value"] == pytest.approx(nats / of / 0.6931471805599453)
            assert record["metrics"][name]["n"] == 3

    def change(method: str) -> float:
        found = records[method]["metrics"]
        return float(found["held_out_bits_per_byte"]["value"] - found["base_held_out_bits_per_byte"]["value"])

    assert change("none") == pytest.approx(0, abs=1e-6)
    assert abs(change("full")) > 1e-3
    assert records["none"]["cell"]["held_out"].keys() == {"prose"}


@pytest.mark.slow
def test_a_task_of_texts_is_a_task_like_any_other(bench: Bench) -> None:
    """Nothing is right or wrong there: its items are kept without a verdict, and the cell is no error."""
    with_texts(bench)
    path = bench.write(methods=["none"], tasks=["prose"], evaluation={"batch_size": 8, "retention": False})
    done = bench("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = bench.records()
    assert record["metrics"]["bits_per_byte"]["value"] > 0
    assert record["metrics"]["accuracy"]["value"] is None
    board = bench("board", str(path))
    assert board.returncode == 0, board.stderr


def test_default_keeps_old_keys_and_questions_are_no_texts(bench: Bench) -> None:
    with_texts(bench)

    def keys(**evaluation: object) -> set[str]:
        plan = json.loads(bench("plan", str(bench.write(evaluation={"batch_size": 8, **evaluation})), "--json").stdout)
        return {cell["key"] for cell in plan["run"]}

    assert keys() == keys(held_out=[])
    assert not keys() & keys(held_out=["prose"])
    wrong = bench("plan", str(bench.write(evaluation={"held_out": ["strings-copy"]})))
    assert wrong.returncode == 2
    assert "held_out: the task 'strings-copy' is generation" in wrong.stderr

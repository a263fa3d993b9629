"""Formats of multiple-choice questions: what is asked and scored, on every row of the real data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.spec import SweepSpec
from tasks.data import load_split, task_digest
from tasks.formats import formats_of, in_format
from tasks.prompt_variants import relisted
from tasks.task import FORMATS, find_tasks, load_task
from tests.tasks.conftest import own_task, write_rows

ROWS = {  # of the original data sets: training rows (validation held out of them), test rows
    "arc-easy": (2251, 2376),
    "arc-challenge": (1119, 1172),
    "openbookqa": (4957, 500),
    "boolq": (9427, 3270),
    "piqa": (0, 1838),
    "siqa": (0, 1954),
    "winogrande": (0, 1267),
    "mmlu": (0, 14042),
    "sst2-text": (7792, 1821),
    "trec-text": (5452, 500),
}

CLOZE = {  # prompt and right answer of the first test item
    "arc-easy": (
        "Question: Which statement best explains why photosynthesis is the foundation of most food webs?\nAnswer:",
        " Sunlight is the source of energy for nearly all ecosystems.",
    ),
    "boolq": ("Question: does ethanol take more energy make that produces?\nAnswer:", " no"),
    "siqa": (
        "Q: Tracy didn't go home that evening and resisted Riley's attacks. "
        "What does Tracy need to do before this?\nA:",
        " Find somewhere to go",
    ),
    "winogrande": ("Sarah was a much better surgeon than Maria so Maria", " always got the easier cases."),
    "sst2-text": ("Review: no movement , no yuks , not much of anything .\nSentiment:", " negative"),
}

OWN = """\
name: own
version: 1
summary: Questions of somebody's own.
kind: multiple-choice
licence: internal
source: {files: {train: own.jsonl}}
splits: {train: {from: train}, test: {from: train, hold_out: 2}}
prompt: "{text} Choose."
choices: {field: text, after: "Format: "}
answer: "{answer}"
raw: {question: "{text}", after: "Q: ", marker: "Answer{n}: ", before: "Format:"}
"""


def test_every_multiple_choice_task_has_every_format() -> None:
    for name in find_tasks([]):
        task = load_task(name, [])
        assert formats_of(task) == (FORMATS if task.definition.kind == "multiple-choice" else ("finetune",))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_real_row_can_be_asked_in_every_format(name: str, data_root: Path) -> None:
    task = load_task(name, [])
    train, test = ROWS[name]
    splits = {"test": test, **({"train": train, "validation": 0} if train else {})}
    given = {s: load_split(task, s, data_root=data_root, max_items=None, seed=0) for s in splits}  # type: ignore[arg-type]
    assert len(given["test"]) == test
    assert sum(len(given[s]) for s in splits if s != "test") == train
    for split, items in given.items():
        for form in ("cloze", "letter"):
            asked = load_split(in_format(task, form), split, data_root=data_root, max_items=None, seed=0)  # type: ignore[arg-type]
            assert [i.id for i in asked] == [i.id for i in items]
            for item, own in zip(asked, items, strict=True):
                assert item.label == own.label
                assert len(item.choices) == len(own.choices)
                assert item.answer == item.choices[item.label]
                assert all(choice.startswith(" ") and choice.strip() == choice[1:] for choice in item.choices)
                assert "Answer format" not in item.prompt
                assert item.before(item.label) == item.prompt
    if name in CLOZE:
        first = load_split(in_format(task, "cloze"), "test", data_root=data_root, max_items=None, seed=0)[0]
        assert (first.prompt, first.answer) == CLOZE[name]


def test_letters_follow_the_question_with_their_options(data_root: Path) -> None:
    task = in_format(load_task("openbookqa", []), "letter")
    item = load_split(task, "test", data_root=data_root, max_items=None, seed=0)[0]
    listed = "\nA. make more phone calls\nB. quit eating lunch out\nC. buy less with monopoly money\nD. have lunch with"
    assert item.prompt.endswith(f"{listed} friends\nAnswer:")
    assert item.choices == (" A", " B", " C", " D")
    assert item.answer == " B"
    moved = relisted(task, item, (1, 0, 2, 3))
    assert "\nA. quit eating lunch out\nB. make more phone calls\n" in moved.prompt
    assert moved.answer == " A"


def test_a_format_leaves_the_digest_of_the_task(data_root: Path) -> None:
    """Records made before there were formats stay current: their items are the same."""
    task = load_task("arc-easy", [])
    without = task.definition.model_copy(update={"raw": None})
    assert task_digest(task, data_root=data_root) == task_digest(type(task)(without, task.path), data_root=data_root)


def test_an_unused_format_leaves_the_sweep_as_it_was() -> None:
    use = SweepSpec.model_validate(
        {"name": "x", "models": ["builtin:nano"], "methods": ["none"], "tasks": ["arc-easy"], "training": {"steps": 1}}
    ).tasks[0]
    assert "format" not in use.model_dump(mode="json")


def rows(options: str, named: str) -> list[dict[str, str]]:
    return [{"text": f"Q: why {n}?\n\n{options}\n\nFormat: {named}", "answer": "answer1"} for n in range(6)]


@pytest.mark.parametrize(
    ("options", "named", "message"),
    [
        ("Answer1: a Answer3: b", "answer1/answer2", "2 options are named and there is no 'Answer2:'"),
        ("Answer1: a Answer2: b Answer3: c", "answer1/answer2", "2 options are named and there is 'Answer3:'"),
        ("Answer1: a Answer2:  ", "answer1/answer2", "2 options are named and 1 have a text"),
    ],
)
def test_options_that_cannot_be_read_are_one_sentence(tmp_path: Path, options: str, named: str, message: str) -> None:
    write_rows(tmp_path / "tasks" / "own.jsonl", rows(options, named))
    task = own_task(tmp_path, OWN, "own")
    assert load_split(task, "test", data_root=None, max_items=None, seed=0)  # its own prompt needs no options
    with pytest.raises(UserError) as raised:
        load_split(in_format(task, "cloze"), "test", data_root=None, max_items=None, seed=0)
    assert message in str(raised.value)
    assert "own.jsonl, line" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_option_that_names_another_is_read_whole(tmp_path: Path) -> None:
    text = {"text": "Q: Answer1: or not?\n\nAnswer1: as in Answer7: b Answer2: c\n\nFormat: answer1/answer2"}
    write_rows(tmp_path / "tasks" / "own.jsonl", [{**text, "answer": "answer2"}] * 6)
    item = load_split(in_format(own_task(tmp_path, OWN, "own"), "cloze"), "test", data_root=None, max_items=1, seed=0)[
        0
    ]
    assert item.prompt == "Question: Answer1: or not?\nAnswer:"
    assert item.choices == (" as in Answer7: b", " c")
    assert json.dumps(item.answer) == '" c"'


def test_a_task_without_options_has_one_format() -> None:
    with pytest.raises(UserError, match="'gsm8k' is no multiple-choice task, so it cannot be asked as 'cloze'"):
        in_format(load_task("gsm8k", []), "cloze")

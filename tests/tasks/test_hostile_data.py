"""Faulty and hostile data files: each input gives the right value, or one sentence with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from tasks.data import load_split, task_digest
from tasks.scoring import score_choices
from tasks.task import Item, Task, TaskDefinition


def task(folder: Path, lines: list[str], **more: Any) -> Task:
    """A task whose train and test rows are these lines."""
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    definition = {
        "name": "made",
        "version": 1,
        "summary": "s",
        "licence": "own",
        "kind": "multiple-choice",
        "source": {"files": {"train": "train.jsonl", "test": "test.jsonl"}},
        "splits": {"train": {"from": "train"}, "test": {"from": "test"}},
        "prompt": "{q}",
        **more,
    }
    return Task(TaskDefinition.model_validate(definition), folder / "made.yaml")


def items(folder: Path, rows: list[Any], **more: Any) -> list[Item]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return load_split(task(folder, lines, **more), "test", data_root=None, max_items=None, seed=0)


CHOICE: dict[str, Any] = {"choices": "c", "label": "g"}
FIXED: dict[str, Any] = {"choices": ["true", "false"], "label": "g"}
GENERATION: dict[str, Any] = {"kind": "generation", "answer": "{a}"}
CLASSES: dict[str, Any] = {"kind": "sequence-classification", "label": "g"}


@pytest.mark.parametrize(
    ("rows", "more", "labels"),
    [
        pytest.param([{"q": "x", "g": True}, {"q": "x", "g": False}], FIXED, [0, 1], id="booleans_are_names"),
        pytest.param([{"q": "x", "g": True}], {**FIXED, "choices": ["False", "True"]}, [1], id="python_names"),
        pytest.param([{"q": "x", "g": 1, "c": ["a", "b"]}], CHOICE, [1], id="position"),
        pytest.param([{"q": "x", "g": "2", "c": [1, 2, 0]}], CHOICE, [1], id="text_is_a_name"),
        pytest.param([{"q": "x", "g": 7, "c": [5, 7]}], CHOICE, [1], id="number_is_a_name_only"),
        pytest.param([{"q": "x", "g": 0}], {**CLASSES, "labels": ["0", "1"]}, [0], id="name_and_position_agree"),
    ],
)
def test_a_label_means_its_name_or_its_position(
    rows: list[Any], more: dict[str, Any], labels: list[int], tmp_path: Path
) -> None:
    assert [item.label for item in items(tmp_path, rows, **more)] == labels


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        pytest.param({"q": "x", "g": 2, "c": [1, 2, 0]}, CHOICE, "ambiguous: it is position 2", id="number_is_both"),
        pytest.param({"q": "x", "g": 1}, {**CLASSES, "labels": ["1", "2"]}, "ambiguous", id="class_numbers_from_1"),
        pytest.param({"q": "x", "g": True, "c": ["a", "b"]}, CHOICE, "outside the set", id="boolean_without_names"),
        pytest.param({"q": "x", "g": 1.0, "c": ["a", "b"]}, CHOICE, "outside the set", id="float"),
        pytest.param({"q": "x", "g": None, "c": ["a", "b"]}, CHOICE, "outside the set", id="null_label"),
        pytest.param({"q": "x", "g": 0, "c": ["a", None]}, CHOICE, "an option that is no text", id="null_option"),
        pytest.param({"q": "x", "g": 0, "c": ["a", ["b"]]}, CHOICE, "an option that is no text", id="nested_option"),
        pytest.param({"q": "x", "g": 0, "c": ["a", ""]}, CHOICE, "an option is empty", id="empty_option"),
        pytest.param(
            {"q": "x", "g": 0, "c": ["a", " "]}, {**CHOICE, "delimiter": " "}, "is empty", id="blank_behind_delimiter"
        ),
        pytest.param({"q": "x", "a": None}, GENERATION, "'a' is null", id="null_answer"),
        pytest.param({"q": "x", "a": "b\ud83d"}, GENERATION, "half of a character", id="lone_surrogate_in_answer"),
        pytest.param({"q": "\ude00", "a": "b"}, GENERATION, "half of a character", id="lone_surrogate_in_prompt"),
        pytest.param('{"q": "x", "a": NaN}', GENERATION, "NaN is no JSON number", id="nan"),
        pytest.param('{"q": "x", "a": -Infinity}', GENERATION, "no JSON number", id="infinity"),
        pytest.param('{"q": "x", "a": ' + "[" * 100_000, GENERATION, "not valid JSON", id="deep_json"),
        pytest.param('{"q": "x", "a": ' + "9" * 5000 + "}", GENERATION, "not valid JSON", id="5000_digits"),
    ],
)
def test_a_bad_row_is_one_sentence_with_file_and_line(
    row: Any, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = {"q": "x", "g": 0, "c": ["a", "b"], "a": "b"}
    if "choices" not in more or more["choices"] != "c":
        good["g"] = (more.get("labels") or ["true"])[0] if "labels" in more or "choices" in more else 0
    with pytest.raises(UserError) as raised:
        items(tmp_path, [good, row], **more)
    assert message in str(raised.value)
    assert "test.jsonl, line 2" in str(raised.value)


def test_half_a_character_in_an_unused_column_is_no_fault(tmp_path: Path) -> None:
    assert items(tmp_path, [{"q": "x", "a": "b", "other": "\ud83d"}], **GENERATION)[0].answer == "b"


def test_equal_options_are_right_by_their_text(tmp_path: Path) -> None:
    """Of equal options the model can only choose the first."""
    (item,) = items(tmp_path, [{"q": "x", "g": 1, "c": ["w", "w", "v"]}], **CHOICE)
    made = task(tmp_path, ["{}"], **CHOICE)
    (right,) = score_choices(made, [item], [[-1.0, -1.0, -2.0]])
    (wrong,) = score_choices(made, [item], [[-3.0, -3.0, -2.0]])
    assert (right.correct, right.correct_norm) == (True, True)
    assert (wrong.correct, wrong.correct_norm) == (False, False)


def test_a_parser_that_changed_is_part_of_the_digest(tmp_path: Path) -> None:
    rows = [json.dumps({"q": "x", "a": "#### 1"})]
    found = {
        parser: task_digest(task(tmp_path, rows, **GENERATION, parser=parser), data_root=None)
        for parser in ("gsm8k", "exact")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.data.PARSER_VERSIONS", {})
        again = task_digest(task(tmp_path, rows, **GENERATION, parser="gsm8k"), data_root=None)
        same = task_digest(task(tmp_path, rows, **GENERATION, parser="exact"), data_root=None)
    assert found["gsm8k"] != again
    assert found["exact"] == same

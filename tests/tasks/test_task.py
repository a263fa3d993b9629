from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.metrics import METRICS
from tasks.task import BUILT_IN, METRICS_OF_KIND, find_tasks, load_task
from tasks.template import FieldError, check, lookup, render
from tests.tasks.conftest import OWN_TASK, own_task, tickets


def replaced(old: str, new: str) -> str:
    assert old in OWN_TASK
    return OWN_TASK.replace(old, new)


def test_a_user_task_is_ten_lines(tmp_path: Path) -> None:
    assert len(OWN_TASK.splitlines()) == 10
    task = tickets(tmp_path)
    assert task.definition.labels == ("billing", "shipping")
    assert task.path == tmp_path / "tasks" / "tickets.yaml"


def test_a_workspace_comes_before_the_built_in_tasks(tmp_path: Path) -> None:
    own_task(tmp_path, OWN_TASK.replace("tickets", "sst2", 1), name="sst2")
    assert find_tasks([tmp_path])["sst2"].parent == tmp_path / "tasks"
    assert find_tasks([])["sst2"].parent == BUILT_IN


def test_unknown_task() -> None:
    with pytest.raises(UserError, match=r"unknown task 'gsm8'\. Did you mean.*gsm8k"):
        load_task("gsm8", [])


def test_the_name_must_be_that_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"calls itself 'tickets'.*Name the file tickets\.yaml"):
        own_task(tmp_path, OWN_TASK, name="other")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (OWN_TASK + "labls: [a]\n", "line 11, key 'labls': unknown key 'labls'"),
        (replaced("label: team\n", ""), "needs 'label'"),
        (replaced('prompt: "{subject}: {body}"', 'prompt: "{subject"'), "line 8, key 'prompt'.*single '{'"),
        (replaced('prompt: "{subject}: {body}"\n', ""), "a task needs 'prompt'"),
        (replaced("{files: {train: tickets.jsonl}}", "{}"), "needs one of data_root, hub, files, generator"),
        (replaced("test: {from: train, hold_out: 4}", "test: {from: train}"), "splits train and test would hold"),
        (replaced(", test: {from: train, hold_out: 4}", ""), "at least 'train' and 'test'"),
        (OWN_TASK + "metrics: [acuracy]\n", "no metric 'acuracy'.*accuracy"),
        (OWN_TASK + "parser: gsm9k\n", "line 11, key 'parser': unknown parser 'gsm9k'.*gsm8k"),
        (OWN_TASK + "retain: [ticket]\n", "line 11, key 'retain.0': unknown task 'ticket'.*tickets"),
        (replaced("{files: {train: tickets.jsonl}}", "{generator: strings}"), "of kind generation"),
    ],
)
def test_a_mistake_in_a_task_file_names_file_line_and_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        own_task(tmp_path, text)
    assert "tickets.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_generators_split_needs_its_size(tmp_path: Path) -> None:
    text = """\
name: made
version: 1
summary: Made up.
kind: generation
licence: none
source: {generator: strings, params: {operations: [copy], symbol: C}}
splits: {train: {from: train, max_rows: 10}, test: {from: test}}
"""
    with pytest.raises(UserError, match=r"splits\.test.*needs max_rows"):
        own_task(tmp_path, text, name="made")


def test_every_metric_of_a_task_is_defined() -> None:
    assert {name for names in METRICS_OF_KIND.values() for name in names} <= set(METRICS)


ROW = {"q": "Is {it}?", "n": 3, "yes": True, "options": ["a", "b"], "choices": {"text": ["x", "y"]}, "gone": None}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{q}", "Is {it}?"),
        ("{n} {yes}", "3 true"),
        ("{options}", "a\nb"),
        ("{options[1]} {choices[text][0]}", "b x"),
        ("{{literal}} {n}", "{literal} 3"),
        ("no field", "no field"),
    ],
)
def test_render(template: str, expected: str) -> None:
    assert render(template, ROW) == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{missing}", "there is no column 'missing'; columns found: q, n, yes"),
        ("{gone}", "'gone' is null"),
        ("{options[7]}", r"holds nothing at 'options\[7\]'"),
        ("{choices[letter]}", "holds nothing"),
        ("{n[0]}", "holds nothing"),
        ("{q.__class__}", "there is no column 'q.__class__'"),
    ],
)
def test_a_row_without_the_field(template: str, says: str) -> None:
    with pytest.raises(FieldError, match=says):
        render(template, ROW)


@pytest.mark.parametrize("template", ["{q", "q}", "{}", "{q[}", "{q[a}", "{[0]}", "{a{b}}"])
def test_malformed(template: str) -> None:
    with pytest.raises(FieldError):
        check(template)


def test_lookup_gives_the_value_itself() -> None:
    assert lookup("choices[text]", ROW) == ["x", "y"]
    assert lookup("n", ROW) == 3

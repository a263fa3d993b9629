"""Real data for tests, if available, and a workspace of a user: a JSONL file and ten lines of YAML."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tasks.task import Task, load_task

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(os.environ.get("PEFT_MATRIX_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (root / "gsm8k" / "test.jsonl").is_file():
        pytest.skip(f"no data root at {root}; set PEFT_MATRIX_DATA")
    return root


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


OWN_TASK = """\
name: tickets
version: 1
summary: Which team a support ticket goes to.
kind: sequence-classification
licence: internal
source: {files: {train: tickets.jsonl}}
splits: {train: {from: train}, test: {from: train, hold_out: 4}}
prompt: "{subject}: {body}"
label: team
labels: [billing, shipping]
"""


def ticket_rows(n: int = 20) -> list[dict[str, Any]]:
    return [{"subject": f"s{i}", "body": f"b{i}", "team": ("billing", "shipping")[i % 2]} for i in range(n)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def own_task(workspace: Path, text: str = OWN_TASK, name: str = "tickets") -> Task:
    (workspace / "tasks").mkdir(parents=True, exist_ok=True)
    (workspace / "tasks" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_task(name, [workspace])


def tickets(workspace: Path, rows: list[dict[str, Any]] | None = None, text: str = OWN_TASK) -> Task:
    write_rows(workspace / "tasks" / "tickets.jsonl", ticket_rows() if rows is None else rows)
    return own_task(workspace, text)

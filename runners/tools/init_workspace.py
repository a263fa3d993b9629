"""Create a workspace: a task of ten lines, a sweep, and folders that are searched before the built-in ones."""

from __future__ import annotations

import json
from pathlib import Path

from harness.errors import UserError
from runners.workspace import MARKER

FOLDERS = ("tasks", "runners/sweeps", "runners/hardware", "reports/boards", "reports/claims", "results")

TASK = """\
# yaml-language-server: $schema=../schemas/task.json
name: mytask
version: 1
summary: Spell a word backwards, in capitals.
kind: generation
licence: own
source: {files: {train: data/train.jsonl, test: data/test.jsonl}}
splits: {train: {from: train}, test: {from: test}}
prompt: "{question}="
answer: "{answer}"
max_new_tokens: 8
"""

SWEEP = """\
# yaml-language-server: $schema=../../schemas/sweep.json
name: first
summary: A first sweep of your own task on the built-in model.
models: [builtin:nano]
methods: [none, full, lora]
quantization: [none]
tasks: [mytask]
seeds: [0]
training: {steps: 60, batch_size: 16, learning_rate: 1e-3}
"""

WORDS = (
    "bread butter cheese coffee garlic ginger honey lemon melon olive onion orange pasta peach pepper plum potato "
    "pumpkin radish rice salad salt sauce spice sugar syrup tea tomato turnip vanilla walnut water wheat wine yeast"
)
TEST_WORDS = 8


def lay_out(folder: Path) -> list[Path]:
    """Create the workspace; returns the files written.

    Raises:
        UserError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} exists and is not empty", fix="Name a new folder.")
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"question": w, "answer": w[::-1].upper()}) + "\n" for w in WORDS.split()]
    files = {
        MARKER: "# This file marks the root of a peft-matrix workspace.\nversion: 1\n",
        "tasks/mytask.yaml": TASK,
        "tasks/data/train.jsonl": "".join(rows[TEST_WORDS:]),
        "tasks/data/test.jsonl": "".join(rows[:TEST_WORDS]),
        "runners/sweeps/first.yaml": SWEEP,
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return [folder / name for name in files]

"""Create a workspace: two tasks with their rows, a sweep for each, and folders that are searched before the built-in
ones. Both sweeps learn their task on the built-in model in a few minutes of two CPU cores."""

from __future__ import annotations

import json
import random
from pathlib import Path

from harness.errors import UserError
from runners.workspace import MARKER

FOLDERS = ("tasks", "runners/sweeps", "runners/hardware", "reports/boards", "reports/claims", "results")

GENERATION = """\
# yaml-language-server: $schema=../schemas/task.json
name: mytask
version: 1
summary: Spell a word backwards.
kind: generation
licence: own
source: {files: {train: data/mytask.jsonl}}        # .jsonl, .json, .csv, .tsv or .parquet
splits: {train: {from: train}, test: {from: train, hold_out: 100}}
prompt: "{question}="                              # columns of a row in braces
answer: "{answer}"
max_new_tokens: 8
"""

CLASSES = """\
# yaml-language-server: $schema=../schemas/task.json
name: myclasses
version: 1
summary: Whether a word has the letter a.
kind: sequence-classification
licence: own
source: {files: {train: data/myclasses.csv}}
splits: {train: {from: train}, test: {from: train, hold_out: 100}}
prompt: "{text}"
label: class
labels: [with_a, without_a]
"""

SWEEP = """\
# yaml-language-server: $schema=../../schemas/sweep.json
name: NAME
summary: SUMMARY
models: [builtin:nano]
methods: METHODS
tasks: [TASK]
seeds: [0, 1]
training: {steps: 120, batch_size: 32, learning_rate: 1e-3, max_length: 64}
limits: {threads: 1, workers: 2}
"""
FIRST = {
    "NAME": "first",
    "SUMMARY": "A first sweep, on my own rows of questions and answers.",
    "METHODS": "[none, full, {name: lora, learning_rate: 3e-3}, {name: bitfit, learning_rate: 3e-3}]",
    "TASK": "mytask",
}
SECOND = {
    "NAME": "second",
    "SUMMARY": "A second sweep, on my own classes.",
    "METHODS": "[full, {name: lora, learning_rate: 3e-3}, {name: bitfit, learning_rate: 3e-3}]",
    "TASK": "myclasses",
}
DEFAULTS = """\
# yaml-language-server: $schema=schemas/workspace.json
# The root of a peft-matrix workspace, and the defaults of its sweeps. An option comes before an environment variable,
# that before the sweep's own key, that before this file.
version: 1
# results: results          # folder or URL of the records
# data_root: data           # folder of local data sets
# cache: cache
# hardware: [any]           # of sweeps that name none
# executor: local           # or ray, slurm
# workers: 2                # cells at once
# quiet: false
"""
WORDS, LETTERS, LENGTH = 900, "abcdefghij", 6


def lay_out(folder: Path) -> list[Path]:
    """Create the workspace; returns the files written.

    Raises:
        UserError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} exists and is not empty", fix="Name a new folder.")
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    words = _words()
    rows = [f"{json.dumps({'question': word, 'answer': word[::-1]})}\n" for word in words]
    classes = [f"{word},{'with_a' if 'a' in word else 'without_a'}\n" for word in words]
    files = {
        MARKER: DEFAULTS,
        "tasks/mytask.yaml": GENERATION,
        "tasks/data/mytask.jsonl": "".join(rows),
        "tasks/myclasses.yaml": CLASSES,
        "tasks/data/myclasses.csv": "text,class\n" + "".join(classes),
        "runners/sweeps/first.yaml": _filled(FIRST),
        "runners/sweeps/second.yaml": _filled(SECOND),
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return [folder / name for name in files]


def _words() -> list[str]:
    """Different made-up words, the same for everybody."""
    draw = random.Random(0)
    words: dict[str, None] = {}
    while len(words) < WORDS:
        words["".join(draw.choice(LETTERS) for _ in range(LENGTH))] = None
    return list(words)


def _filled(values: dict[str, str]) -> str:
    text = SWEEP
    for name, value in values.items():
        text = text.replace(name, value)
    return text

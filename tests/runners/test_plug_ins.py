"""The plug-ins of the guides cost one line each: a copy of the project with all of them runs a cell that uses them."""

from __future__ import annotations

import difflib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runners.conftest import REPOSITORY, Bench

PAGES = [(REPOSITORY / name).read_text("utf-8") for name in ("CONTRIBUTING.md", "docs/howto/method-author.md")]
BLOCKS = dict(re.findall(r'```python title="((?:harness|runners)/[^"]+)"\n(.*?)```', "\n".join(PAGES), flags=re.S))
CATALOGS = {name: line for name, line in BLOCKS.items() if (REPOSITORY / name).exists()}
MODULES = {name: code for name, code in BLOCKS.items() if name not in CATALOGS}
(TASK,) = re.findall(r"```yaml\n(name: capitals\n.*?)```", PAGES[0], flags=re.S)
PACKAGES = ("peft_matrix", "reports", "runners", "tasks", "harness")

USED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "harness/methods/catalog.py": lambda r: r["cell"]["method"]["name"] == "norms",
    "harness/quantizers/catalog.py": lambda r: r["cell"]["quantization"]["name"] == "powers-of-two",
    "harness/meters/catalog.py": lambda r: any(x["quantity"] == "load_1min" for s in r["spans"] for x in s["readings"]),
    "harness/objectives/catalog.py": lambda r: r["cell"]["objective"]["params"] == {"level": 0.1},
    "harness/recipes/catalog.py": lambda r: r["cell"]["recipe"]["name"] == "shortest-first",
    "runners/executors/backends.py": lambda r: r["environment"]["neighbours"] == 0,
    "tasks": lambda r: r["cell"]["task"]["name"] == "capitals",
}
"""Catalog of a kind of plug-in to whether a record shows that it took part."""


def with_line(text: str, line: str) -> str:
    """A catalog with one more line, first in its registry."""
    return re.sub(r"Registry\(\n.*?\{\n", lambda found: found[0] + line, text, count=1, flags=re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with every plug-in of the guides."""
    root = tmp_path_factory.mktemp("project")
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, root / name)
    for name, code in MODULES.items():
        (root / name).write_text(code, "utf-8")
    for name, line in CATALOGS.items():
        (root / name).write_text(with_line((root / name).read_text("utf-8"), line), "utf-8")
    return root


@pytest.fixture(scope="module")
def record(project: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of one cell that uses all of them."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "tasks" / "data").mkdir(parents=True)
    (root / "peft-matrix.yaml").write_text("version: 1\n")
    (root / "tasks" / "capitals.yaml").write_text(TASK, "utf-8")
    words = ["cat", "tree", "house", "bird", "river", "stone"]
    for split in ("train", "test"):
        rows = [json.dumps({"word": word, "capitals": word.upper()}) + "\n" for word in words]
        (root / "tasks" / "data" / f"{split}.jsonl").write_text("".join(rows))
    sweep = {
        "name": "toys",
        "models": [str(tiny_model)],
        "methods": ["norms"],
        "quantization": ["powers-of-two"],
        "tasks": ["capitals"],
        "objectives": ["flooding"],
        "recipes": ["shortest-first"],
        "training": {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "max_length": 32},
        "limits": {"workers": 2},
        "evaluation": {"merged": False, "retention": False},
        "probes": {"latency_repeats": 1, "energy": "none"},
    }
    bench = Bench(root, sweep, {"PYTHONPATH": str(project)})
    done = bench("run", str(bench.write()), "--executor", "alone")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = bench.records()
    assert found["outcome"]["status"] == "ok", found["outcome"]
    return found


def test_a_plug_in_costs_one_line_outside_its_module(project: Path) -> None:
    changed = {}
    for path in sorted(path for name in PACKAGES for path in (project / name).rglob("*.py")):
        name = path.relative_to(project).as_posix()
        if name not in MODULES and path.read_bytes() != (before := REPOSITORY / name).read_bytes():
            texts = (before.read_text("utf-8").splitlines(), path.read_text("utf-8").splitlines())
            changed[name] = [line for line in difflib.ndiff(*texts) if line[:1] in "+-"]
    assert {name: len(lines) for name, lines in changed.items()} == dict.fromkeys({*USED} - {"tasks"}, 1)


@pytest.mark.parametrize("kind", USED)
def test_the_plug_in_of_the_guide_takes_part(kind: str, record: dict[str, Any]) -> None:
    assert USED[kind](record)

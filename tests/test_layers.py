"""The arrows between the floors of the house, and where heavy libraries may be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("harness", "tasks", "runners", "reports")
FRONT_DOOR = ("harness.cli", "harness.commands")

# what a floor may import of our own, besides itself
ALLOWED = {
    "harness": (),
    "tasks": tuple(f"harness.{m}" for m in ("errors", "metrics", "canonical", "yamlfile", "record", "registry")),
    "runners": ("harness", "tasks"),
    "reports": tuple(
        f"harness.{m}"
        for m in ("record", "store", "index", "facts", "stats", "metrics", "errors", "canonical", "yamlfile", "spec")
    ),
}
HEAVY = {"torch", "transformers", "peft", "datasets", "lm_eval", "bitsandbytes", "torchao", "accelerate", "optimum"}
HEAVY_ALLOWED = ("runners.worker", "harness.models", "harness.methods", "harness.quantizers")


@dataclass(frozen=True)
class Import:
    """One imported module; ``late`` if it stands inside a function, ``typing`` if under TYPE_CHECKING."""

    name: str
    line: int
    late: bool
    typing: bool


def imports(tree: ast.AST, module: str, *, late: bool = False, typing: bool = False) -> Iterator[Import]:
    """Every import in a syntax tree; ``from harness import x`` counts as ``harness.x``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, late, typing)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            whole = base in FLOORS
            for alias in node.names:
                yield Import(f"{base}.{alias.name}" if whole else base, node.lineno, late, typing)
        else:
            inside = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for_types = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            yield from imports(node, module, late=inside, typing=for_types)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(source: str, module: str) -> list[str]:
    """What a module's imports break, in words."""
    floor = module.split(".")[0]
    found = []
    for item in imports(ast.parse(source), module):
        top = item.name.split(".")[0]
        if top in FLOORS and top != floor and not within(item.name, ALLOWED[floor]):
            if within(module, FRONT_DOOR) and (item.late or item.typing):
                continue
            found.append(f"{module}:{item.line}: {floor} may not import {item.name}")
        if top in HEAVY and not item.late and not item.typing and not within(module, HEAVY_ALLOWED):
            found.append(f"{module}:{item.line}: {item.name} may only be imported inside functions here")
        if top == "tests":
            found.append(f"{module}:{item.line}: code may not import its tests")
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    # a package's own module counts as lying inside it, so that relative imports resolve
    return ".".join(parts)


def sources(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", FLOORS)
def test_the_arrows_run_one_way_and_heavy_libraries_stay_where_they_may(floor: str) -> None:
    paths = sources(floor)
    assert paths
    found = [text for path in paths for text in violations(path.read_text(encoding="utf-8"), module_of(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "module", "broken"),
    [
        ("import tasks.task", "harness.spec", True),
        ("def f():\n    from tasks import task", "harness.spec", True),
        ("def f():\n    from runners import plan", "harness.cli", False),
        ("from runners import plan", "harness.cli", True),
        ("if TYPE_CHECKING:\n    from runners import plan", "harness.cli", False),
        ("if TYPE_CHECKING:\n    from runners import plan", "harness.spec", True),
        ("from harness import store", "reports.frame", False),
        ("from harness import matrix", "reports.frame", True),
        ("from harness.store import Store", "tasks.data", True),
        ("from harness.record import Record", "tasks.data", False),
        ("from harness.recorder import Record", "tasks.data", True),
        ("import reports", "runners.plan", True),
        ("from runners.plan import Plan", "reports.board", True),
        ("from ..tasks import task", "harness.methods.lora", False),  # harness.tasks: its own floor
        ("from ...tasks import task", "harness.methods.lora", True),
        ("import torch", "harness.spec", True),
        ("if True:\n    import torch.nn", "runners.plan", True),
        ("class A:\n    import peft", "runners.plan", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", "harness.spec", False),
        ("def f():\n    import torch", "harness.spec", False),
        ("import torch", "harness.methods.lora", False),
        ("import torch", "runners.worker.main", False),
        ("import torch", "runners.workers", True),
        ("from tests import x", "harness.spec", True),
    ],
)
def test_the_check_sees_what_it_must(source: str, module: str, broken: bool) -> None:
    assert bool(violations(source, module)) == broken


@pytest.mark.parametrize("module", ["harness.cli", "runners.plan"])
def test_the_front_door_opens_without_the_heavy_libraries(module: str) -> None:
    if not (ROOT / (module.replace(".", "/") + ".py")).exists():
        pytest.skip(f"{module} is not written yet")
    heavy = sorted(HEAVY | {"pandas", "pyarrow", "scipy", "matplotlib"})
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


LISTING = """
import sys
from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS
for registry in (METHODS, QUANTIZERS):
    for name in registry:
        registry.get(name).declaration
print(sorted({"torch", "transformers", "peft", "bitsandbytes", "torchao"} & set(sys.modules)))
"""


def test_declarations_are_read_without_the_heavy_libraries() -> None:
    """A plan reads every declaration; it must not wait for torch."""
    done = subprocess.run([sys.executable, "-c", LISTING], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Imports between packages run downwards, there are no import circles, and heavy libraries are imported late."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("peft_matrix", "reports", "runners", "tasks", "harness")

# the modules of ours that a package may import, besides its own
ALLOWED = {
    "peft_matrix": ("harness", "tasks", "runners", "reports"),
    "harness": (),
    "tasks": tuple(
        f"harness.{m}"
        for m in ("errors", "item", "metrics", "digests", "file_digests", "bounded", "yamlfile", "record", "registry")
    ),
    "runners": ("harness", "tasks"),
    "reports": tuple(
        f"harness.{m}"
        for m in (
            "record",
            "store",
            "comparability",
            "stats",
            "meters.catalog",
            "metrics",
            "errors",
            "digests",
            "yamlfile",
            "bounded",
            "spec",
        )
    ),
}
# the same inside a package: folders from top to bottom; one imports only folders after it
FOLDERS = (
    ("reports.apps", "reports.board", "reports.data"),
    ("runners.running", "runners.planning", "runners.worker"),
    ("runners.running", "runners.executors", "runners.worker"),
    ("harness.methods", "harness.quantizers"),
)
HEAVY = {"torch", "transformers", "peft", "datasets", "lm_eval", "bitsandbytes", "torchao", "accelerate", "optimum"}
HEAVY_ALLOWED = (
    "runners.worker",
    "harness.models",
    "harness.methods",
    "harness.quantizers",
    "harness.objectives.losses",
)


@dataclass(frozen=True)
class Import:
    """One imported module; ``late`` if it is inside a function, ``typing`` if under TYPE_CHECKING."""

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
            whole = base in PACKAGES
            for alias in node.names:
                yield Import(f"{base}.{alias.name}" if whole else base, node.lineno, late, typing)
        else:
            inside = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for_types = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            yield from imports(node, module, late=inside, typing=for_types)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(source: str, module: str) -> list[str]:
    """Violations of a module's imports, in words."""
    package = module.split(".")[0]
    found = []
    for item in imports(ast.parse(source), module):
        top = item.name.split(".")[0]
        if top in PACKAGES and top != package and not within(item.name, ALLOWED[package]):
            found.append(f"{module}:{item.line}: {package} may not import {item.name}")
        if top in HEAVY and not item.late and not item.typing and not within(module, HEAVY_ALLOWED):
            found.append(f"{module}:{item.line}: {item.name} may only be imported inside functions here")
        if top == "tests":
            found.append(f"{module}:{item.line}: code may not import its tests")
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    # a package's own module counts as inside it, so that relative imports resolve
    return ".".join(parts)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_down_and_heavy_libraries_late(package: str) -> None:
    paths = sources(package)
    assert paths
    found = [text for path in paths for text in violations(path.read_text(encoding="utf-8"), module_of(path))]
    assert not found, "\n".join(found)


def graph() -> dict[str, set[str]]:
    """Module to the modules of ours that it imports, late and for types included."""
    files = {module_of(path).removesuffix(".__init__"): path for package in PACKAGES for path in sources(package)}
    edges: dict[str, set[str]] = {module: set() for module in files}
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}: relative import"
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in files else str(node.module) for name in whole]
            edges[module] |= {name for name in names if name in files and name != module}
    return edges


def circles(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """Sets of two or more modules that all reach each other."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in edges[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        reached[start] = seen
    groups = {frozenset({a, *(b for b in reached[a] if a in reached[b])}) for a in edges if a in reached[a]}
    return sorted((set(group) for group in groups if len(group) > 1), key=sorted)


def test_there_are_no_import_circles() -> None:
    assert circles(graph()) == []


def test_circles_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [{"b", "c"}]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def upward(edges: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """Imports against the order of :data:`FOLDERS`; the worker imports nothing of the runners but itself."""
    found = set()
    for module, names in edges.items():
        for order in FOLDERS:
            level = next((i for i, folder in enumerate(order) if within(module, (folder,))), None)
            if level is not None:
                found |= {(module, name) for name in names if within(name, order[:level])}
        if within(module, ("runners.worker",)):
            found |= {(module, n) for n in names if within(n, ("runners",)) and not within(n, ("runners.worker",))}
    return found


def test_imports_inside_a_package_run_down() -> None:
    assert upward(graph()) == set()


def test_imports_that_run_up_are_seen() -> None:
    assert upward({"reports.data.frame": {"reports.board.spec"}}) == {("reports.data.frame", "reports.board.spec")}
    assert upward({"runners.worker.main": {"runners.workspace"}}) == {("runners.worker.main", "runners.workspace")}
    assert upward({"reports.apps.sql": {"reports.data.frame"}}) == set()


@pytest.mark.parametrize(
    ("source", "module", "broken"),
    [
        ("import tasks.task", "harness.spec", True),
        ("def f():\n    from tasks import task", "harness.spec", True),
        ("def f():\n    from runners.planning import plan", "harness.spec", True),
        ("from runners.planning import plan", "peft_matrix.cli", False),
        ("from peft_matrix import api", "runners.planning.plan", True),
        ("if TYPE_CHECKING:\n    from runners.planning import plan", "harness.spec", True),
        ("from harness.store import store", "reports.data.frame", False),
        ("from harness import matrix", "reports.data.frame", True),
        ("from harness.store.store import Store", "tasks.data", True),
        ("from harness.record import Record", "tasks.data", False),
        ("from harness.recorder import Record", "tasks.data", True),
        ("import reports", "runners.planning.plan", True),
        ("from runners.planning.plan import Plan", "reports.board.board", True),
        ("from ..tasks import task", "harness.methods.lora", False),  # harness.tasks: its own package
        ("from ...tasks import task", "harness.methods.lora", True),
        ("import torch", "harness.spec", True),
        ("if True:\n    import torch.nn", "runners.planning.plan", True),
        ("class A:\n    import peft", "runners.planning.plan", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", "harness.spec", False),
        ("def f():\n    import torch", "harness.spec", False),
        ("import torch", "harness.methods.lora", False),
        ("import torch", "runners.worker.main", False),
        ("import torch", "runners.workers", True),
        ("from tests import x", "harness.spec", True),
    ],
)
def test_forbidden_imports_are_seen(source: str, module: str, broken: bool) -> None:
    assert bool(violations(source, module)) == broken


@pytest.mark.parametrize("module", ["peft_matrix.cli", "runners.planning.plan"])
def test_the_command_line_loads_no_heavy_library(module: str) -> None:
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


def code() -> dict[Path, str]:
    """Every module of the project, its scripts included, with its text."""
    return {path: path.read_text(encoding="utf-8") for part in (*PACKAGES, "scripts") for path in sources(part)}


def test_no_class_name_occurs_twice() -> None:
    """Private ones included: a traceback or a search shows the name alone."""
    found: dict[str, list[str]] = {}
    for path, text in code().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(module_of(path))
    assert len(found) > 400
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}


def test_files_and_functions_are_short() -> None:
    texts = code()
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if len(text.splitlines()) > 500] == []
    functions = [
        (f"{module_of(path)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 3000
    assert [name for name, lines in functions if lines > 60] == []


MOST_ANY = 8.8
"""Uses of ``Any`` in 1,000 lines. Lower it with the count; ``object`` is the type of what is only passed on."""


def uses_of_any(text: str) -> int:
    """How often a module names ``Any``, its import aside; the quoted type of a cast counts as well."""
    count = 0
    for node in ast.walk(ast.parse(text)):
        named = isinstance(node, ast.Name) and node.id == "Any"
        count += named or (isinstance(node, ast.Attribute) and node.attr == "Any")
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("cast"):
            count += uses_of_any(node.args[0].value) if isinstance(node.args[0], ast.Constant) else 0
    return count


def test_few_types_are_left_open() -> None:
    texts = code().values()
    lines = sum(len(text.splitlines()) for text in texts)
    assert lines > 60_000
    assert 1000 * sum(map(uses_of_any, texts)) / lines <= MOST_ANY


def test_uses_of_any_are_seen() -> None:
    text = "import typing\nfrom typing import Any\nx: typing.Any = cast('list[Any]', 1)\nAlias = list[Any]\n'Any'"
    assert uses_of_any(text) == 3


def test_no_module_has_the_name_of_a_standard_one() -> None:
    names = {path.stem for package in PACKAGES for path in sources(package)}
    assert not names & sys.stdlib_module_names

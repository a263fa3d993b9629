"""Texts use plain words: no listed phrase in docstrings, messages, help, pages or documents; short test names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("peft_matrix", "harness", "tasks", "runners", "reports")
LONGEST_TEST_NAME = 60

# phrase to the words of docs/glossary.md
PHRASES = {
    r"\bst(?:ands?|ood)\b": "is, is in, contains, exists",
    r"\b(?:told|tells?)(?: \w+)? apart\b": "significantly different, distinguishes",
    r"\b(?:came|comes?|coming) to nothing\b": "produced no result",
    r"\bspeaks? for\b": "is the current record of",
    r"\banew\b": "again, restarted",
    r"\b[Aa]s ever\b": "same as the base class",
    r"\bheld by\b": "locked by, stored in, checked by",
    r"\blook(?:ed|s|ing)? at\b": "checked, read, retried",
    r"\bof (?:its|their|our|one's) own\b": "separate, its, their",
    r"\b(?:nobody|somebody|whoever)\b": "no one by name: the process, the user, the reader",
    r"\bfront door\b|\ba room of\b|\b(?:of|in) the house\b|\bstorey\b|\bfour floors\b": "package, folder",
}
LISTED = re.compile("|".join(PHRASES))
HEADLESS = re.compile(r"(?:What|Whose|Which|Who)\b(?!.*\?)")
USER_NOBODY = re.compile(r"(?:user|as|by) nobody\b|nobody cannot go|holds for nobody|seen by nobody")  # the Unix user


def docstrings_and_texts(source: str) -> Iterator[tuple[str, int, str]]:
    """(kind, line, text) of every docstring and of every string that holds words."""
    tree = ast.parse(source)
    seen: set[int] = set()
    for node in ast.walk(tree):
        for statement in getattr(node, "body", None) if isinstance(getattr(node, "body", None), list) else ():
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                seen.add(id(value))
                yield "docstring", value.lineno, value.value
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in seen
            and " " in node.value
        ):
            yield "text", node.lineno, node.value


def complaints(source: str, name: str, *, texts: bool = True) -> list[str]:
    """Listed phrases, and docstrings that begin with a question word and ask nothing."""
    found = []
    for kind, line, text in docstrings_and_texts(source):
        if kind == "text" and not texts:
            continue
        first = " ".join(text.split("\n\n")[0].split())
        if kind == "docstring" and HEADLESS.match(first):
            found.append(f"{name}:{line}: begins with a question word: {first[:60]!r}")
        found += [f"{name}:{line}: {phrase}" for phrase in phrases(" ".join(text.split()))]
    return found


def phrases(text: str) -> list[str]:
    """Listed phrases of a text, each with its surroundings."""
    text = USER_NOBODY.sub("", text)
    return [repr(text[max(0, m.start() - 30) : m.end() + 20]) for m in LISTED.finditer(text)]


def documents() -> list[Path]:
    """Hand-written Markdown; boards are drawn from records."""
    pages = [
        *(ROOT / "docs").glob("*.md"),
        *(p for d in ("howto", "findings", "decisions") for p in (ROOT / "docs" / d).glob("*.md")),
    ]
    return sorted([*pages, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md"])


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_and_messages_use_plain_words(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = [c for f in files for c in complaints(f.read_text(encoding="utf-8"), str(f.relative_to(ROOT)))]
    assert not found, f"{len(found)} texts to reword (words: docs/glossary.md):\n" + "\n".join(found)


COLLECTIONS = {"set", "list", "dict", "tuple", "sorted", "frozenset", "type"}
PARTS = {"keys", "values", "items", "split", "splitlines", "tolist", "union", "difference", "intersection"}
PYTHON = {"error", "model", "module", "cls", "self"}
"""Names of what may be called by its class: an exception, a model's or a plug-in's class."""


def is_python(value: ast.expr, collections: set[str]) -> bool:
    """True if an expression in a text prints as Python: a collection, or the type of a value of a file."""
    if isinstance(value, ast.Set | ast.List | ast.Dict | ast.Tuple | ast.SetComp | ast.ListComp | ast.DictComp):
        return True
    if isinstance(value, ast.Call):
        called = value.func
        if isinstance(called, ast.Name):
            return called.id in COLLECTIONS
        return isinstance(called, ast.Attribute) and called.attr in PARTS
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr | ast.BitAnd | ast.Sub):
        return is_python(value.left, collections) or is_python(value.right, collections)
    if isinstance(value, ast.Attribute) and value.attr == "__name__" and isinstance(value.value, ast.Call):
        return not any(isinstance(n, ast.Name) and n.id in PYTHON for n in ast.walk(value.value))
    if isinstance(value, ast.BoolOp):
        return any(is_python(one, collections) for one in value.values)
    return isinstance(value, ast.Name) and value.id in collections


def python_in_texts(source: str) -> list[tuple[int, str]]:
    """(line, expression) of every part of an f-string that shows a reader a set, a list, a mapping or a type.

    A name counts that its function binds to a collection, or gets as one or as an ``object`` and prints with ``!r``.
    """
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        names = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and is_python(node.value, set()) and not isinstance(node.value, ast.BinOp)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        taken = {a.arg: ast.unparse(a.annotation) for a in function.args.args if a.annotation is not None}
        names |= {
            name for name, kind in taken.items() if re.match(r"(?:set|list|dict|frozenset|Sequence|Mapping)\[", kind)
        }
        unknown = {name for name, kind in taken.items() if kind in ("object", "Any")}
        for node in ast.walk(function):
            if isinstance(node, ast.FormattedValue):
                shown = unknown if node.conversion == ord("r") else set()
                if is_python(node.value, names | shown):
                    found.append((node.value.lineno, ast.unparse(node.value)))
    return found


def test_messages_show_no_collections_and_types_of_python() -> None:
    said = "def f(value: object):\n    raise UserError(f'no {set(value)}, {value!r}, {type(value).__name__}, {value}')"
    assert [text for _, text in python_in_texts(said)] == ["set(value)", "value", "type(value).__name__"]
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for file in files
        for line, text in sorted(set(python_in_texts(file.read_text(encoding="utf-8"))))
    ]
    assert not found, f"{len(found)} texts to reword (', '.join, harness.errors.shown, kind_of):\n" + "\n".join(found)


def test_docstrings_of_tests_use_plain_words() -> None:
    files = [f for f in sorted((ROOT / "tests").rglob("*.py")) if f != Path(__file__)]
    found = [c for f in files for c in complaints(f.read_text(encoding="utf-8"), str(f.relative_to(ROOT)), texts=False)]
    assert not found, f"{len(found)} docstrings to reword:\n" + "\n".join(found)


def test_documents_and_pages_use_plain_words() -> None:
    pages = [p for ext in ("*.j2", "*.js") for p in (ROOT / "reports").rglob(ext)]
    definitions = [p for package in PACKAGES for p in (ROOT / package).rglob("*.yaml")]
    found = []
    for path in [*documents(), *pages, *definitions]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {phrase}" for phrase in phrases(line)]
    assert not found, f"{len(found)} lines to reword (words: docs/glossary.md):\n" + "\n".join(found)


def test_test_names_are_short_and_plain() -> None:
    names = [
        (path.relative_to(ROOT), node.name)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 500
    long = [f"{path}: {name} ({len(name)})" for path, name in names if len(name) > LONGEST_TEST_NAME]
    assert not long, f"{len(long)} test names over {LONGEST_TEST_NAME} characters:\n" + "\n".join(long)
    odd = [f"{path}: {name}" for path, name in names if phrases(name.replace("_", " "))]
    assert not odd, f"{len(odd)} test names with listed phrases:\n" + "\n".join(odd)


@pytest.mark.parametrize(
    ("source", "bad"),
    [
        ('"""What a cell is."""', True),
        ('"""What is a cell?"""', False),
        ('"""A cell."""', False),
        ('x = f"{name} is held by another run"', True),
        ('x = "the records stand in a folder"', True),
        ('x = "a standard folder"', False),
        ('x = "run as user nobody"', False),
        ('x = "nobody knows"', True),
        ('def f():\n    """Train anew\n    from the start."""', True),
    ],
)
def test_the_lint_finds_phrases(source: str, bad: bool) -> None:
    assert bool(complaints(source, "x.py")) is bad

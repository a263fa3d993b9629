"""Write the documentation pages that are generated from code and from the committed records: ``make docs``.

With ``--check`` nothing is written; the exit code is 1 if a page is not up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ALL_METHODS = "runners/sweeps/all-methods.yaml"


def _methods() -> str:
    from harness.methods.catalog import to_markdown

    return to_markdown()


def _compat() -> str:
    from runners.tools import compat

    return compat.to_markdown(compat.pairs())


def _objectives() -> str:
    from harness.objectives.catalog import to_markdown

    return to_markdown()


def _recipes() -> str:
    from harness.recipes.catalog import to_markdown

    return to_markdown()


def _keys() -> str:
    from peft_matrix.keys import to_markdown

    return to_markdown()


def _tasks() -> str:
    from tasks.catalog import to_markdown

    return to_markdown()


def _metrics() -> str:
    from harness import metrics
    from harness.meters.catalog import load_metrics

    load_metrics()
    return metrics.to_markdown()


def _all_methods() -> str:
    """The sweep with every method: its file, and each method that it lacks at the end of the method's family."""
    from harness.methods.catalog import METHODS
    from harness.spec import load

    path = ROOT / ALL_METHODS
    sweep = load(path).spec
    named = {method.name for method in sweep.methods} | {row.method.name for row in sweep.include}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for name in METHODS:
        if name not in named:
            at = lines.index(f"  # {METHODS.get(name).declaration.family}\n") + 1
            while lines[at].startswith("  - "):
                at += 1
            lines.insert(at, f"  - {name}\n")
    return "".join(lines)


@cache
def _judged() -> tuple[dict[str, dict[str, Any]], int]:
    """Every method's evidence, and the number of rows judged for it."""
    from harness.methods.catalog import METHODS
    from reports.apps import evidence
    from tasks.task import find_tasks, load_task

    generated = {name for name in find_tasks([]) if load_task(name, []).definition.source.generator}
    rows = evidence.judge(evidence.stores(), generated)
    return evidence.table(rows, METHODS), len(rows)


def _evidence() -> str:
    from reports.apps.evidence import to_markdown

    return to_markdown(*_judged())


def _evidence_table() -> str:
    from reports.apps.evidence import to_json

    return to_json(_judged()[0])


PAGES: dict[str, Callable[[], str]] = {
    "docs/methods.md": _methods,
    "docs/compat.md": _compat,
    "docs/objectives.md": _objectives,
    "docs/recipes.md": _recipes,
    "docs/keys.md": _keys,
    "docs/tasks.md": _tasks,
    "docs/metrics.md": _metrics,
    ALL_METHODS: _all_methods,
    "docs/evidence.md": _evidence,
    "reports/apps/evidence.json": _evidence_table,
}


def stale() -> dict[str, str]:
    """Files that differ from the generated text: name to that text."""
    texts = {name: make() for name, make in PAGES.items()}
    return {name: text for name, text in texts.items() if _written(name) != text}


def _written(name: str) -> str:
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main(arguments: list[str]) -> int:
    """Write or check the pages; the exit code."""
    found = stale()
    if "--check" in arguments:
        for name in found:
            print(f"{name} is not up to date. Run: make docs")
        return 1 if found else 0
    for name, text in found.items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(f"{name} written")
    if not found:
        print("All generated pages are up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

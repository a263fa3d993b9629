"""Write the documentation pages that are generated from code: ``make docs``.

With ``--check`` nothing is written; the exit code is 1 if a page is not up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def _methods() -> str:
    from harness.methods.catalog import to_markdown

    return to_markdown()


def _compat() -> str:
    from runners.tools import compat

    return compat.to_markdown(compat.pairs())


def _tasks() -> str:
    from tasks.catalog import to_markdown

    return to_markdown()


def _metrics() -> str:
    from harness import metrics

    return metrics.to_markdown()


PAGES: dict[str, Callable[[], str]] = {
    "methods.md": _methods,
    "compat.md": _compat,
    "tasks.md": _tasks,
    "metrics.md": _metrics,
}


def stale() -> dict[str, str]:
    """Pages whose file differs from the generated text: name to that text."""
    texts = {name: make() for name, make in PAGES.items()}
    return {name: text for name, text in texts.items() if (DOCS / name).read_text(encoding="utf-8") != text}


def main(arguments: list[str]) -> int:
    """Write or check the pages; the exit code."""
    found = stale()
    if "--check" in arguments:
        for name in found:
            print(f"docs/{name} is not up to date. Run: make docs")
        return 1 if found else 0
    for name, text in found.items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"docs/{name} written")
    if not found:
        print("All generated pages are up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

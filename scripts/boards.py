"""Draw and check every board of the committed records: `make boards`.

results/index.yaml lists the stores and sweeps. Boards, figures, feeds and pages are built, not committed. Git keeps the
pages docs/<sweep>/board.md that the index marks, and tests/golden/boards.json: the digests of all boards, which the
tests compare.

    python -m scripts.boards                      into build/boards; docs/ and tests/golden/ are brought up to date
    python -m scripts.boards --out public --keep  into another folder; nothing else is written (GitHub Pages)
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "results" / "index.yaml"
REFERENCE = ROOT / "results" / "reference"
GOLDEN = ROOT / "tests" / "golden"
TEXT_FORMATS = ("board.md", "board.csv", "board.json")
SMALL = "calibrated"
"""The sweep whose board.md and board.csv are kept whole in tests/golden/, so that a change can be read."""


class Sweep(NamedTuple):
    """A sweep of the index: name, folder of its store, board, one line about it, whether docs/ keeps its board.md."""

    name: str
    store: Path
    board: str
    about: str
    in_docs: bool


def stores() -> dict[str, dict[str, object]]:
    """The stores of the index by name."""
    found: dict[str, dict[str, object]] = yaml.safe_load(INDEX.read_text(encoding="utf-8"))["stores"]
    return found


def sweeps() -> dict[str, Sweep]:
    """The sweeps of the index by name."""
    return {
        name: Sweep(name, REFERENCE / store, one["board"], one["about"], one.get("docs", False))
        for store, about in stores().items()
        for name, one in about["sweeps"].items()
    }


def draw(sweep: Sweep, out: Path) -> list[str]:
    """Draw and check one board; what the checks found."""
    from reports.board.publish import publish_board
    from runners.tools.queries import recorded_keys

    keys = recorded_keys(sweep.name, str(sweep.store))
    done = publish_board(
        sweep.board, [], results=sweep.store, keys=keys, out=out, title=sweep.name, summary=sweep.about
    )
    return [f"{one.smell}, {one.where}: {one.what}" for one in done.smells] + [d.reason for d in done.damaged]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of a board's text formats, numbers at six digits: the last ones depend on the processor.

    Pictures depend on the fonts and libraries of the machine that draws them and are not compared.
    """
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in TEXT_FORMATS}
    return {name: hashlib.sha256(six_digits(text).encode()).hexdigest() for name, text in texts.items()}


def six_digits(text: str) -> str:
    """A text with every decimal fraction rounded to six significant digits."""

    def rounded(match: re.Match[str]) -> str:
        value = float(match[0])
        return f"{value:.6g}" if abs(value) > 1e-12 else "0"

    return re.sub(r"-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]\d+)", rounded, text)


def for_docs(text: str) -> str:
    """A board.md as docs/ keeps it: without the links to its figures, which are not committed."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("Figures: "))


def main() -> int:
    """Draw all boards; 1 if a check found something."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sweeps", nargs="*", help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "boards")
    parser.add_argument("--keep", action="store_true", help="leave docs/ and tests/golden/ as they are")
    options = parser.parse_args()
    known = sweeps()
    found = 0
    listed = GOLDEN / "boards.json"
    golden = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
    for name in options.sweeps or known:
        folder = options.out / name
        for smell in draw(known[name], folder):
            print(f"{name}: {smell}", file=sys.stderr)
            found += 1
        print(f"{name}: {folder / 'board.html'}")
        golden[name] = digests(folder)
        if not options.keep:
            _refresh(known[name], folder)
    if not options.keep:
        kept = {name: golden[name] for name in sorted(known) if name in golden}
        listed.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (options.out / "index.html").write_text(page(known, options.out), encoding="utf-8")
    return 1 if found else 0


def _refresh(sweep: Sweep, folder: Path) -> None:
    if sweep.in_docs:
        target = ROOT / "docs" / sweep.name / "board.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(for_docs((folder / "board.md").read_text(encoding="utf-8")), encoding="utf-8")
    if sweep.name == SMALL:
        for name in ("board.md", "board.csv"):
            target = GOLDEN / "board" / name
            target.parent.mkdir(exist_ok=True)
            target.write_text(six_digits((folder / name).read_text(encoding="utf-8")), encoding="utf-8")


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem; }
body { color: #1c2430; background: #fdfdfb; }
a { color: #0f6b4f; }
@media (prefers-color-scheme: dark) { body { color: #e6e9ee; background: #14181f; } a { color: #6fd3ae; } }
"""


def in_short(folder: Path) -> str:
    """Size and first rows of a board: ``36 rows in 1 table. First: 16 rows tie, the best at 100.0 %.``"""
    try:
        board = json.loads((folder / "board.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    sections = board["sections"]
    rows = sum(len(section["rows"]) for section in sections)
    text = f"{rows} rows in {len(sections)} table{'s' if len(sections) != 1 else ''}."
    ranked = [row for row in (sections[0]["rows"] if sections else ()) if row["rank"]]
    first = [row for row in ranked if row["rank"][0] == 1]
    if not first:
        return f"{text} No row is ranked."
    definitions = {column["key"]: column["definition"] for column in board["columns"]}
    key = board["board"]["rank"]
    value, definition = first[0]["cells"].get(key, {}).get("value"), definitions.get(key) or {}
    score = (
        "" if value is None else f" at {100 * value:.1f} %" if definition["unit"] == "fraction" else f" at {value:.4g}"
    )
    labels = first[0]["labels"]
    name = " / ".join(labels[axis] for axis in ("method", "quantization") if labels.get(axis) not in (None, "none"))
    who = f"{len(first)} rows tie, the best{score}" if len(first) > 1 else f"{name or 'none'}{score}"
    where = f" in {sections[0]['labels'].get('task', 'the first table')}" if len(sections) > 1 else ""
    return f"{text} First{where}: {who}."


def page(known: dict[str, Sweep], out: Path) -> str:
    """The page that links all boards, each with its size and its first rows."""
    items = "\n".join(
        f'<li><a href="{html.escape(s.name)}/board.html">{html.escape(s.name)}</a>: {html.escape(s.about)} '
        f"<small>{html.escape(in_short(out / s.name))}</small></li>"
        for s in known.values()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>peft-matrix: boards</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>peft-matrix</h1>\n"
        f"<p>Boards of the committed records.</p>\n<ul>\n{items}\n</ul>\n</main>\n</body>\n</html>\n"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Files of a folder that may be published: those that this program wrote, by its own lists and names.

A store has records and samples by their names; a board's folder has its formats and the figures that ``board.json``
names; a site has the files in its manifest. Links (also those in the path), hidden files and all other files are left
out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

BOARD_FILES = ("board.html", "board.md", "board.csv", "board.json", "board.tex", "lbom.json", "feed.xml", "badge.json")
FIGURE_KINDS = ("svg", "png", "pdf")
SITE_MANIFEST = "site.json"
MAX_MANIFEST_BYTES = 64 * 2**20
_RECORD = re.compile(r"records/[\w-]{2}/[\w-]+\.[\w-]+\.[a-z]+\.[0-9a-f]{12}\.json", re.ASCII)
_SAMPLES = re.compile(r"samples/[0-9a-f]{64}\.parquet")


def publishable(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Path in the repository to file, and the names of the files that are left out."""
    allowed: set[str] = set()
    everything = sorted(_regular(folder, folder))
    for name in everything:
        if _RECORD.fullmatch(name) or _SAMPLES.fullmatch(name):
            allowed.add(name)
        place, _, last = name.rpartition("/")
        prefix = f"{place}/" if place else ""
        if last == "board.json":
            figures = _names(folder / name, "figures")
            drawn = {f"{figure}.{kind}" for figure in figures for kind in FIGURE_KINDS}
            allowed |= {prefix + one for one in (*BOARD_FILES, *drawn)}
        elif last == "board.html":
            allowed.add(name)
        elif last == SITE_MANIFEST:
            allowed |= {name, *(prefix + one for one in _names(folder / name, "files"))}
    found = {name: folder / name for name in everything if name in allowed and name != "README.md"}
    return found, [name for name in everything if name not in allowed]


def _regular(folder: Path, root: Path) -> Iterator[str]:
    """Regular files below ``folder``, relative to ``root``; no link and no hidden name is followed or listed."""
    for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _regular(path, root)
        elif path.is_file():
            yield path.relative_to(root).as_posix()


def _names(manifest: Path, field: str) -> list[str]:
    """The names in a list of a JSON file; ``[]`` where there is no such list."""
    try:
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            return []
        listed = json.loads(manifest.read_text(encoding="utf-8"))[field]
        names = [one["name"] if isinstance(one, dict) else one for one in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)]

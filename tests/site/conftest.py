"""A site built once from a store with everything in it, and one walk of a real browser through it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.store.store import Store
from reports.apps.site import Part, build_site
from reports.apps.site.boarddata import board_data
from reports.apps.site.builder import cell_pages
from reports.apps.site.text import script
from reports.board.board import build, load_board
from reports.board.formats import to_html
from tests.site.making import HOSTILE_SWEEP, fill_store

HERE = Path(__file__).parent
MANY = 10_000
NODE = 20
WALK_S = 240  # a limit against hanging, not an expectation


def parts() -> list[Part]:
    return [Part(name, load_board("default", [])) for name in ("quickstart", "gpu", HOSTILE_SWEEP)]


@pytest.fixture(scope="session")
def site_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("site-store"))
    fill_store(store)
    return store


@pytest.fixture(scope="session")
def site(site_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    build_site(parts(), site_store, out)
    return out


@pytest.fixture(scope="session")
def big_board(site: Path, site_store: Store) -> Path:
    """The page of a board of 10,000 rows, made from a real board's rows over and over with other values."""
    records = [record for record in site_store.records()[0] if record.sweep == "quickstart"]
    table = build(load_board("default", []), records, site_store)
    data = board_data(table, cell_pages(table))
    section = data["sections"][0]
    verdict = next(at for at, column in enumerate(data["columns"]) if column["key"] == "learned")
    section["texts"] += ["learned", "no evidence"]
    rows = []
    for number in range(MANY):
        row = json.loads(json.dumps(section["rows"][number % len(section["rows"])]))
        row["id"] = f"{row['id']}-{number}"
        row["front"] = row["front"] and number < 100
        row["values"][verdict] = len(section["texts"]) - (2 if number < 300 else 1)
        for value in row["values"] + row["axes"]:
            if isinstance(value, list) and value[0] is not None:
                value[0] *= 1 + number % 97 / 1000
        rows.append(row)
    section["rows"] = rows
    folder = site / "big"
    folder.mkdir()
    (folder / "index.html").write_text((site / "quickstart" / "index.html").read_text())
    (folder / "data.js").write_text(script("board", data))
    return folder


@pytest.fixture(scope="session")
def walk(site: Path, site_store: Store, big_board: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Observations of a browser: one start of chromium, every page, every control (``walk.mjs``)."""
    chromium, node = shutil.which("chromium"), shutil.which("node")
    if chromium is None or node is None:
        pytest.skip("no chromium or no node here: scripts/setup.sh test installs them where it may")
    if not (HERE / "node_modules" / "playwright-core").is_dir():
        pytest.skip("playwright-core is not installed: run 'npm ci' in tests/site")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < NODE:
        pytest.skip(f"playwright-core needs node {NODE} or newer, this is {version}")
    records = [record for record in site_store.records()[0] if record.sweep == "quickstart"]
    (site / "plain.html").write_text(to_html.render(build(load_board("default", []), records, site_store), [], []))
    out = tmp_path_factory.mktemp("walk") / "walk.json"
    done = subprocess.run(
        [node, str(HERE / "walk.mjs"), chromium, str(site), str(out)], capture_output=True, text=True, timeout=WALK_S
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(out.read_text()))

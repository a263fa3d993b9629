"""The committed records: none is lost or changed by packing, they load, and their boards are what they were."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.store.packing import pack, unpack
from harness.store.store import Store
from scripts import boards

ROOT = boards.ROOT
REFERENCE = boards.REFERENCE
STORES = boards.stores()
SWEEPS = boards.sweeps()
# Taken of the loose files before they were first packed, in each store's folder, so without any code of the project:
#   find records samples -type f | LC_ALL=C sort | xargs sha256sum | sha256sum
LOOSE = {
    "cpu-2core": ("b937fe2f5be8ef22ef3e00df4c5a343d688fcb9aa6f3be20551b77af2be27c1d", 264),
    "cpu-2core-calibrated": ("c33ac65b92923d4418d82909e21de7a5bc6d487cce4ebdf212c3c75bdb01e04a", 33),
    "cpu-2core-claims": ("a4c8052a09ea6ec385c1b7f53c7db78be0a37b3f7215a291d13eed77ca8da588", 693),
    "cpu-2core-evidence": ("3ed790083063b7a55e910adbe93f45b5c0495073e07b4e66555c75320d38c1d1", 523),
    "cpu-2core-methods": ("56829e1532c98ac3dc74b33313794c5371dee40fb9949ad2b09a658195478763", 957),
    "cpu-2core-quantizers": ("04906e46219c1683317cd7cc8b04e38124409c168a2c3eea29c6d379f8e8c20e", 521),
    "cpu-2core-tasks": ("4b86c67cf1fe6610ebf7bdda45dde18206c6a7087d7f229cff53e8cb97144273", 16),
    "cpu-2core-temperature": ("694bc07cf02be41138b5acdc19396a77a413eaff70a1a7d5909323c7be34fd93", 72),
    "cpu-2core-tuning": ("ee162ef9c70b3c284a80fe9b952dcc71756ef4cb2a3ad77ed493517098b00d78", 488),
    # Taken of what `results unpack` gave back: this store was packed before its files were counted.
    "h100-sxm": ("574e5033ab1ff808f04157122ddf04daddb5b18a081578a1d796f21d10c0fae2", 17),
    "h200-sxm": ("d3b6a40bdbd216c06e67dff524559e6f915fc5871e7a7d6face70a71b592ef03", 125),
}


def copy_of(name: str, to: Path) -> Store:
    (to / "segments").mkdir(parents=True)
    for path in (REFERENCE / name / "segments").iterdir():
        (to / "segments" / path.name).write_bytes(path.read_bytes())
    return Store(to)


def sums(root: Path) -> tuple[str, int]:
    """Output of the command above ``LOOSE``, and the number of files."""
    files = sorted(p.relative_to(root).as_posix() for top in ("records", "samples") for p in (root / top).rglob("*.*"))
    lines = [f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest(), len(files)


def test_the_index_lists_every_store() -> None:
    assert set(STORES) == {path.name for path in REFERENCE.iterdir() if path.is_dir()}
    assert set(LOOSE) == set(STORES)


@pytest.mark.parametrize("name", LOOSE)
def test_unpacking_gives_back_every_committed_byte(name: str, tmp_path: Path) -> None:
    store = copy_of(name, tmp_path)
    (packed,) = (tmp_path / "segments").iterdir()
    unpack(store)
    assert sums(tmp_path) == LOOSE[name]
    done = pack(store)
    assert done.segment == f"segments/{packed.name}"
    assert done.records + done.samples == LOOSE[name][1]


@pytest.mark.parametrize("name", STORES)
def test_every_committed_record_and_its_samples_load(name: str) -> None:
    store = Store(REFERENCE / name)
    records, damaged = store.records()
    assert not damaged
    about = STORES[name]
    assert {r.sweep for r in records} == {*about["sweeps"], *about.get("without_board", ())}
    for record in records:
        assert record.outcome.status in {"ok", "unsupported", "diverged"}
        if record.samples is not None:
            assert store.samples(record).num_rows == record.samples.rows


def test_committed_records_have_no_local_paths() -> None:
    """Logs and reasons go into records, and records are published."""
    places = re.compile(r"(?<![\w.>~:/-])/(?!sys/|proc/|dev/)[\w.-]+/[\w.-]+/[\w.-]+")
    named, seen = {}, 0
    for name in STORES:
        files = Store(REFERENCE / name).files
        for folder, file in files.listing("records"):
            seen += 1
            if found := places.search((files.read(f"{folder}/{file}") or b"").decode()):
                named[f"{name}/{file}"] = found.group()
    assert not named
    assert seen >= 1992


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_board_is_what_it_was_and_passes_its_checks(sweep: str, tmp_path: Path) -> None:
    """All text formats by digest. ``make boards`` in this and in an earlier checkout draws two folders to compare."""
    assert boards.draw(SWEEPS[sweep], tmp_path) == []
    golden = json.loads((boards.GOLDEN / "boards.json").read_text(encoding="utf-8"))
    if sweep == boards.SMALL:  # kept whole: here a change can be read
        for name in ("board.md", "board.csv"):
            drawn, kept = ((folder / name).read_text("utf-8") for folder in (tmp_path, boards.GOLDEN / "board"))
            assert boards.six_digits(drawn) == kept
    if SWEEPS[sweep].in_docs:
        page = (ROOT / "docs" / sweep / "board.md").read_text(encoding="utf-8")
        assert boards.for_docs((tmp_path / "board.md").read_text(encoding="utf-8")) == page, "run: make boards"
    assert boards.digests(tmp_path) == golden[sweep], "if this is meant to change: make boards"


def test_a_board_of_loose_records_is_that_of_packed_ones(tmp_path: Path) -> None:
    sweep = SWEEPS[boards.SMALL]
    store = copy_of(sweep.store.name, tmp_path / "loose")
    unpack(store)
    assert boards.draw(sweep._replace(store=tmp_path / "loose"), tmp_path / "board") == []
    golden = json.loads((boards.GOLDEN / "boards.json").read_text(encoding="utf-8"))
    assert boards.digests(tmp_path / "board") == golden[sweep.name]


def test_generated_files_are_not_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    there = [file for file in files if file.is_file()]
    drawn = {"board.html", "board.tex", "board.json", "feed.xml", "badge.json", "lbom.json"}
    assert not [file for file in there if file.name in drawn or file.suffix in {".pdf", ".svg"}]
    assert len([file for file in there if file.match("docs/*/board.md")]) <= 6
    assert len(list((ROOT / "docs" / "images").iterdir())) <= 6
    assert len(there) <= 800
    assert sum(file.stat().st_size for file in there) <= 25_000_000


def test_committed_verdicts_match_the_committed_records(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "peft_matrix.cli", "reproduce", "--check", "--json"]
    where = ["--results", str(REFERENCE / "cpu-2core-claims"), "--out", str(tmp_path)]
    done = subprocess.run([*command, *where], capture_output=True, text=True, cwd=ROOT, check=True)
    rows = json.loads(done.stdout)
    assert (tmp_path / "reproduction.md").read_text(encoding="utf-8") == (ROOT / "docs" / "reproduction.md").read_text(
        encoding="utf-8"
    ), "run: peft-matrix reproduce --check --results results/reference/cpu-2core-claims --out docs"
    assert len(rows) > 100
    assert {"claim", "printed", "measured", "interval", "verdict", "flags", "records"} <= set(rows[0])

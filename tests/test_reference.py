"""The committed records: they load, their samples are theirs, and the committed boards are what they render to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.store.store import Store
from reports.board.publish import publish_board
from runners.tools.queries import recorded_keys

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference"
# sweep: the store with its records, the board that is drawn from them. Sweeps that share cells have separate stores.
SWEEPS = {
    "quickstart": ("cpu-2core", "default"),
    "real-encoder": ("cpu-2core", "classification"),
    "all-quantizers": ("cpu-2core-quantizers", "quantization"),
    "all-quantizers-encoder": ("cpu-2core-quantizers", "quantization"),
    "temperature": ("cpu-2core-temperature", "quantization"),
    "claims-nano": ("cpu-2core-claims", "default"),
    "real-tasks-nano": ("cpu-2core-tasks", "default"),
    "claims-encoder": ("cpu-2core-claims", "classification"),
    "fair-methods": ("cpu-2core-tuning", "classification"),
    "all-methods": ("cpu-2core-methods", "default"),
    "all-methods-encoder": ("cpu-2core-methods", "classification"),
    "calibrated": ("cpu-2core-calibrated", "quantization"),
}
NO_BOARD = {"counts"}


@pytest.mark.parametrize("place", sorted(p.name for p in REFERENCE.iterdir() if p.is_dir()))
def test_every_committed_record_and_its_samples_load(place: str) -> None:
    store = Store(REFERENCE / place)
    records, damaged = store.records()
    assert not damaged
    assert {r.sweep for r in records} <= {sweep for sweep, (home, _) in SWEEPS.items() if home == place} | NO_BOARD
    for record in records:
        assert record.outcome.status in {"ok", "unsupported", "diverged"}
        if record.samples is not None:
            assert store.samples(record).num_rows == record.samples.rows


def test_committed_records_have_no_local_paths() -> None:
    """Logs and reasons go into records, and records are published."""
    places = re.compile(r"(?<![\w.>~:/-])/(?!sys/|proc/|dev/)[\w.-]+/[\w.-]+/[\w.-]+")
    named = {
        str(file.relative_to(REFERENCE)): found.group()
        for file in REFERENCE.rglob("*.json")
        if (found := places.search(file.read_text(encoding="utf-8")))
    }
    assert not named


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_committed_board_is_what_its_records_render_to(sweep: str, tmp_path: Path) -> None:
    """Text formats only: pictures depend on the fonts and libraries of the machine that draws them."""
    place, board = SWEEPS[sweep]
    store = REFERENCE / place
    publish_board(board, [], results=store, keys=recorded_keys(sweep, str(store)), out=tmp_path, title=sweep)
    for name in ("board.md", "board.csv", "board.json"):
        committed = (ROOT / "docs" / sweep / name).read_text(encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == committed, (
            f"run: peft-matrix board {sweep} --results results/reference/{place} --from-records --out docs/{sweep}"
        )


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

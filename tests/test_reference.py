"""The committed records: they load, their samples are theirs, and the committed boards are what they render to."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.store import Store
from reports.publish import publish_board
from runners.listing import recorded_keys

ROOT = Path(__file__).parents[1]
STORE = ROOT / "results" / "reference" / "cpu-2core"
BOARDS = {"quickstart": "default", "real-encoder": "classification"}


def test_every_committed_record_and_its_samples_load() -> None:
    store = Store(STORE)
    records, damaged = store.records()
    assert not damaged
    assert {r.sweep for r in records} == set(BOARDS)
    for record in records:
        assert record.outcome.status in {"ok", "unsupported"}
        if record.samples is not None:
            assert store.samples(record).num_rows == record.samples.rows


@pytest.mark.parametrize("sweep", BOARDS)
def test_a_committed_board_is_what_its_records_render_to(sweep: str, tmp_path: Path) -> None:
    """Text formats only: pictures depend on the fonts and libraries of the machine that draws them."""
    keys = recorded_keys(sweep, str(STORE))
    publish_board(BOARDS[sweep], [], results=STORE, keys=keys, out=tmp_path, title=sweep)
    for name in ("board.md", "board.csv", "board.json"):
        committed = (ROOT / "docs" / sweep / name).read_text(encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == committed, (
            f"run: peft-matrix board {sweep} --results results/reference/cpu-2core --from-records --out docs/{sweep}"
        )

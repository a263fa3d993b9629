"""Quantities from stored samples and from runs at one shared learning rate: by hand, and on a board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import stats
from harness.store.store import Store, samples_ref, samples_to_parquet
from reports.board.board import BoardTable, build, load_board
from reports.data.derived import calibration_error, cut_items, negative_flips
from tests.reports.making import cell, ok_record, sample_rows


def table_of(rows: list[dict[str, Any]], tmp_path: Path) -> Any:
    store = Store(tmp_path)
    data = samples_to_parquet(rows)
    record, _ = ok_record(cell(), with_samples=False)
    record = record.model_copy(update={"samples": samples_ref(data)})
    store.append(record, data)
    return store.samples(record)


def test_the_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([1.0, 0.0, 1.0, 1.0])
    # two bins in use: |0.5 - 0.95| and |1.0 - 0.55|, two items of four each
    assert stats.calibration_error(confidence, right).error == pytest.approx(0.45)
    assert stats.calibration_error(np.array([1.0, 1.0]), np.array([1.0, 1.0])).error == 0.0


def test_calibration_needs_the_probability_of_every_option(tmp_path: Path) -> None:
    plain = sample_rows("adapted", [True, False])
    assert calibration_error(table_of(plain, tmp_path / "a")) is None
    sure = [{**row, "logp_choices": [float(np.log(0.9)), float(np.log(0.1))]} for row in plain]
    assert calibration_error(table_of(sure, tmp_path / "b")) == pytest.approx(0.4)
    # log-probabilities of whole options need not sum to one: only their shares count
    scaled = [{**row, "logp_choices": [logp - 7.0 for logp in row["logp_choices"]]} for row in sure]
    assert calibration_error(table_of(scaled, tmp_path / "c")) == pytest.approx(0.4)


def test_flips_are_counted_against_the_same_items_of_the_base(tmp_path: Path) -> None:
    base, after = [True, True, True, False], [True, False, False, True]
    rows = [*sample_rows("base", base), *sample_rows("retained", after)]
    assert negative_flips(table_of(rows, tmp_path / "a")) == 0.5  # though the mean fell by a quarter only
    assert negative_flips(table_of(sample_rows("adapted", base), tmp_path / "b")) is None


def test_inputs_that_were_cut_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "cut": number < 3} for number, row in enumerate(sample_rows("adapted", [True] * 5))]
    assert cut_items(table_of(rows, tmp_path)) == 3.0


def board_with_shared_rate(tmp_path: Path, shared: dict[str, float]) -> BoardTable:
    store = Store(tmp_path)
    for method, tuned in {"full": 0.9, "lora": 0.7, "ia3": 0.5}.items():
        part = cell(method)["method"]
        facts = {"tuning": {"lr_at_edge": method == "ia3"}, "contamination": {"test_items_in_train": 2, "items": []}}
        for seed in (0, 1):
            final = {**cell(method, seed=seed), "role": "result", "tuning": {"learning_rates": 5}}
            record, data = ok_record(final, accuracy=tuned)
            environment = {**record.environment, "facts": facts}
            store.append(record.model_copy(update={"environment": environment}), data)
            at_shared = {**cell(method, seed=seed), "role": "shared-lr", "method": {**part, "learning_rate": 5e-2}}
            record, data = ok_record(at_shared, accuracy=shared[method])
            store.append(record, data)
    return build(load_board("default", []), store.records()[0], store)


def test_a_board_shows_what_tuning_was_worth(tmp_path: Path) -> None:
    section = board_with_shared_rate(tmp_path, {"full": 0.2, "lora": 0.4, "ia3": 0.6}).sections[0]
    assert len(section.rows) == 3  # runs at the shared rate are no rows
    shown = {row.labels["method"]: row.cells["shared_rate_accuracy"] for row in section.rows}
    assert shown["full"].value == pytest.approx(0.2, abs=0.08)
    assert shown["full"].seeds == 2
    assert "learning rate 0.05" in section.caption
    assert "is -1.00; ia3 leads there" in section.caption
    same = board_with_shared_rate(tmp_path / "same", {"full": 0.6, "lora": 0.4, "ia3": 0.2}).sections[0]
    assert "is 1.00; full leads there" in same.caption


def test_a_board_names_leaks_and_rates_at_the_edge(tmp_path: Path) -> None:
    section = board_with_shared_rate(tmp_path, {"full": 0.6, "lora": 0.4, "ia3": 0.2}).sections[0]
    assert ("test items also in train", "2") in section.conditions
    notes = {row.labels["method"]: row.notes for row in section.rows}
    assert [method for method, told in notes.items() if any("edge of the rates" in note for note in told)] == ["ia3"]

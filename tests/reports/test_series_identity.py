"""A series survives another order of a set, a moved revision and an added default; planted shifts are found."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from harness.store.store import Store
from peft_matrix.cli import app
from reports.apps.regressions import analyze, identity
from tests.quality.regressions import RUNS, SUITE_ITEMS
from tests.reports.making import ENVIRONMENT, cell, ok_record

needs_runs = pytest.mark.skipif(
    not RUNS.is_dir(), reason="the published runs are not on this machine (PEFT_MATRIX_DATA)"
)


def half_a_year_later(folder: Path, lost: float) -> int:
    """The published files as a later version of the suite writes them; returns how many."""
    rng, order = np.random.default_rng(5), random.Random(5)
    folder.mkdir()
    paths = sorted(RUNS.rglob("*.json"))
    for path in paths:
        content = json.loads(path.read_text())
        content["run_info"]["created_at"] = "2027-01-30T01:00:00+00:00"
        content["meta_info"]["model_info"]["sha"] = "e" * 40
        peft = content["run_info"].get("peft_config") or {}
        for value in peft.values():
            if isinstance(value, list):
                order.shuffle(value)
        if peft:
            peft["a_later_field"] = 1
        for row in content["train_info"]["metrics"]:
            if "test accuracy" in row:
                right = round((row["test accuracy"] - lost) * SUITE_ITEMS) + int(rng.integers(-4, 5))
                row["test accuracy"] = max(0, right) / SUITE_ITEMS
        (folder / path.name).write_text(json.dumps(content))
    return len(paths)


def looked_at(store: Path, *sources: Path) -> dict[str, list[dict[str, Any]]]:
    for source in sources:
        done = CliRunner().invoke(app, ["import", "peft-method-comparison", str(source), "--results", str(store)])
        assert done.exit_code == 0, done.output
    said = CliRunner().invoke(app, ["regressions", "--results", str(store), "--json"]).stdout
    return json.loads(said)  # type: ignore[no-any-return]


@needs_runs
@pytest.mark.parametrize("lost", [0.015, 0.0])
def test_two_imports_half_a_year_apart_are_one_history(tmp_path: Path, lost: float) -> None:
    files = half_a_year_later(tmp_path / "later", lost)
    report = looked_at(tmp_path / "store", RUNS, tmp_path / "later")
    found = [f for f in report["pooled"] if f["metric"] == "accuracy"]
    assert report["ended"] == []
    if not lost:
        assert found == []
        return
    (one,) = found
    assert one["pairs"] >= files - 8
    assert one["effect"] == pytest.approx(-lost, abs=0.004)
    assert one["low"] < -lost < one["high"]
    assert any(suspect.startswith("cell model.revision") for suspect in one["suspects"])
    assert any(suspect == "cell method.params.a_later_field absent → 1" for suspect in one["suspects"])


def planted(root: Path, lost: float, cells: int = 40) -> None:
    """Our own records: a task edited from version 1 to 2, a library's new version, and a new default."""
    rng = np.random.default_rng(9)
    for number in range(cells):
        rate = 0.5 + 0.01 * number
        for when, version, torch, more, change in (
            ("2026-01-01", 1, "2.13.0", {}, 0.0),
            ("2026-06-01", 2, "2.14.0", {"use_new": False}, -lost),
        ):
            of = cell(f"m{number}", task={"version": version, "digest": str(version) * 64})
            of["method"]["params"] = {"modules": ["q", "v"] if version == 1 else ["v", "q"], **more}
            environment = {**ENVIRONMENT, "packages": {"torch": torch}}
            record, _ = ok_record(of, environment=environment, with_samples=False, items=1000)
            value = float(rng.binomial(1000, rate + change)) / 1000
            accuracy = record.metrics["accuracy"].model_copy(update={"value": value, "n": 1000})
            changed = {"metrics": {**record.metrics, "accuracy": accuracy}, "fingerprint": str(version) * 64}
            Store(root).append(record.model_copy(update={**changed, "finished": f"{when}T00:00:00+00:00"}))


def test_our_own_records_over_an_edit_a_bump_and_a_new_default(tmp_path: Path) -> None:
    planted(tmp_path, lost=0.015)
    report = analyze.look(str(tmp_path))
    (found,) = [f for f in report.pooled if f.metric == "accuracy"]
    assert found.pairs == 40
    assert found.low < -0.015 < found.high < 0
    assert {"torch 2.13.0 → 2.14.0", "cell task.version 1 → 2"} <= set(found.suspects)
    assert "cell method.params.use_new absent → false" in found.suspects
    assert not any("modules" in suspect for suspect in found.suspects), "a set in another order is no change"
    assert (report.ended, report.began) == ([], [])


def test_nothing_planted_is_not_found(tmp_path: Path) -> None:
    planted(tmp_path, lost=0.0)
    report = analyze.look(str(tmp_path))
    assert [f for f in report.pooled if f.metric == "accuracy"] == []
    assert len(report.environment_changes) == 1


def test_another_value_of_a_parameter_is_another_series(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for when, rank in (("2026-01-01", 8), ("2026-06-01", 16)):
        of = cell("lora")
        of["method"]["params"] = {"r": rank}
        store.append(*ok_record(of, finished=f"{when}T00:00:00+00:00"))
    report = analyze.look(str(tmp_path))
    assert [(one.label, one.differs) for one in report.ended] == [
        ("nano.lora.none.reverse.s0", ("method.params.r 8 → 16",))
    ]
    assert report.began == ["nano.lora.none.reverse.s0"]
    assert report.environment_changes == []


def test_two_cells_of_one_label_at_one_time_stay_apart() -> None:
    cells = {"a": {"method": {"r": 8}}, "b": {"method": {"r": 8, "more": 1}}}
    spans = [("a", "2026-01-01", "2026-03-01"), ("b", "2026-02-01", "2026-04-01")]
    found, ends = identity.chains(spans, cells.__getitem__)
    assert [chain.keys for chain in found] == [["a"], ["b"]]
    assert ends == []


LATER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a field that was null": ({"training": {"amp": None}}, {"training": {"amp": False}}),
    "a field that is no more stated": ({"evaluation": {"batch_size": 64}}, {"evaluation": {"batch_size": None}}),
    "more items with a new version": ({"task": {"version": 1}}, {"task": {"version": 2, "test_items": 205}}),
}


@pytest.mark.parametrize("change", LATER)
def test_what_a_later_file_states_otherwise_cuts_no_series(change: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for when, parts in zip(("2026-01-01", "2026-06-01"), LATER[change], strict=True):
        store.append(*ok_record(cell("lora", **parts), finished=f"{when}T00:00:00+00:00"))
    report = analyze.look(str(tmp_path))
    assert (report.ended, report.began) == ([], [])
    (found,) = report.environment_changes
    assert any(suspect.startswith("cell ") for suspect in found.suspects)


def test_more_items_without_a_new_version_begin_a_series(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for when, items in (("2026-01-01", 200), ("2026-06-01", 300)):
        store.append(*ok_record(cell("lora", task={"test_items": items}), finished=f"{when}T00:00:00+00:00"))
    assert len(analyze.look(str(tmp_path)).ended) == 1


def renamed(root: Path, *labels: tuple[str, str]) -> None:
    """Two dates, half a year apart; a cell has the first label of its pair, then the second, and eight points less."""
    for number, pair in enumerate(labels):
        for when, label, points in zip(("2026-01-01", "2026-06-01"), pair, (0.0, 0.08), strict=True):
            of = cell(label, task={"version": 1 if when < "2026-06" else 2})
            of["method"] |= {"name": "lora", "params": {"r": number}}
            accuracy = 0.5 + 0.03 * number - points
            finished = f"{when}T00:00:00+00:00"
            Store(root).append(ok_record(of, accuracy=accuracy, with_samples=False, finished=finished)[0])


def test_a_renamed_cell_continues_its_series(tmp_path: Path) -> None:
    renamed(tmp_path, *((f"lora{n}", f"lora-rank{n}") for n in range(10)), ("kept", "kept"))
    report = analyze.look(str(tmp_path))
    assert (report.ended, report.began) == ([], [])
    assert len(report.renamed) == 10
    assert ("nano.lora0.none.reverse.s0", "nano.lora-rank0.none.reverse.s0") in report.renamed
    (found,) = [f for f in report.pooled if f.metric == "accuracy"]
    assert found.pairs == 11
    assert "cell task.version 1 → 2" in found.suspects
    assert "10 renamed cells continue" in analyze.to_markdown(report)


def test_a_label_that_two_cells_could_have_had_is_not_followed() -> None:
    at = {"a": {"r": 1}, "b": {"r": 1, "more": 2}, "c": {"r": 1, "more": 2, "further": 3}}
    spans = [
        identity.LabelSpan("x", "a", "a", "2026-01-01", "2026-01-01"),
        identity.LabelSpan("y", "b", "b", "2026-01-01", "2026-01-01"),
        identity.LabelSpan("z", "c", "c", "2026-06-01", "2026-06-01"),
    ]
    assert identity.renames(spans, at.__getitem__) == []
    assert identity.renames(spans[1:], at.__getitem__) == [(0, 1)]
    assert identity.renames(spans[::-2], at.__getitem__) == [(1, 0)], "the order of the list means nothing"


def test_renames_are_looked_for_once_a_series_and_not_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 300
    spans = [
        identity.LabelSpan(f"s{i}", f"k{i}", f"k{i}", f"2026-01-{1 + i % 9:02d}", "2026-01-20") for i in range(count)
    ]
    asked = 0

    def after(one: identity.LabelSpan, other: identity.LabelSpan) -> bool:
        nonlocal asked
        asked += 1
        return one.first[:10] > other.last[:10]

    monkeypatch.setattr(identity, "_after", after)
    assert identity.renames(spans, {}.__getitem__) == []
    assert asked <= 4 * count

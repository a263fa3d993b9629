"""Regressions: planted changes are found through the real store, and quiet nights stay quiet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from harness.errors import UserError
from harness.metrics import reading
from harness.store.store import Store
from peft_matrix.cli import app
from reports.apps.regressions import analyze, decisions
from reports.apps.regressions.analyze import to_markdown
from reports.apps.regressions.confirm_reruns import confirm, provisional
from reports.apps.regressions.detect import detect
from reports.apps.regressions.series import History, Series, SeriesPoint
from reports.data.samples import samples_of_digests, stored_samples
from tests.quality.regressions import CASES, RUNS, SUITE_ITEMS, as_history, drawn_nights, quiet, truths
from tests.reports.making import ENVIRONMENT, cell, failed_record, ok_record

OLD = {**ENVIRONMENT, "packages": {"torch": "2.13.0", "peft": "0.21.2"}}
NEW = {**ENVIRONMENT, "packages": {"torch": "2.14.0", "peft": "0.21.2"}}


def night(root: Path, number: int, *, cells: int = 12, environment: dict[str, Any] = OLD, **fields: Any) -> None:
    """One night's records: the same cells each time, with a little noise in the times."""
    store, rng = Store(root), np.random.default_rng(number)
    for index in range(cells):
        record, data = ok_record(
            cell(f"m{index}"),
            environment=environment,
            fingerprint=("b" if environment is NEW else "a") * 64,
            finished=f"2026-01-{number:02d}T00:00:00+00:00",
            step_ms=10 + index + fields.get("slower", 0) * (index == 0) + rng.normal(0, 0.05),
            accuracy=0.6 + 0.02 * index - fields.get("worse", 0),
        )
        store.append(record, data)


def test_quiet_nights_raise_nothing(tmp_path: Path) -> None:
    for number in range(1, 8):
        night(tmp_path, number)
    report = analyze.look(str(tmp_path))
    assert report.as_json()["cells"] == []
    assert not report.alarmed
    assert report.looked_at["with_history"] > 0
    assert "0 cells and 0 matrix-wide changes got worse" in to_markdown(report)
    rate = analyze.false_alarms(analyze.read(str(tmp_path)), rounds=20)
    assert rate is not None
    assert rate.low < 0.3


def test_items_from_one_file_give_the_same_report(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        night(tmp_path, number, worse=0.1 * (number == 3))
    store, found = Store(tmp_path), analyze.read(str(tmp_path))
    newest = {point.record for one in found.series for point in one.points[-2:]}
    apart = detect(found, samples=stored_samples(store, found.samples.get))
    for first in (newest, sorted(newest)[:5]):  # what was not named is read from its own file
        together = detect(found, samples=samples_of_digests(store, found.samples, first, fewest=1))
        assert together.as_json() == apart.as_json()
    assert (tmp_path / "index" / "samples.parquet").is_file()
    assert apart.flips


def test_slower_cell_is_provisional_until_reruns_confirm(tmp_path: Path) -> None:
    for number in range(1, 8):
        night(tmp_path, number)
    night(tmp_path, 8, slower=4)
    report = analyze.look(str(tmp_path))
    steps = [f for f in report.cells if f.metric == "step_ms"]
    assert [f.label for f in steps] == ["nano.m0.none.reverse.s0"]
    assert steps[0].effect == pytest.approx(0.4, abs=0.05)
    for number in range(9, 14):
        night(tmp_path, number, slower=4)
    judged = confirm(provisional(steps), analyze.read(str(tmp_path)))
    assert [f.kind for f in judged] == ["confirmed"]
    other = tmp_path / "other"
    for number in range(1, 14):
        night(other, number, slower=4 * (number == 8))
    assert [f.kind for f in confirm(provisional(steps), analyze.read(str(other)))] == ["noise"]


def test_pooled_drop_is_found_with_the_change_as_suspect(tmp_path: Path) -> None:
    for number in range(1, 4):
        night(tmp_path, number)
    night(tmp_path, 4, environment=NEW, worse=0.03)
    report = analyze.look(str(tmp_path)).as_json()
    change = report["environment_changes"]
    assert [(c["cells"], c["suspects"]) for c in change] == [(12, ("torch 2.13.0 → 2.14.0",))]
    found = {f["metric"]: f for f in report["pooled"]}
    assert found["accuracy"]["pairs"] == 12
    assert found["accuracy"]["effect"] == pytest.approx(-0.03, abs=0.02)
    assert found["accuracy"]["before"] > found["accuracy"]["after"]
    assert found["accuracy"]["suspects"] == ("torch 2.13.0 → 2.14.0",)
    assert found["accuracy"]["p"] < 0.01


def test_lost_answers_are_counted_with_or_without_alarm(tmp_path: Path) -> None:
    for number in range(1, 3):
        night(tmp_path, number)
    same = analyze.look(str(tmp_path)).flips
    assert {(f.lost, f.gained) for f in same} == {(0, 0)}
    assert len([f for f in same if f.metric == "accuracy"]) == 12
    night(tmp_path, 3, worse=0.03)
    report = analyze.look(str(tmp_path))
    store = {record.id: record for record in Store(tmp_path).records()[0]}
    for flip in (f for f in report.flips if f.metric == "accuracy"):
        before, after = (store[name].metrics["accuracy"].value for name in flip.records)
        assert flip.lost - flip.gained == round(flip.n * (before - after)) > 0
    answers = sum(f.n for f in report.flips)
    assert f" of {answers:,} answers were lost" in to_markdown(report)
    assert report.as_json()["flips"][0]["n"] == report.flips[0].n


def test_improvements_failures_and_decisions(tmp_path: Path) -> None:
    for number in range(1, 4):
        night(tmp_path, number)
    night(tmp_path, 4, worse=-0.3)
    store = Store(tmp_path)
    store.append(failed_record(cell("m3"), "oom", reason="out of memory", finished="2026-01-05T00:00:00+00:00"))
    report = analyze.look(str(tmp_path))
    better = {f.metric for f in report.improvements}
    assert "accuracy" in better
    assert [(f.kind, f.metric) for f in report.cells if f.kind == "status"] == [("status", "status")]
    assert "oom" in to_markdown(report)
    with pytest.raises(ValueError, match="why"):
        decisions.Decision(cells="*", since="2026-01-04T00:00:00", why="")
    decisions.record(
        Store(tmp_path), decisions.Decision(metric="accuracy", since="2026-01-04T00:00:00+00:00", why="new data")
    )
    after = analyze.look(str(tmp_path))
    assert "accuracy" not in {f.metric for f in after.improvements}
    (tmp_path / decisions.FILE).write_text("decisions: [{cells: 1}]")
    with pytest.raises(UserError, match=r"baselines\.yaml"):
        analyze.look(str(tmp_path))


def test_a_series_is_cut_where_the_environment_changed() -> None:
    points = tuple(SeriesPoint(f"{i:02d}", str(i), 1.0, f) for i, f in enumerate("aabbba"))
    series = Series("k", "l", "step_ms", "m", points)
    assert [p.record for p in series.segment()] == ["5"]
    assert [p.record for p in series.before_segment()] == ["2", "3", "4"]
    assert Series("k", "l", "step_ms", "m", points[:2]).before_segment() == ()


@pytest.mark.parametrize("name", ["one cell 15 % slower", "all cells 1 point worse, new environment"])
def test_the_simulated_histories_are_judged(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    assert case.plant is not None
    assert case.found is not None
    found = 0
    for number in range(5):
        values = quiet(np.random.default_rng([number, 3]))
        case.plant(values)
        found += case.found(detect(as_history(values, case.new_environment), drift=False))
    assert found >= 4


def test_a_drift_is_dated() -> None:
    values = np.concatenate([np.full(8, 10.0), np.full(7, 13.0)]) + np.random.default_rng(0).normal(0, 0.1, 15)
    points = tuple(SeriesPoint(f"2026-01-{i + 1:02d}", str(i), float(v), "a") for i, v in enumerate(values))
    report = detect(History((Series("k", "cell", "step_ms", "m", points),), {}, {}, {}))
    assert [(f.kind, f.since) for f in report.cells if f.kind == "drift"] == [("drift", "2026-01-09")]


def drifting(values: list[float], metric: str = "step_ms") -> History:
    points = tuple(SeriesPoint(f"2026-01-{i + 1:02d}", str(i), v, "a") for i, v in enumerate(values))
    return History((Series("k", "cell", metric, "m", points),), {}, {}, {})


@pytest.mark.parametrize(("again", "word"), [(13.0, "confirmed"), (10.0, "noise")])
def test_a_change_point_is_run_again_like_a_level(again: float, word: str) -> None:
    rng = np.random.default_rng(0)
    values = [10 + rng.normal(0, 0.1) for _ in range(8)] + [13 + rng.normal(0, 0.1) for _ in range(7)]
    drifts = [f for f in detect(drifting(values)).cells if f.kind == "drift"]
    suspected = provisional(drifts)
    assert suspected == drifts != []
    rerun = values + [again + rng.normal(0, 0.1) for _ in range(5)]
    (judged,) = confirm(suspected, drifting(rerun))
    assert judged.kind == word
    if word == "confirmed":
        assert judged.effect == pytest.approx(0.3, abs=0.05), (
            "against the values before the change, not the median of all"
        )


def test_false_alarms_count_change_points(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []

    def watched(found: History, **options: Any) -> Any:
        report = detect(found, **options)
        kinds.extend(f.kind for f in (*report.cells, *report.improvements))
        return report

    monkeypatch.setattr(analyze, "detect", watched)
    values = [10.0] * 4 + [11.0] * 4  # one order in 35 has all of one level first
    rate = analyze.false_alarms(drifting(values), rounds=400)
    assert rate is not None
    assert "drift" in kinds
    assert rate.high > 0.01


@pytest.mark.parametrize("sd", [0.02, 0.05])
def test_a_common_night_effect_is_no_shift_of_the_matrix(sd: float) -> None:
    alarms = 0
    for number in range(20):
        values = quiet(np.random.default_rng([number, 5]), sd)
        report = detect(as_history(values, 0), drift=False)
        alarms += any(f.metric == "step_ms" for f in (*report.pooled, *report.improvements) if hasattr(f, "pairs"))
    assert alarms <= 2, "a shift within the spread of the nights before"


def test_a_slow_night_is_no_news_of_one_cell() -> None:
    values = quiet(np.random.default_rng(3), 0.002)
    values["step_ms"][:, -1] *= 1.06
    assert detect(as_history(values, 0)).cells == []
    values["step_ms"][7, -1] *= 1.15
    alone = [f for f in detect(as_history(values, 0)).cells if f.kind == "level"]
    assert [(f.label, f.metric) for f in alone] == [("cell 7", "step_ms")]
    for few in (7, 8):  # fewer cells say nothing about what a night has in common
        some = {name: table[:few] for name, table in values.items()}
        found = {f.label for f in detect(as_history(some, 0)).cells if f.kind == "level"}
        assert (len(found) == 1) is (few == 8), found


def test_two_nights_cannot_show_a_shift_of_all_times() -> None:
    """A night's load slows all cells at once, and with one night before its spread is not known."""
    undecided = 0
    for number in range(20):
        values = quiet(np.random.default_rng([number, 6]), 0.05)
        report = detect(as_history(values, 0, nights=2))
        assert not [f for f in (*report.pooled, *report.improvements) if f.metric == "step_ms"]
        undecided += [f.metric for f in report.undecided] == ["step_ms"]
    assert undecided > 5, "it is named, without an alarm"
    assert "Perhaps only the load of one night" in to_markdown(report)
    assert report.as_json()["undecided"][0]["metric"] == "step_ms"


def test_a_drop_long_after_a_change_of_environment_is_found() -> None:
    values = quiet(np.random.default_rng(11))
    values["accuracy"][:, -1] -= 0.02
    (found,) = detect(as_history(values, 6), drift=False).pooled
    assert (found.metric, found.kind, found.pairs) == ("accuracy", "night", 40)
    assert found.low < -0.02 < found.high


def test_times_with_a_skewed_spread_raise_no_drift() -> None:
    rng = np.random.default_rng(3)
    table = 10 * np.exp(rng.normal(0, 1, (60, 40)))
    series = []
    for cell_, row in enumerate(table):
        points = tuple(SeriesPoint(f"2026-01-{i:02d}", f"{cell_} {i}", float(v), "a") for i, v in enumerate(row))
        series.append(Series(str(cell_), str(cell_), "step_ms", "m", points))
    report = detect(History(tuple(series), {}, {}, {}))
    assert [f for f in (*report.cells, *report.improvements) if f.kind == "drift"] == []


def test_a_commit_is_a_suspect_without_cutting_the_series(tmp_path: Path) -> None:
    for number in range(1, 4):
        night(tmp_path, number)
    night(tmp_path, 4, environment={**OLD, "harness": {"commit": "f" * 40}}, worse=0.03)
    report = analyze.look(str(tmp_path))
    (found,) = [f for f in report.pooled if f.metric == "accuracy"]
    assert (found.kind, report.environment_changes) == ("night", [])
    assert f"commit of peft-matrix 0123456789ab → {'f' * 12}" in found.suspects


def test_records_without_a_date_have_no_order(tmp_path: Path) -> None:
    for accuracy in (0.9, 0.3):
        Store(tmp_path).append(*ok_record(cell("m0"), accuracy=accuracy, finished=""))
    report = analyze.look(str(tmp_path))
    assert not report.alarmed
    assert report.looked_at["records_without_a_date"] == 2
    assert "2 records do not say when they were made" in to_markdown(report)


def test_regressions_json_and_exit_code_on_worse(tmp_path: Path) -> None:
    for number in range(1, 8):
        night(tmp_path, number, cells=3)
    night(tmp_path, 8, cells=3, slower=4)
    command = [sys.executable, "-m", "peft_matrix.cli", "regressions", "--results", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert {"cells", "pooled", "environment_changes", "improvements"} <= set(report)
    assert "step_ms" in {f["metric"] for f in report["cells"]}
    assert done.returncode == 1, done.stderr
    why = [*command[:-1], "--accept", "*", "--why", "a slower step is expected from here on"]
    assert subprocess.run(why, capture_output=True, text=True).returncode == 0
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0


def test_missing_numbers_alert_until_a_decision(tmp_path: Path) -> None:
    """Lost, left behind by the others, disturbed: three kinds of alert, none of them a value (protocol 8.7)."""
    night(tmp_path, 1, cells=4)
    store = Store(tmp_path)
    for index in range(3):  # m3 was not rerun the others into the new environment
        of, when = cell(f"m{index}"), "2026-01-02T00:00:00+00:00"
        record, data = ok_record(of, environment=NEW, fingerprint="b" * 64, finished=when)
        if index == 2:
            foreign = reading("foreign_processes", 1.0, source="NVML")
            record = record.model_copy(update={"metrics": {**record.metrics, "foreign_processes": foreign}})
        store.append(record, data)
    lost = failed_record(cell("m0"), "lost", reason="killed by signal 9", finished="2026-01-03T00:00:00+00:00")
    store.append(lost)
    found = {f.label.split(".")[1]: f for f in analyze.look(str(tmp_path)).cells if f.metric == "status"}
    assert {name: f.kind for name, f in found.items()} == {"m0": "missing", "m2": "condition", "m3": "missing"}
    assert "killed by signal 9" in found["m0"].reason
    assert "shared" in found["m2"].reason
    assert "was not rerun" in found["m3"].reason
    gone = decisions.Decision(cells="*.m3.*", metric="status", since="2026-01-03T00:00:00+00:00", why="taken out")
    decisions.record(store, gone)
    after = {f.label.split(".")[1] for f in analyze.look(str(tmp_path)).cells if f.metric == "status"}
    assert after == {"m0", "m2"}


needs_runs = pytest.mark.skipif(
    not RUNS.is_dir(), reason="the published runs are not on this machine (PEFT_MATRIX_DATA)"
)


def later(folder: Path, lost: int) -> None:
    """The real files of a day later: another transformers, and ``lost`` items fewer right, give or take a few."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for path in sorted(RUNS.rglob("*.json")):
        content = json.loads(path.read_text())
        content["run_info"]["created_at"] = "2026-09-30T01:00:00+00:00"
        content["meta_info"]["package_info"]["transformers-version"] = "5.99.0"
        for row in content["train_info"]["metrics"]:
            if "test accuracy" in row:
                right = round(row["test accuracy"] * SUITE_ITEMS) - lost + int(rng.integers(-3, 4))
                row["test accuracy"] = max(0, right) / SUITE_ITEMS
        (folder / path.name).write_text(json.dumps(content))


def looked_at(store: Path, *sources: Path) -> tuple[int, dict[str, list[dict[str, object]]]]:
    for source in sources:
        done = CliRunner().invoke(app, ["import", "peft-method-comparison", str(source), "--results", str(store)])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["regressions", "--results", str(store), "--json"])
    return done.exit_code, json.loads(done.stdout)


@needs_runs
def test_drop_over_published_runs_names_the_new_version(tmp_path: Path) -> None:
    later(tmp_path / "worse", lost=15)
    code, report = looked_at(tmp_path / "store", RUNS, tmp_path / "worse")
    assert code == 1
    assert {"cells", "pooled", "environment_changes", "improvements"} <= set(report)
    found = [f for f in report["pooled"] if f["metric"] == "accuracy"]
    assert len(found) == 1
    assert {"metric", "before", "after", "pairs", "effect", "interval", "p", "suspects"} <= set(found[0])
    low, high = found[0]["interval"]  # type: ignore[misc]
    assert low < found[0]["effect"] < high  # type: ignore[operator]
    assert found[0]["pairs"] > 55
    assert found[0]["effect"] == pytest.approx(-15 / SUITE_ITEMS, abs=0.002)
    assert any(str(s) == "transformers 5.13.1 → 5.99.0" for s in found[0]["suspects"])  # type: ignore[attr-defined]
    assert [f for f in report["cells"] if f["metric"] == "accuracy"] == []  # no cell alone can show it
    assert all("transformers" in " ".join(c["suspects"]) for c in report["environment_changes"])  # type: ignore[arg-type]


@needs_runs
def test_noise_alone_reports_only_the_environment_change(tmp_path: Path) -> None:
    later(tmp_path / "same", lost=0)
    code, report = looked_at(tmp_path / "store", RUNS, tmp_path / "same")
    assert code == 0
    assert (report["cells"], report["pooled"]) == ([], [])
    assert 1 <= len(report["environment_changes"]) <= 3  # one for each environment the published runs had


@needs_runs
def test_drawn_nights_around_the_published_accuracies_are_judged() -> None:
    cells = truths()
    assert len(cells) > 55
    found = sum(bool(detect(drawn_nights(cells, 0.01, True, seed), drift=False).pooled) for seed in range(10))
    quiet = sum(bool(detect(drawn_nights(cells, 0.0, True, seed), drift=False).pooled) for seed in range(10))
    assert found >= 8
    assert quiet <= 1

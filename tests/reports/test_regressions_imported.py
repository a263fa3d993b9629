"""Published results of another suite through the importer into the detector, as the command line runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from peft_matrix.cli import app
from reports.apps.regressions.detect import detect
from tests.quality.imported import ITEMS, RUNS, nights, truths

pytestmark = pytest.mark.skipif(
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
                right = round(row["test accuracy"] * ITEMS) - lost + int(rng.integers(-3, 4))
                row["test accuracy"] = max(0, right) / ITEMS
        (folder / path.name).write_text(json.dumps(content))


def looked_at(store: Path, *sources: Path) -> tuple[int, dict[str, list[dict[str, object]]]]:
    for source in sources:
        done = CliRunner().invoke(app, ["import", "peft-method-comparison", str(source), "--results", str(store)])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["regressions", "--results", str(store), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_drop_over_published_runs_names_the_new_version(tmp_path: Path) -> None:
    later(tmp_path / "worse", lost=15)
    code, report = looked_at(tmp_path / "store", RUNS, tmp_path / "worse")
    assert code == 1
    assert {"cells", "pooled", "environment_changes", "improvements"} <= set(report)
    found = [f for f in report["pooled"] if f["metric"] == "accuracy"]
    assert len(found) == 1
    assert {"metric", "before", "after", "pairs", "effect", "p", "suspects"} <= set(found[0])
    assert found[0]["pairs"] > 55
    assert found[0]["effect"] == pytest.approx(-15 / ITEMS, abs=0.002)
    assert any(str(s) == "transformers 5.13.1 → 5.99.0" for s in found[0]["suspects"])  # type: ignore[attr-defined]
    assert [f for f in report["cells"] if f["metric"] == "accuracy"] == []  # no cell alone can show it
    assert all("transformers" in " ".join(c["suspects"]) for c in report["environment_changes"])  # type: ignore[arg-type]


def test_noise_alone_reports_only_the_environment_change(tmp_path: Path) -> None:
    later(tmp_path / "same", lost=0)
    code, report = looked_at(tmp_path / "store", RUNS, tmp_path / "same")
    assert code == 0
    assert (report["cells"], report["pooled"]) == ([], [])
    assert 1 <= len(report["environment_changes"]) <= 3  # one for each environment the published runs had


def test_drawn_nights_around_the_published_accuracies_are_judged() -> None:
    cells = truths()
    assert len(cells) > 55
    found = sum(bool(detect(nights(cells, 0.01, True, seed), drift=False).pooled) for seed in range(10))
    quiet = sum(bool(detect(nights(cells, 0.0, True, seed), drift=False).pooled) for seed in range(10))
    assert found >= 8
    assert quiet <= 1

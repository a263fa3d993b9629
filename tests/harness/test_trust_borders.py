"""Sweep files, stores and tables from other people: bounded, and nothing is lost or executed by reading them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from harness import spec
from harness.errors import UserError
from harness.methods.catalog import METHODS
from harness.record import Outcome, Reading, Record, UnknownLayout
from harness.store import cleanup
from harness.store.samples import samples_ref, samples_to_parquet
from harness.store.store import Store, current
from harness.yamlfile import load_yaml
from runners.workspace import Workspace

SWEEP = {"name": "x", "models": ["builtin:nano"], "methods": ["none"], "tasks": ["strings-copy"]}
SWEEP |= {"training": {"steps": 5}}


def load(folder: Path, **changes: object) -> spec.LoadedSweep:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return spec.load(path)


# --- sweeps ----------------------------------------------------------------------------------------
def test_aliases_are_counted_written_out(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for n in range(1, 10):
        bomb += f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]\n"
    path = tmp_path / "bomb.yaml"
    path.write_text(bomb)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"bomb\.yaml, line \d+.*more than 200,000 values"):
        load_yaml(path)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 60 + "]" * 60, "more than 40 deep"),
        ("a: &a [*a]", "alias that holds itself"),
        ("a: " + "9" * 400, "a number of 400 digits"),
        ("# " + "x" * 5_000_000, "5,000,002 bytes, and at most"),
    ],
)
def test_a_yaml_file_is_bounded(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_yaml(tmp_path / "x.yaml")


def test_the_product_of_the_axes_is_bounded(tmp_path: Path) -> None:
    methods = [{"name": "none", "label": str(n)} for n in range(1001)]
    with pytest.raises(UserError, match="1,001,000 cells"):
        load(tmp_path, methods=methods, seeds=list(range(1000)))


@pytest.mark.parametrize("seed", [2**64, 2**32, -1])
def test_a_seed_that_a_library_cannot_take_is_refused(seed: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seeds"):
        load(tmp_path, seeds=[seed])


def test_true_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'steps' is a number, not true"):
        load(tmp_path, training={"steps": True})
    assert load(tmp_path, training={"steps": 1, "gradient_checkpointing": True}).spec.training.gradient_checkpointing


@pytest.mark.parametrize("value", [-4, 0, True])
def test_a_rank_is_above_zero(value: object) -> None:
    with pytest.raises(UserError, match="must be"):
        METHODS.get("lora").resolve({"r": value})


# --- stores ----------------------------------------------------------------------------------------
def record(key: str, status: str = "ok", **more: object) -> Record:
    samples = samples_to_parquet([])
    outcome = Outcome.model_validate({"status": status})
    values = {"key": key, "label": key, "sweep": "s", "cell": {}, "outcome": outcome, "samples": samples_ref(samples)}
    return Record.model_validate({**values, **more})


def keep(store: Store, one: Record) -> Record:
    store.append(one, samples_to_parquet([]))
    return one


def removed(store: Store) -> set[str]:
    return {waste.path.split("/")[-1].split(".")[0] for waste in cleanup.waste(store).waste if "records/" in waste.path}


def test_a_record_of_another_cell_removes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    mine = keep(store, record("aa" * 8))
    keep(store, record("bb" * 8, supersedes=mine.id))
    assert removed(store) == set()


def test_a_lost_attempt_replaces_no_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    mine = keep(store, record("aa" * 8, finished="2026-01-01T00:00:00+00:00"))
    lost = keep(store, record("aa" * 8, "lost", supersedes=mine.id, finished="2026-01-02T00:00:00+00:00"))
    assert [waste.why for waste in cleanup.waste(store).waste] == ["lost; the cell has ended since"]
    assert current([mine, lost])["aa" * 8] is mine


def test_a_correction_of_the_same_cell_replaces_its_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    mine = keep(store, record("aa" * 8))
    keep(store, record("aa" * 8, supersedes=mine.id, attempt=2))
    assert [waste.why for waste in cleanup.waste(store).waste] == ["corrected by a later record"]


def test_samples_stay_while_a_record_is_in_quarantine(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keep(store, record("aa" * 8))
    (sample,) = (tmp_path / "samples").iterdir()
    (entry,) = (tmp_path / "records").glob("*/*.json")
    os.utime(sample, (0, 0))
    (tmp_path / "quarantine").mkdir()
    entry.rename(tmp_path / "quarantine" / entry.name)
    found = cleanup.waste(store)
    assert not found.waste
    assert "in quarantine" in found.kept_back[0]


def test_a_word_of_a_later_version_is_not_damage(tmp_path: Path) -> None:
    reading = Reading(quantity="q", value=None, unit="s", source="x", why_missing="too_few")
    store = Store(tmp_path)
    keep(store, record("aa" * 8, metrics={"q": reading}))
    (path,) = (tmp_path / "records").glob("*/*.json")
    content = json.loads(path.read_text())
    content["metrics"]["q"]["why_missing"] = "a_word_of_2030"
    del content["id"]
    from harness.digests import digest

    identity = digest(content)
    path.unlink()
    newer = path.with_name(path.name.replace(path.name.split(".")[-2], identity[:12]))
    newer.write_text(json.dumps({"id": identity, **content}))
    with pytest.raises(UnknownLayout, match="a_word_of_2030"):
        Record.from_json(newer.read_text())
    store.records()
    assert newer.is_file(), "it stays where it is, and its cell is not planned again"
    assert not (tmp_path / "quarantine").exists()


def test_a_relative_results_folder_is_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run's record is taken up by the store it was for, and not by a folder of the same relative name."""
    monkeypatch.setenv("PEFT_MATRIX_CACHE", "cache")
    found = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        found.add(Workspace.discover(results="results").results)
        assert Workspace.discover().cache.is_absolute()
    assert found == {str(tmp_path / "one" / "results"), str(tmp_path / "two" / "results")}
    assert Workspace.discover(results="memory://x").results == "memory://x"


def test_no_exported_cell_is_a_formula(tmp_path: Path) -> None:
    from reports.apps.export import export

    store = Store(tmp_path / "results")
    row = {"arm": "adapted", "task": "=1+1", "item": "@x", "prediction": "=HYPERLINK(1)", "answer": "-a"}
    samples = samples_to_parquet([{**row, "correct": True, "length": 1, "cut": False}])
    named = record("aa" * 8, samples=samples_ref(samples), label="=cmd|' /C calc'!A0")
    store.append(named, samples)
    export(store, tmp_path / "out.csv")
    for file in (tmp_path / "out.csv", tmp_path / "out.samples.csv"):
        text = file.read_text()
        assert "=" in text
        for line in text.splitlines():
            assert not any(cell.strip('"').startswith(("=", "@")) for cell in line.split(","))

"""Tracking libraries, each with its real code and offline: what a run leaves in them, and what it does without them."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from runners.running import trackers
from runners.workspace import Defaults, Workspace
from tests.runners import cheap

VARIABLES = ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_DIR")
CELLS = {"learns": "ok", "rises": "diverged"}


@dataclass
class Shown:
    """One attempt, as a library shows it."""

    loss: dict[int, float]
    values: dict[str, Any]
    status: str
    settings: dict[str, Any] = field(default_factory=dict)


def in_tensorboard(folder: Path) -> dict[str, Shown]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = {}
    for place in (folder / "cheap").glob("*/*"):
        events = EventAccumulator(str(place)).Reload()
        scalars = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
        data = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        start = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info
        outcome = events.Tensors("outcome")[0].tensor_proto.string_val[0].decode()
        settings = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
        values = {tag: points[0] for tag, points in scalars.items() if 0 in points}
        found[place.parent.name] = Shown(scalars.get("train/loss", {}), values, outcome, settings)
    return found


def in_mlflow(folder: Path) -> dict[str, Shown]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("cheap")
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        loss = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "train/loss")}
        status = run.data.tags.get("mlflow.note.content", run.data.tags["peft-matrix.status"])
        assert run.info.status == ("FINISHED" if status == "ok" else "FAILED")
        found[run.info.run_name] = Shown(loss, run.data.metrics, status, run.data.params)
    return found


def in_trackio(folder: Path) -> dict[str, Shown]:
    with sqlite3.connect(folder / "cheap.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        settings = {name: json.loads(text) for name, text in database.execute("SELECT run_name, config FROM configs")}
    found: dict[str, Shown] = {}
    for name, step, text in rows:
        shown = found.setdefault(name.rsplit("-", 3)[0], Shown({}, {}, "", settings[name]))
        metrics = json.loads(text)
        if "train/loss" in metrics:
            shown.loss[step] = metrics["train/loss"]
        else:
            shown.values = metrics
            shown.status = f"{metrics.pop('status')}: {metrics.pop('reason')}".rstrip(": ")
    return found


def in_wandb(folder: Path) -> dict[str, Shown]:
    found = {}
    for file in (folder / "wandb").glob("offline-run-*/*.wandb"):
        name, shown = "", Shown({}, {}, "")
        for record in whole_log(file):
            if record.HasField("run"):
                name = record.run.display_name
                shown.settings = {one.key: json.loads(one.value_json) for one in record.run.config.update}
            elif record.HasField("history"):
                point = {one.nested_key[0] if one.nested_key else one.key: json.loads(one.value_json)
                         for one in record.history.item}  # fmt: skip
                shown.loss[point["train/step"]] = point["train/loss"]
            elif record.HasField("summary"):
                shown.values |= {one.key: json.loads(one.value_json) for one in record.summary.update if one.key}
        shown.status = f"{shown.values['status']}: {shown.values['reason']}".rstrip(": ")
        found[name] = shown
    return found


def whole_log(file: Path) -> list[Any]:
    """The records of a run that has ended: its service may write the last of them after it has said so."""
    end = time.monotonic() + 20
    while not (found := list(wandb_log(file))) or not found[-1].HasField("exit"):
        assert time.monotonic() < end, "the run's end was not written"
        time.sleep(0.05)
    return found


def wandb_log(file: Path) -> Iterator[Any]:
    """The records of an offline run: after 7 bytes, blocks of 32 KiB with parts of records (checksum, size, kind)."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if not kind:
            return
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


READERS = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "trackio": in_trackio, "wandb": in_wandb}


class Order(cheap.Quiet):
    """Counts what is handed over before a cell ended."""

    live_losses = True

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[object] = []

    def message(self, job: Any, content: dict[str, object]) -> None:
        self.heard += content.get("losses", [])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variables of the libraries. MLflow writes files: making its database takes as long as ten of these tests."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.mark.parametrize("name", list(trackers.TRACKERS))
def test_a_library_has_curve_scores_costs_and_outcome(name: str, tmp_path: Path, offline: None) -> None:
    for module in trackers.TRACKERS[name].modules:
        if util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", list(CELLS))
    view = Order()
    folder = tmp_path / "results" / "trackers"
    with trackers.tracked(view, [name], folder) as told:
        cheap.scheduler(sweep, tmp_path, workers=2, view=told).run()
    assert view.notes == []
    assert view.heard == [3.0, 2.0, 3.0, 2.0], "losses are told while the cell runs"
    found = {label.split(".")[1]: shown for label, shown in READERS[name](folder / name).items()}
    assert set(found) == set(CELLS)
    for label, shown in found.items():
        assert shown.loss == {1: 3.0, 2: 2.0, 3: 1.5}, label
        assert shown.values["train/peak_rss_bytes"] == 4096
        assert shown.values["train/energy_gross_j"] == 7.5
        assert shown.values["train/seconds"] == pytest.approx(0.005)
        assert "train/energy_net_j" not in shown.values, "what was not measured has no number"
        assert float(shown.settings["method.r"]) == (1 if label == "learns" else 2)
        assert shown.settings["method"] == label
    assert found["learns"].values["accuracy"] == 0.5
    assert found["learns"].status == "ok"
    assert "accuracy" not in found["rises"].values
    assert found["rises"].status == "diverged: the training loss became nan at step 4"


def test_a_library_that_fails_harms_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        def curve(self, name: str, first: int, values: object) -> None:
            raise ConnectionError("no server\nand more")

        def end(self, status: str, reason: str, values: object) -> None:
            raise AssertionError("nothing follows")

    began: list[trackers.TrackedAttempt] = []
    away = trackers.TrackerLibrary((), lambda attempt: began.append(attempt) or Away())
    monkeypatch.setitem(trackers.TRACKERS, "away", away)
    sweep = cheap.sweep_of(tmp_path / "sweep.yaml", ["learns"], seeds=2)
    view = Order()
    with trackers.tracked(view, ["away"], tmp_path) as told:
        scheduler = cheap.scheduler(sweep, tmp_path, view=told)
        assert scheduler.run() == {"ok": 2}
    assert [note for note in view.notes if "tracker" in note] == [
        "The tracker away failed and gets nothing more: ConnectionError: no server"
    ]
    assert len(began) == 1


def test_trackers_are_checked_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Workspace((tmp_path,), "results", None, tmp_path)
    assert trackers.chosen(None, plain) == ()
    with pytest.raises(UserError, match=r"unknown tracker 'tensorbord'.*Did you mean 'tensorboard'") as error:
        trackers.chosen(["tensorbord"], plain)
    assert error.value.where == "--tracker"
    set_there = Workspace((tmp_path,), "results", None, tmp_path, defaults=Defaults(trackers=("absent", "absent")))
    monkeypatch.setitem(trackers.TRACKERS, "absent", trackers.TrackerLibrary(("no_such_module",), trackers.WandbRun))
    with pytest.raises(UserError, match=r"needs the package no_such_module.*peft-matrix\[absent\]") as error:
        trackers.chosen(None, set_there)
    assert "key 'trackers'" in str(error.value)
    assert trackers.chosen(["none"], set_there) == ()


def test_without_a_tracker_no_loss_is_sent_and_none_imported(tmp_path: Path) -> None:
    view = cheap.Quiet()
    with trackers.tracked(view, [], tmp_path) as same:
        assert same is view
    assert not view.live_losses

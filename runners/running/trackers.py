"""Optional tracking libraries: every attempt at a cell becomes a run of TensorBoard, trackio, MLflow or W&B.

The driver hands over what it hears anyway: the start of a cell, its losses while it trains, its record. Workers import
none of these libraries. A separate thread calls them, so that a slow or absent server delays no cell. What a library
does not take is said once, and nothing more is sent to it; the records are complete without it.

Nothing leaves this machine unless the library's own variable says so: ``MLFLOW_TRACKING_URI``, ``WANDB_MODE=online``,
``TRACKIO_SPACE_ID``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module, util
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol

from harness.errors import UserError, did_you_mean
from harness.record import Record, Scalar
from runners.running.scheduler import View
from runners.worker.job import Job
from runners.workspace import Workspace

FOLDER = "trackers"
"""Beside the records: one folder per library."""
NONE = "none"
CLOSE_LIMIT_S = 30.0
"""At the end of a run, for what is not yet handed over."""
CURVES = ("loss", "grad_norm", "task_loss")
"""Series of a record that are shown; the first one while the cell trains."""


@dataclass(frozen=True)
class TrackedAttempt:
    """One attempt at a cell, as it is announced to a library.

    Attributes:
        name: the cell's label.
        started: UTC, to the second.
        settings: flat, ``method.r``.
        folder: of the library, beside the records.
    """

    sweep: str
    name: str
    key: str
    number: int
    started: str
    settings: Mapping[str, Scalar]
    folder: Path


class TrackerRun(Protocol):
    """One attempt, as a library shows it."""

    def curve(self, name: str, first: int, values: Sequence[float]) -> None:
        """Points of a curve; ``first`` is the step of the first one and counts from 1."""

    def end(self, status: str, reason: str, values: Mapping[str, float]) -> None:
        """The cell's outcome and all its readings that have a value; nothing follows."""


class TensorBoardRun:
    """Event files in a folder per attempt: ``tensorboard --logdir``. Settings are in its tab for hyperparameters."""

    def __init__(self, attempt: TrackedAttempt) -> None:
        from tensorboard.plugins.hparams import plugin_data_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        place = attempt.folder / attempt.sweep / attempt.name.replace("/", "_") / f"{attempt.started}-{attempt.number}"
        self._writer = EventFileWriter(str(place))
        start = plugin_data_pb2.SessionStartInfo(group_name=attempt.key)
        for name, value in attempt.settings.items():
            if isinstance(value, str):
                start.hparams[name].string_value = value
            elif isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif value is not None:
                start.hparams[name].number_value = value
        self._session("_hparams_/session_start_info", plugin_data_pb2.HParamsPluginData(session_start_info=start))

    def curve(self, name: str, first: int, values: Sequence[float]) -> None:
        """Scalars with the tag ``train/NAME``."""
        for step, value in enumerate(values, first):
            self._write(step=step, value=[{"tag": f"train/{name}", "simple_value": value}])
        self._writer.flush()

    def end(self, status: str, reason: str, values: Mapping[str, float]) -> None:
        """Scalars at step 0, the outcome as a text, and the end of the session."""
        from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

        self._write(step=0, value=[{"tag": name, "simple_value": value} for name, value in values.items()])
        text = {"dtype": "DT_STRING", "string_val": [f"{status}: {reason}".rstrip(": ").encode()], "tensor_shape": {}}
        self._write(
            step=0,
            value=[{"tag": "outcome", "metadata": {"plugin_data": {"plugin_name": "text"}}, "tensor": text}],
        )
        ended = api_pb2.STATUS_SUCCESS if status == "ok" else api_pb2.STATUS_FAILURE
        session = plugin_data_pb2.SessionEndInfo(status=ended)
        self._session("_hparams_/session_end_info", plugin_data_pb2.HParamsPluginData(session_end_info=session))
        self._writer.close()

    def _session(self, tag: str, data: Any) -> None:
        from tensorboard.plugins.hparams.metadata import NULL_TENSOR, create_summary_metadata

        self._write(step=0, value=[{"tag": tag, "metadata": create_summary_metadata(data), "tensor": NULL_TENSOR}])

    def _write(self, *, step: int, value: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        now = datetime.now(UTC).timestamp()
        self._writer.add_event(Event(wall_time=now, step=step, summary=Summary(value=value)))


class MLflowRun:
    """A run of the experiment that is named like the sweep, in a file of SQLite or at ``MLFLOW_TRACKING_URI``."""

    def __init__(self, attempt: TrackedAttempt) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            attempt.folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{(attempt.folder / 'mlflow.db').absolute()}"
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(attempt.sweep)
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (attempt.folder / "artifacts").absolute().as_uri()
        experiment = known.experiment_id if known else self._client.create_experiment(attempt.sweep, place)
        tags = {"peft-matrix.key": attempt.key, "peft-matrix.attempt": str(attempt.number)}
        self._id = self._client.create_run(experiment, run_name=attempt.name, tags=tags).info.run_id
        self._client.log_batch(self._id, params=[Param(k, str(v)) for k, v in attempt.settings.items()])

    def curve(self, name: str, first: int, values: Sequence[float]) -> None:
        """Metrics called ``train/NAME``."""
        self._log([(f"train/{name}", value, step) for step, value in enumerate(values, first)])

    def end(self, status: str, reason: str, values: Mapping[str, float]) -> None:
        """Metrics at step 0; the run counts as finished, failed or killed."""
        self._log([(name, value, 0) for name, value in values.items()])
        self._client.set_tag(self._id, "peft-matrix.status", status)
        if reason:
            self._client.set_tag(self._id, "mlflow.note.content", f"{status}: {reason}")
        ends = {"ok": "FINISHED", "interrupted": "KILLED"}
        self._client.set_terminated(self._id, status=ends.get(status, "FAILED"))

    def _log(self, found: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(datetime.now(UTC).timestamp() * 1000)
        for at in range(0, len(found), 1000):  # MLflow takes no more at once
            batch = [Metric(name, value, now, step) for name, value, step in found[at : at + 1000]]
            self._client.log_batch(self._id, metrics=batch)


class WandbRun:
    """A run of the project that is named like the sweep; offline unless ``WANDB_MODE`` says otherwise."""

    def __init__(self, attempt: TrackedAttempt) -> None:
        import wandb

        attempt.folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        # its own readings of the machine would wake processes while cells are measured
        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_machine_info=True)
        self._run = wandb.init(
            project=attempt.sweep,
            name=attempt.name,
            config={**attempt.settings, "key": attempt.key, "attempt": attempt.number},
            dir=str(attempt.folder),
            mode=mode,
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("train/*", step_metric="train/step")

    def curve(self, name: str, first: int, values: Sequence[float]) -> None:
        """A history over ``train/step``."""
        for step, value in enumerate(values, first):
            self._run.log({f"train/{name}": value, "train/step": step})

    def end(self, status: str, reason: str, values: Mapping[str, float]) -> None:
        """The run's summary."""
        self._run.summary.update({**values, "status": status, "reason": reason})
        self._run.finish(exit_code=0 if status == "ok" else 1)


class TrackioRun:
    """A run of the project that is named like the sweep, in a local database: ``trackio show``.

    All runs of one Python process are in the folder of the first one, because trackio reads it once.
    """

    def __init__(self, attempt: TrackedAttempt) -> None:
        import trackio
        from trackio import run, utils

        for module in (trackio, run, utils):  # its lines for every run would stand between those of ours
            vars(module)["print"] = _print_nothing
        self._run = trackio.init(
            project=attempt.sweep,
            name=f"{attempt.name}-{attempt.started}-{attempt.number}",
            config={**attempt.settings, "key": attempt.key},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._last = 0

    def curve(self, name: str, first: int, values: Sequence[float]) -> None:
        """Values called ``train/NAME``."""
        for step, value in enumerate(values, first):
            self._run.log({f"train/{name}": value}, step=step)
            self._last = max(self._last, step)

    def end(self, status: str, reason: str, values: Mapping[str, float]) -> None:
        """Values at the last step."""
        self._run.log({**values, "status": status, "reason": reason}, step=self._last)
        self._run.finish()


def _print_nothing(*_: object, **__: object) -> None: ...


@dataclass(frozen=True)
class TrackerLibrary:
    """A library that a run can be shown in.

    Attributes:
        modules: those that must be installed.
        begin: begins a run of it.
        place: the variable that names its folder, which it reads when it is imported; "" where a run names its own.
    """

    modules: tuple[str, ...]
    begin: Callable[[TrackedAttempt], TrackerRun]
    place: str = ""

    def load(self, folder: Path) -> None:
        """Import it."""
        if self.place and not os.environ.get(self.place):
            os.environ[self.place] = str(folder)
        for module in self.modules:
            import_module(module)


TRACKERS: dict[str, TrackerLibrary] = {
    "tensorboard": TrackerLibrary(("tensorboard",), TensorBoardRun),
    "trackio": TrackerLibrary(("trackio",), TrackioRun, "TRACKIO_DIR"),
    "mlflow": TrackerLibrary(("mlflow", "sqlalchemy", "alembic"), MLflowRun),
    "wandb": TrackerLibrary(("wandb",), WandbRun),
}


def chosen(asked: Sequence[str] | None, workspace: Workspace) -> tuple[str, ...]:
    """The libraries that are asked for, each once; None: those of the workspace; ``none`` alone: none.

    Raises:
        UserError: an unknown name, or a library that is not installed.
    """
    names = workspace.defaults.trackers if asked is None else tuple(asked)
    where = workspace.default("trackers") if asked is None else "--tracker"
    if names == (NONE,):
        return ()
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"unknown tracker {name!r}", where=where, fix=did_you_mean(name, [*TRACKERS, NONE]))
        if lacks := [module for module in TRACKERS[name].modules if util.find_spec(module) is None]:
            fix = f"pip install 'peft-matrix[{name}]'"
            raise UserError(f"the tracker {name!r} needs the package {lacks[0]}", where=where, fix=fix)
    return tuple(dict.fromkeys(names))


def settings_of(job: Job) -> dict[str, Scalar]:
    """The settings of a cell that its run is found by: the axes, the seed, the method's parameters, the budget."""
    cell = job.cell
    found: dict[str, Scalar] = {"seed": cell.get("seed"), "role": cell.get("role", "result")}
    for axis in ("model", "method", "quantization", "task", "hardware"):
        found[axis] = (cell.get(axis) or {}).get("label") or (cell.get(axis) or {}).get("name")
    method = cell.get("method") or {}
    found |= {f"method.{name}": method.get(name) for name in ("learning_rate", "steps")}
    for part, content in (("method", method.get("params")), ("training", cell.get("training"))):
        found |= {f"{part}.{name}": v for name, v in (content or {}).items() if isinstance(v, str | int | float)}
    return {name: value for name, value in found.items() if value is not None}


def values_of(record: Record) -> dict[str, float]:
    """The readings of a record that have a value: of the cell by name, of a stage as ``STAGE/NAME``."""
    found: dict[str, float | None] = {name: one.value for name, one in record.metrics.items()}
    for span in record.spans:
        found[f"{span.stage}/seconds"] = span.seconds
        found |= {f"{span.stage}/{one.quantity}": one.value for one in span.readings}
    return {name: value for name, value in found.items() if value is not None}


@dataclass
class _Shown:
    """An attempt that is under way: its run in each library, and how many losses were handed over."""

    runs: dict[str, TrackerRun] = field(default_factory=dict)
    losses: int = 0


class TrackedView:
    """A view that hands over to tracking libraries what it hears.

    Args:
        view: shows the progress of the run.
        names: of :data:`TRACKERS`.
        folder: :data:`FOLDER` of the workspace.
    """

    live_losses = True

    def __init__(self, view: View, names: Sequence[str], folder: Path) -> None:
        self.view = view
        self._names = list(names)
        self._folder = folder
        self._shown: dict[str, _Shown] = {}
        self._failures: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        for name in list(self._names):  # before a cell runs: importing takes seconds of a core
            with self._dropping(name):
                TRACKERS[name].load(folder / name)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._thread = threading.Thread(target=self._serve, daemon=True, name="trackers")
        self._thread.start()

    # --- what the scheduler says ---------------------------------------------------------------
    def started(self, job: Job) -> None:
        """A job was launched."""
        self.view.started(job)
        if not job.only_build:
            shown = self._shown[job.key] = _Shown()
            self._work.put(lambda: self._begin(job, shown))

    def message(self, job: Job, content: dict[str, object]) -> None:
        """A worker said where it is."""
        self.view.message(job, content)
        losses, shown = content.get("losses"), self._shown.get(job.key)
        if isinstance(losses, list) and losses and shown is not None:
            first = shown.losses + 1
            shown.losses += len(losses)
            self._tell(shown, methodcaller("curve", CURVES[0], first, losses))

    def left(self, job: Job) -> None:
        """An attempt is over, and its cell has no result."""
        self.view.left(job)
        if (shown := self._shown.pop(job.key, None)) is not None:
            self._tell(shown, methodcaller("end", "retried", "", {}))

    def ended(self, record: Record) -> None:
        """A cell ended: the rest of its curves, its outcome and its readings."""
        self.view.ended(record)
        if (shown := self._shown.pop(record.key, None)) is None:
            return
        for name in CURVES:
            told = shown.losses if name == CURVES[0] else 0
            if rest := record.series.get(name, ())[told:]:
                self._tell(shown, methodcaller("curve", name, told + 1, rest))
        outcome = record.outcome
        reason = ": ".join(text for text in (outcome.check, outcome.reason) if text)
        self._tell(shown, methodcaller("end", outcome.status, reason, values_of(record)))

    def note(self, text: str) -> None:
        """A sentence for the person."""
        self.view.note(text)

    def tick(self) -> None:
        """Say what a library did not take."""
        while not self._failures.empty():
            self.view.note(self._failures.get())
        self.view.tick()

    def close(self) -> None:
        """Wait until all is handed over."""
        self._work.put(None)
        self._thread.join(CLOSE_LIMIT_S)
        if self._thread.is_alive():
            self.view.note(f"trackers: not all was handed over within {CLOSE_LIMIT_S:g} s; the records have all of it")
        self.tick()

    # --- the thread ----------------------------------------------------------------------------
    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _begin(self, job: Job, shown: _Shown) -> None:
        started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        for name in list(self._names):
            with self._dropping(name):
                place = self._folder / name
                attempt = TrackedAttempt(job.sweep, job.label, job.key, job.attempt, started, settings_of(job), place)
                shown.runs[name] = TRACKERS[name].begin(attempt)

    def _tell(self, shown: _Shown, what: Callable[[TrackerRun], None]) -> None:
        def work() -> None:
            for name, run in shown.runs.items():
                if name in self._names:
                    with self._dropping(name):
                        what(run)

        self._work.put(work)

    @contextlib.contextmanager
    def _dropping(self, name: str) -> Iterator[None]:
        """A library that fails is not called again in this run of the sweep."""
        try:
            yield
        except Exception as error:  # whatever a library raises, no cell ends with it
            self._names.remove(name)
            said = str(error).strip().partition("\n")[0]
            self._failures.put(f"The tracker {name} failed and gets nothing more: {type(error).__name__}: {said}")


@contextlib.contextmanager
def tracked(view: View, names: Sequence[str], folder: Path) -> Iterator[View]:
    """The view itself, or one that also tells the libraries ``names``."""
    if not names:
        yield view
        return
    told = TrackedView(view, names, folder)
    try:
        yield told
    finally:
        told.close()

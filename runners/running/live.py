"""The cells that run now: one small file per driver, in the folder ``running`` beside the records.

A driver writes its file when it starts, when a cell starts, changes its stage or ends, and with other news at most
every two seconds. It removes the file at its end. A file whose process is gone belongs to a driver that was killed; the
next run on the same store removes it.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness import provenance
from harness.bounded import check_shape, read_json
from harness.errors import UserError
from runners.running import recovery
from runners.worker.job import write_atomically
from runners.workspace import Workspace

FOLDER = "running"
EVERY_S = 2.0
"""Shortest time between two writes for progress inside a stage."""
MOST_BYTES = 2**22


@dataclass
class RunningCell:
    """A cell that a driver started and whose end it has not seen.

    Attributes:
        cell: its label.
        started: time of the start, seconds since the epoch, as are the other times.
        what: what is counted inside the stage ("training", "scoring"), "" before the first count.
        at: how many of ``of`` are done; None before the first count.
        heard: when ``at`` was said.
        first: the first count of ``what`` and its time; the pace is measured from there.
        pid: of the worker, on the machine where it runs; None until its first word.
    """

    cell: str
    key: str
    attempt: int
    started: float
    stage: str = "start"
    what: str = ""
    at: int | None = None
    of: int | None = None
    heard: float = 0.0
    first: tuple[int, float] = (0, 0.0)
    pid: int | None = None

    def hear(self, content: dict[str, Any], now: float) -> None:
        """Take in one message of the worker."""
        if content.get("event") == "beat":
            self.pid = content.get("pid", self.pid)
            return
        if "stage" in content:
            self.stage, self.what, self.at, self.of = str(content["stage"]), "", None, None
        if content.get("at") is not None:
            if self.at is None or (content.get("what"), content.get("of")) != (self.what, self.of):
                self.what, self.first = str(content.get("what", "")), (int(content["at"]), now)
            self.at, self.of, self.heard = int(content["at"]), int(content["of"]), now

    @property
    def text(self) -> str:
        """The stage, or what is counted in it and how far that is."""
        return self.stage if self.at is None else f"{self.what} {self.at}/{self.of}"

    def eta_s(self, now: float) -> float | None:
        """Seconds until all of ``of`` are done at the pace so far; None before a second count."""
        if self.at is None or self.of is None or self.at <= self.first[0] or self.heard <= self.first[1]:
            return None
        pace = (self.at - self.first[0]) / (self.heard - self.first[1])
        return max(0.0, (self.of - self.at) / pace - (now - self.heard))


class _DriverState(BaseModel):
    model_config = ConfigDict(extra="ignore")
    owner: tuple[str, int, float]
    sweep: str
    executor: str
    began: float
    told: float
    done: int
    failed: int
    total: int
    cells: tuple[RunningCell, ...]


class RunFile:
    """The file of one driver, from ``with`` to its end.

    Args:
        sweep: name of the sweep.
        executor: where its cells run.
    """

    def __init__(self, workspace: Workspace, sweep: str, executor: str = "local") -> None:
        owner = recovery.owner()
        self._path = workspace.local(FOLDER) / f"{owner[0][:8]}-{owner[1]}-{uuid.uuid4().hex[:6]}.json"
        self._about = {"owner": owner, "sweep": sweep, "executor": executor, "began": time.time()}
        self._written = 0.0
        clear(workspace)

    def __enter__(self) -> RunFile:
        self.write((), done=0, failed=0, total=0)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._path.parent.rmdir()  # succeeds only where no other driver has a file

    def write(self, cells: Iterable[RunningCell], *, done: int, failed: int, total: int, at_once: bool = True) -> None:
        """Write the state; ``at_once=False``: only if the last write is :data:`EVERY_S` old."""
        now = time.time()
        if not at_once and now - self._written < EVERY_S:
            return
        self._written = now
        counts = {"told": now, "done": done, "failed": failed, "total": total}
        content = {**self._about, **counts, "cells": [asdict(cell) for cell in cells]}
        with contextlib.suppress(OSError):  # a full disk ends the run where a record is written, not here
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(content).encode())


def drivers(workspace: Workspace) -> list[dict[str, Any]]:
    """Every driver with a file on this store, with its cells.

    Returns:
        One row per driver: ``sweep``, ``state`` (``running``; ``dead``: its process is gone, so nothing of it runs;
        ``elsewhere``: it was started on another machine, from which this one cannot tell), ``pid``, ``executor``,
        ``seconds`` since its start, ``told_s`` since it wrote, ``done``, ``failed``, ``total`` of its cells, and
        ``cells``: label, key, attempt, ``stage``, ``what``, ``at``, ``of``, ``seconds``, ``eta_s`` (None: not known)
        and ``pid`` of the worker.
    """
    now = time.time()
    return [_row(state, now) for _, state in _states(workspace)]


def clear(workspace: Workspace) -> None:
    """Remove the files of dead drivers."""
    for path, state in _states(workspace):
        if _state(state) == "dead":
            path.unlink(missing_ok=True)


def _row(state: _DriverState, now: float) -> dict[str, Any]:
    internal = {"started", "heard", "first"}
    cells = [
        {**{k: v for k, v in asdict(cell).items() if k not in internal}, "seconds": now - cell.started,
         "eta_s": cell.eta_s(now)}
        for cell in state.cells
    ]  # fmt: skip
    about = state.model_dump(exclude={"owner", "began", "told", "cells"})
    times = {"pid": state.owner[1], "seconds": now - state.began, "told_s": now - state.told}
    return {**about, "state": _state(state), **times, "cells": cells}


def _state(state: _DriverState) -> Literal["running", "dead", "elsewhere"]:
    if state.owner[0] != provenance.host():
        return "elsewhere"
    return "dead" if recovery.dead(state.owner) else "running"


def _states(workspace: Workspace) -> list[tuple[Path, _DriverState]]:
    found = []
    for path in sorted(workspace.local(FOLDER).glob("*.json")):
        with contextlib.suppress(UserError, OSError):  # removed in this moment, or no file of ours
            content = read_json(path, most=MOST_BYTES)
            found.append((path, check_shape(content, _DriverState, where=str(path))))
    return found

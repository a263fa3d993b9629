"""The envelope of a worker process: its log, its voice, its heartbeat, and its end with the scheduler's.

It imports nothing heavy. What it works on is named by a string and imported inside the process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.worker.import_path import leave_current_folder
from runners.worker.job import LOG_FILE, Job

if TYPE_CHECKING:  # heavy, and only for types
    from torch.nn.parallel import DistributedDataParallel
    from transformers import PreTrainedModel

Say = Callable[..., None]
WORK = "runners.worker.main:work"
"""A cell; an executor may be given something else that takes a job and ``say``."""
BEAT_S = 5.0


@dataclass
class Rank:
    """One of the processes of a cell.

    Attributes:
        number: from 0.
        of: how many there are.
        strategy: ``none``, ``ddp`` or ``fsdp``.
        offload: shards wait in the host's memory.
        wrapped: DDP around the model; None elsewhere.
        plain: how modules were before they were sharded.
        forward_ms: of each step, until the last forward pass has ended.
    """

    number: int = 0
    of: int = 1
    strategy: str = "none"
    offload: bool = False
    wrapped: DistributedDataParallel | None = None
    plain: dict[Any, tuple[type, dict[str, Any]]] = field(default_factory=dict)
    forward_ms: list[float] = field(default_factory=list)

    @classmethod
    def of_job(cls, job: Job, number: int) -> Rank:
        """The rank ``number`` of a job."""
        asked = job.cell.get("parallel") or {}
        return cls(number, job.ranks, asked.get("strategy", "none"), asked.get("offload", False))

    @property
    def alone(self) -> bool:
        """True if the cell has one process."""
        return self.of == 1

    def share(self, collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        """A collator that takes this rank's part of the rows of a micro-batch."""
        if self.alone:
            return collate
        return functools.partial(_part, collate, self.number, self.of)

    def forward(self, model: PreTrainedModel) -> object:
        """The callable of the forward pass: DDP's wrapper, or the model itself."""
        return model if self.wrapped is None else self.wrapped

    def accumulating(self, more: bool) -> contextlib.AbstractContextManager[None]:
        """While further micro-batches of a step follow, DDP does not average gradients."""
        if self.wrapped is None or not more:
            return contextlib.nullcontext()
        held: contextlib.AbstractContextManager[None] = self.wrapped.no_sync()
        return held


def _part(collate: Callable[[list[object]], object], number: int, of: int, rows: list[object]) -> object:
    size = len(rows) // of
    return collate(rows[number * size : (number + 1) * size])


def entry(job_file: str, channel: Connection | None, work: str = WORK) -> None:
    """Entry point of a worker process: everything it prints goes to the job's log.

    Args:
        channel: receives progress; None if there is no listener.
        work: ``module:function``, called with the job and ``say``.
    """
    job = Job.read(Path(job_file))
    leave_current_folder(Path(job.folder))
    log = os.open(Path(job.folder) / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(log, "wb", 0), write_through=True)
    one_at_a_time = threading.Lock()

    def say(event: str, **more: object) -> None:
        if channel is not None:
            with one_at_a_time:
                channel.send({"event": event, **more})

    die_with_parent()
    beat(say, job.beat_s)
    module, _, function = work.partition(":")
    getattr(importlib.import_module(module), function)(job, say)


def beat(say: Say, every_s: float) -> None:
    """Say regularly that this process lives. A stopped or frozen one falls silent, and the scheduler ends it."""

    def run() -> None:
        silence = threading.Event()
        with contextlib.suppress(OSError):  # the listener is gone
            while True:
                say("beat", pid=os.getpid())
                silence.wait(every_s)

    threading.Thread(target=run, daemon=True, name="heartbeat").start()


def die_with_parent() -> None:
    """End this process when the scheduler is gone, however it ended: an orphan would run a cell a second time."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _end_with_input() -> None:
    """The scheduler holds the other end of our standard input; an orphan would run a cell a second time."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":  # the worker of a side environment: python -m runners.worker.process JOB_FILE DESCRIPTOR
    threading.Thread(target=_end_with_input, daemon=True, name="parent-watch").start()
    entry(sys.argv[1], Connection(int(sys.argv[2]), readable=False))

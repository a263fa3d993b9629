"""The envelope of a worker process: its log, its voice, its heartbeat, and its end with the scheduler's.

It imports nothing heavy. What it works on is named by a string and imported inside the process.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from runners.worker.import_path import leave_current_folder
from runners.worker.job import LOG_FILE, Job

Say = Callable[..., None]
WORK = "runners.worker.main:work"
"""A cell; an executor may be given something else that takes a job and ``say``."""
BEAT_S = 5.0


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

    def say(event: str, **more: Any) -> None:
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
                say("beat")
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

"""Cells on this machine: one process each, forked from a warm template so that isolation costs milliseconds.

The template (stdlib ``forkserver``) has the heavy libraries imported and no CUDA context. It is started with the
first job, so a run that has nothing to do imports nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from typing import Any

from harness.errors import UserError
from runners.executors.base import Ended, Lease, Message
from runners.executors.side_environment import OutsideProcess
from runners.worker.import_path import child_environment
from runners.worker.job import JOB_FILE, Job
from runners.worker.process import WORK, entry

PRELOAD = ("runners.worker.preload",)
KILL_GRACE_S = 5.0
STARTS = 5
"""Attempts at starting a worker whose template is killed each time."""
DEFAULTS = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
"""Variables of the workers: a spinning thread pool takes time from its neighbours."""

READ_AT_IMPORT = (
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "TORCH",
    "PYTORCH_",
    "CUDA_",
    "OMP_",
    "MKL_",
    "LD_",
    "PYTHON",
    "BNB_",
)
"""Variables that take effect while libraries are imported or loaded begin so."""


def leases(
    *, device: str, threads: int, workers: int | None, uuids: tuple[str, ...], widest: int = 1
) -> tuple[list[Lease], int]:
    """Shares of this machine, a GPU each or ``threads`` CPU cores each, never overlapping; and cells at once.

    On a CPU one cell runs at a time unless the sweep asks for more workers; never more than there are cores for.

    Args:
        widest: devices of the cell that needs most: there are at least so many shares, if the machine has them.
    """
    if device == "cuda":
        found = [Lease(gpus=(uuid,)) for uuid in uuids][: max(workers, widest) if workers else None]
        return found, min(workers or len(found), len(found))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not cores:
        return [Lease()] * widest, 1
    possible = max(1, len(cores) // threads)
    count = min(max(workers or 1, widest), possible)
    found = [Lease(cores=tuple(cores[i * threads : (i + 1) * threads])) for i in range(count)]
    return found, min(workers or 1, possible)


def _run(job_file: str, channel: connection.Connection, work: str, environ: dict[str, str]) -> None:
    """In the forked process; what is imported there is free because the template has it.

    Args:
        environ: variables of the driver now. The template has those of the driver's first run.
    """
    os.environ.clear()
    os.environ.update(environ)
    entry(job_file, channel, work)


_template: dict[str, str] = {}
"""Start values of this process's template: variables that libraries read at import, and its modules."""


def _renew_template(environ: Mapping[str, str], preload: list[str]) -> None:
    """Keep the template of an earlier run of this process (a notebook has many) if it is what a new one would be.

    Otherwise it ends here, and the next start makes another one.
    """
    wanted = {name: value for name, value in environ.items() if name.startswith(READ_AT_IMPORT)}
    wanted["preload"] = " ".join(preload)
    if _template and wanted != _template:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]  # there is no public way; does nothing where none runs
    _template.clear()
    _template.update(wanted)
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program's main module, which ``multiprocessing`` would otherwise run again in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class LocalExecutor:
    """Runs jobs in processes of this machine.

    Args:
        leases: available leases; the scheduler gives each running job one of them, or several.
        at_once: cells that run at the same time; None: as many as there are leases.
        work: ``module:function`` that a worker runs.
        preload: modules that the template imports.
    """

    remote = False

    def __init__(
        self,
        leases: list[Lease],
        *,
        at_once: int | None = None,
        work: str = WORK,
        preload: Sequence[str] = PRELOAD,
    ) -> None:
        self.leases = leases
        self.neighbours = (at_once or len(leases)) - 1
        self._work = work
        self._context = multiprocessing.get_context("forkserver")
        self._preload = list(preload)
        self._running: dict[int, tuple[Job, ForkServerProcess | OutsideProcess, connection.Connection]] = {}

    def start(self, job: Job) -> None:
        """Fork a worker for ``job``, or start its side environment's; its job file must have been written."""
        ours, theirs = self._context.Pipe(duplex=False)
        job_file = os.path.join(job.folder, JOB_FILE)
        process: ForkServerProcess | OutsideProcess
        if job.python:
            process = OutsideProcess(job.python, job_file, theirs)
        else:
            process = self._fork(job, job_file, theirs)
        theirs.close()
        self._running[process.sentinel] = (job, process, ours)

    def _fork(self, job: Job, job_file: str, channel: connection.Connection) -> ForkServerProcess:
        """A worker from the template. If the template was killed meanwhile, another one is started.

        Raises:
            UserError: the templates end again and again.
        """
        with child_environment(**DEFAULTS):
            environ = dict(os.environ)
            if not self._running:
                _renew_template(environ, self._preload)
            for _ in range(STARTS):
                process = self._context.Process(
                    target=_run,
                    args=(job_file, channel, self._work, environ),
                    name=f"cell-{job.label}",
                    daemon=job.ranks == 1,  # a daemon may have no processes of its own, and a cell's ranks are such
                )
                try:
                    with _without_main():
                        process.start()
                except (EOFError, ConnectionError):  # the template was killed; the next start makes another one
                    continue
                return process
        raise UserError(
            f"the process that starts the workers was ended {STARTS} times",
            where=job.label,
            fix="Look for what kills it (dmesg names the kernel's kills for lack of memory), then run again.",
        )

    def adopt(self, key: str) -> Job | None:
        """None: these jobs end with the run that started them."""
        return None

    def wait(self, timeout_s: float) -> list[Message | Ended]:
        """Messages and ends since the last call; sleeps in ``poll(2)``."""
        channels: dict[Any, int] = {c: s for s, (_, _, c) in self._running.items() if not c.closed}
        ready = connection.wait([*channels, *self._running], timeout=timeout_s)
        events: list[Message | Ended] = []
        for item in ready:
            if item in channels:
                events += self._messages(channels[item])
        for item in ready:
            if isinstance(item, int) and item in self._running:
                events += self._messages(item)
                job, process, channel = self._running.pop(item)
                process.join()
                channel.close()
                events.append(Ended(job, process.exitcode))
        return events

    def _messages(self, sentinel: int) -> list[Message | Ended]:
        job, _, channel = self._running[sentinel]
        found: list[Message | Ended] = []
        try:
            while not channel.closed and channel.poll():
                found.append(Message(job, channel.recv()))
        except (EOFError, OSError):  # the worker closed its end
            channel.close()
        return found

    def stop(self, job: Job, *, kill: bool) -> None:
        """SIGTERM (the worker writes its record and ends) or SIGKILL."""
        for running, process, _ in self._running.values():
            if running is job:
                (process.kill if kill else process.terminate)()

    def close(self) -> None:
        """Terminate what runs, and kill what does not listen."""
        for _, process, _ in self._running.values():
            process.terminate()
        for _, process, channel in self._running.values():
            process.join(KILL_GRACE_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            channel.close()
        self._running.clear()

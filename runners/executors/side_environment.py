"""A worker run by another interpreter: a side environment's. It looks to its executor like a forked worker."""

from __future__ import annotations

import os
import subprocess
from multiprocessing import connection
from pathlib import Path

from harness.errors import UserError
from runners.worker.import_path import ROOT, safe_environment
from runners.worker.job import LOG_FILE


class OutsideProcess:
    """A process with the part of ``multiprocessing.Process`` that an executor uses.

    Args:
        python: the interpreter.
        job_file: what it runs.
        channel: where it says how far it is; closed here once the process has it.

    Raises:
        UserError: the system cannot wait for such a process (it has no ``pidfd_open``).
    """

    def __init__(self, python: str, job_file: str, channel: connection.Connection) -> None:
        if not hasattr(os, "pidfd_open"):
            raise UserError("cells of side environments need Linux 5.3 or newer", where=python)
        environ = safe_environment({k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, root=ROOT)
        # to the job's log from the first line on: an interpreter that cannot import the worker says so there
        with (Path(job_file).parent / LOG_FILE).open("ab") as log:
            self._process = subprocess.Popen(
                [python, "-m", "runners.worker.process", job_file, str(channel.fileno())],
                env=environ,
                stdin=subprocess.PIPE,  # closing its end tells the worker that the parent is gone
                stdout=log,
                stderr=log,
                pass_fds=[channel.fileno()],
            )
        self.sentinel: int = os.pidfd_open(self._process.pid)  # readable once the process has ended

    @property
    def exitcode(self) -> int | None:
        """As of ``multiprocessing``: negative for a signal, None while it runs."""
        return self._process.poll()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end, at most ``timeout`` seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            os.close(self.sentinel)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

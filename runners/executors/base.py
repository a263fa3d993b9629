"""Interface of an executor. An executor starts jobs, sleeps until something happens, and stops jobs on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from runners.worker.job import Job


@dataclass(frozen=True)
class Lease:
    """The share of a machine that one job gets: GPUs by UUID, or CPU cores by number."""

    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()


@dataclass(frozen=True)
class Message:
    """A worker said something: ``{"event": "stage", "stage": ...}`` or ``{"event": "progress", ...}``."""

    job: Job
    content: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A worker process is gone.

    Attributes:
        exit_code: negative for a signal; None where it is not known.
        why: what the executor knows about an end that was not the worker's own, such as a lost node.
    """

    job: Job
    exit_code: int | None
    why: str = ""


class Executor(Protocol):
    """One small interface for this machine, Ray and Slurm.

    Attributes:
        leases: available leases; a remote executor's are slots in its cluster, which chooses the device.
        neighbours: number of cells that may run at the same time on its machine.
        remote: a cluster runs the cells. A job may wait there as long as it wants to, a lost one is tried once more
            (nodes come and go), and this machine's disk and memory say nothing about it.
    """

    leases: list[Lease]
    neighbours: int
    remote: bool

    def start(self, job: Job) -> None:
        """Start a job and return at once."""
        ...

    def adopt(self, key: str) -> Job | None:
        """The job of an earlier run that waits, runs or has just ended in the cluster; it is not started again."""
        ...

    def wait(self, timeout_s: float) -> list[Message | Ended]:
        """Sleep in a blocking wait until something happens, at most ``timeout_s`` seconds."""
        ...

    def stop(self, job: Job, *, kill: bool) -> None:
        """Ask a job to end (it still writes its record), or kill it."""
        ...

    def close(self) -> None:
        """End everything that still runs."""
        ...

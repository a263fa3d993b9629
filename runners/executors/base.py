"""Where cells run. An executor starts jobs, sleeps until something happens, and stops what it is told to stop."""

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
    """A worker process is gone. ``exit_code`` is negative for a signal; None where it is not known."""

    job: Job
    exit_code: int | None


class Executor(Protocol):
    """One small interface for this machine, Ray and Slurm."""

    leases: list[Lease]

    def start(self, job: Job) -> None:
        """Start a job and return at once."""
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

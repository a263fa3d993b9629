"""Recover what a killed run left (records not yet stored, scratch folders), and when a cell is tried again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from harness import provenance
from harness.errors import UserError
from harness.matrix import Cell
from harness.methods.base import Method
from harness.methods.catalog import METHODS
from harness.record import FINAL_STATUSES, Outcome, Record
from harness.store.store import Store
from runners.running.job_logs import keep_log
from runners.worker.job import JOB_FILE, QUEUED_FILE, RECORD_FILE, SAMPLES_FILE, Job
from runners.worker.transient import KINDS

Owner = tuple[str, int, float]
"""Host (as a digest), process id and the process's start time: enough to check if a run still lives."""


def owner() -> Owner:
    """This process."""
    process = psutil.Process()
    return provenance.host(), process.pid, process.create_time()


def collect(jobs: Path, store: Store, logs: Path | None = None) -> int:
    """Store the finished records of dead runs on this store and remove their scratch folders.

    A run is dead only if it ran on this machine and its process is gone. Folders of other stores are left alone.

    Args:
        jobs: folder of the job folders.
        logs: folder for the logs of these cells; None: they are not kept.

    Returns:
        How many records were stored.
    """
    stored = 0
    for file in sorted(jobs.glob(f"*/{JOB_FILE}")):
        try:
            job = Job.read(file)
        except (OSError, ValueError, TypeError, KeyError):  # another run removes or writes it, or an older layout
            continue
        if job.results != store.root or not job.owner or not dead(job.owner):
            continue
        if file.with_name(QUEUED_FILE).exists() and not file.with_name(RECORD_FILE).is_file():
            continue  # it may still wait or run; a run on that queueing system takes it up
        claim = store.claim(job.key)
        if claim is None:
            continue
        with claim:
            stored += _store_record(file.parent, job, store, logs)
            shutil.rmtree(file.parent, ignore_errors=True)
    return stored


def _store_record(folder: Path, job: Job, store: Store, logs: Path | None) -> int:
    """Append the folder's record, unless it is damaged or the cell was finished meanwhile; 1 if it was stored."""
    written = folder / RECORD_FILE
    if not written.is_file() or any(e.status in FINAL_STATUSES for e in store.entries_of(job.key)):
        return 0
    try:
        record = Record.from_json(written.read_text(encoding="utf-8"), where=str(written))
        if record.outcome.status == "oom" and job.cell["training"].get("on_oom") == "halve_batch":
            return 0  # this attempt was to be followed by another
        store.append(record, (folder / SAMPLES_FILE).read_bytes() if record.samples is not None else None)
        if logs is not None:
            keep_log(folder, logs, record)
    except (UserError, OSError, ValueError):  # cut off with its writer: the cell runs again
        return 0
    return 1


def dead(owner: Owner) -> bool:
    """True if the process ran on this machine and is gone."""
    host, pid, started = owner
    if host != provenance.host():
        return False
    try:
        return abs(psutil.Process(pid).create_time() - started) > 1.0
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


HALVED_IN = frozenset({"prepare", "train"})
"""Stages whose memory the training batch decides."""


@dataclass(frozen=True)
class CellAttempt:
    """One try at a cell.

    Attributes:
        number: counts from 1.
        out_of_memory: what the tries before had for a batch when memory ran out.
    """

    number: int = 1
    out_of_memory: tuple[dict[str, object], ...] = ()


def next_attempt(attempt: CellAttempt, record: Record, *, retries: int) -> CellAttempt | None:
    """The attempt after one that was lost or met an error of a passing kind; None if nothing would change.

    Args:
        retries: allowed additional attempts.
    """
    outcome = record.outcome
    passing = outcome.status == "error" and record.environment.get("transient") in KINDS
    tried = attempt.number - len(attempt.out_of_memory)  # backing off is no retry
    if (outcome.status == "lost" or passing) and tried <= retries:
        return replace(attempt, number=attempt.number + 1)
    return None


def back_off(cell: Cell, attempt: CellAttempt, outcome: Outcome) -> CellAttempt | str | None:
    """The attempt with half the batch and twice the accumulation after a cell ran out of memory.

    Returns:
        None where the sweep does not ask for it; the reason in words where it cannot be done.
    """
    training = cell.training
    if outcome.status != "oom" or training.get("on_oom") != "halve_batch":
        return None
    factor = 2 ** len(attempt.out_of_memory)
    batch, accumulation = training["batch_size"] // factor, training["gradient_accumulation"] * factor
    if outcome.stage not in HALVED_IN:
        return f"the batch was not halved: stage {outcome.stage!r} does not depend on it"
    if METHODS.get(cell.method.name).training_step is not Method.training_step:
        return f"the batch was not halved: {cell.method.name} has a custom training step and accumulates no gradients"
    if batch % 2:
        return f"a batch of {batch} cannot be halved"
    met = {
        "batch_size": batch,
        "gradient_accumulation": accumulation,
        "stage": outcome.stage,
        "reason": outcome.reason,
    }
    return CellAttempt(attempt.number + 1, (*attempt.out_of_memory, met))

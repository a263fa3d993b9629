"""Turn an ended job into a record: the worker's own, or one written by the parent if the worker could not."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import provenance
from harness.errors import UserError
from harness.matrix import Cell
from harness.record import Outcome, Record
from runners.worker.job import LM_EVAL_FILES, LOG_FILE, RECORD_FILE, SAMPLES_FILE, Job

LOG_TAIL_CHARACTERS = 4000
STOPPED_TRIAL = "stopped trial"
"""Count a tuning trial that diverged or was pruned as a stopped trial: that is a result of tuning, not a failure."""
EXPECTED = frozenset({"ok", "unsupported", STOPPED_TRIAL})
"""Ends of a cell that are no failure of the run."""


def counted_as(record: Record) -> str:
    """The status, but for a trial of tuning that was stopped early."""
    stopped = record.outcome.status == "diverged" and record.cell_view.role == "trial"
    return STOPPED_TRIAL if stopped else record.outcome.status


class Endings:
    """Writes the records that the scheduler answers for.

    Args:
        sweep: the sweep's name.
        environment: of the scheduler's process.
    """

    def __init__(self, sweep: str, environment: dict[str, object]) -> None:
        self.sweep = sweep
        self.environment = environment
        self.fingerprint = provenance.fingerprint(environment)

    def of_job(
        self, cell: Cell, job: Job, *, stage: str, started: str, status: str, reason: str
    ) -> tuple[Record, bytes | None]:
        """The worker's record with its samples; where it left none, a record with this status and reason."""
        folder = Path(job.folder)
        written = folder / RECORD_FILE
        if written.is_file():
            try:
                record = Record.from_json(written.read_text(encoding="utf-8"), where=str(written))
                return record, (folder / SAMPLES_FILE).read_bytes() if record.samples is not None else None
            except UserError as error:
                status, reason = "error", f"the worker's record is damaged: {error.what}"
        tail = provenance.redacted(log_tail(folder), job=folder)
        reason = provenance.redacted(reason, job=folder)
        outcome = Outcome.model_validate({"status": status, "stage": stage, "reason": reason, "log_tail": tail})
        facts = finished_tasks(folder)
        return self.record(cell, outcome, started=started, attempt=job.attempt, facts=facts), None

    def record(
        self,
        cell: Cell,
        outcome: Outcome,
        *,
        started: str = "",
        attempt: int = 1,
        facts: dict[str, object] | None = None,
    ) -> Record:
        """A record without measurements; ``facts``: what the worker had finished before it died."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Record(
            key=cell.key,
            label=cell.label,
            sweep=self.sweep,
            cell=cell.as_dict(),
            outcome=outcome,
            environment={**self.environment, **({"facts": facts} if facts else {})},
            fingerprint=self.fingerprint,
            attempt=attempt,
            started=started or now,
            finished=now,
        )


def finished_tasks(folder: Path) -> dict[str, object]:
    """Results of lm-eval tasks that a worker had finished before it died."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(LM_EVAL_FILES))]
    results: dict[str, Any] = {}
    for one in found:
        results.setdefault(one.pop("arm"), {})[one.pop("task")] = one
    return {"lm_eval": results} if results else {}


def log_tail(folder: Path) -> str:
    """The end of a job's log."""
    log = folder / LOG_FILE
    return log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:] if log.is_file() else ""


def how_it_died(exit_code: int | None, why: str = "") -> str:
    """Words for the end of a process that left no record."""
    if why:
        return why
    if exit_code is None:
        return "the worker process is gone"
    if exit_code < 0:
        return f"the worker was killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"the worker ended with exit code {exit_code} and without a record"

"""The full logs of cells: while a cell runs in its job's folder, afterwards in the folder ``logs`` beside the records.

A record holds the last lines of its worker's log; :mod:`runners.running.job_logs` keeps the rest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from harness import provenance
from harness.errors import UserError
from runners.running import live, recovery
from runners.running.job_logs import LOGS, log_name, text_of
from runners.tools.queries import find_record
from runners.worker.job import JOB_FILE, LOG_FILE, Job
from runners.workspace import Workspace

FOLLOW_S = 0.5


def read(cell: str, workspace: Workspace) -> str:
    """The log of a cell: as far as it has come where it runs now, else of its latest record.

    Args:
        cell: beginning of its label or key.

    Raises:
        UserError: none, or several cells match, or no log of the cell was kept.
    """
    if (job := _running(cell, workspace)) is not None:
        return provenance.redacted(text_of(job / LOG_FILE), job=job)
    record = find_record(cell, workspace)
    path = workspace.local(LOGS) / log_name(record)
    if path.is_file():
        return text_of(path)
    raise UserError(
        f"no log of {record.label} is kept in {workspace.local(LOGS)}",
        where=cell,
        fix=f"It ran elsewhere or under an earlier version; 'peft-matrix show {record.label}' prints the end.",
    )


def follow(cell: str, workspace: Workspace) -> Iterator[str]:
    """The log of a cell in parts, each as it is written; ends with the cell, or with the process that runs it.

    Raises:
        UserError: as for :func:`read`.
    """
    job = _running(cell, workspace)
    if job is None:
        yield read(cell, workspace)
        return
    with contextlib.ExitStack() as opened:
        stream, rest = None, b""
        while True:
            over = _over(job)
            if stream is None:
                with contextlib.suppress(OSError):  # nothing is written yet; once open, it is read to its end
                    stream = opened.enter_context((job / LOG_FILE).open("rb"))
            rest += stream.read() if stream is not None else b""
            end = len(rest) if over else max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1
            if end:  # whole lines: a secret cut in two would not be found
                yield provenance.redacted(rest[:end].decode(errors="replace"), job=job)
                rest = rest[end:]
            if over:
                return
            time.sleep(FOLLOW_S)


def _over(job: Path) -> bool:
    """Whether a job has ended: its folder is removed, or the process that started it is gone."""
    try:
        owner = Job.read(job / JOB_FILE).owner
    except (OSError, ValueError, TypeError, KeyError):
        return True
    return owner is not None and recovery.dead(owner)


def _running(cell: str, workspace: Workspace) -> Path | None:
    """Job folder of the cell with that label or key that runs on this machine now."""
    rows = [row for driver in live.drivers(workspace) if driver["state"] == "running" for row in driver["cells"]]
    keys = {row["key"] for row in rows if cell in (row["cell"], row["key"])} or {
        row["key"] for row in rows if row["cell"].startswith(cell) or row["key"].startswith(cell)
    }
    if len(keys) != 1:
        return None
    for file in sorted((workspace.cache / "jobs").glob(f"{keys.pop()}-*/{JOB_FILE}")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # removed in this moment
            if Job.read(file).results == workspace.open_store().root:
                return file.parent
    return None

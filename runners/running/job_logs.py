"""Keep the logs of jobs that are over: without secrets and places of this machine, and at most 1 MiB of each.

One file per record, in the folder ``logs`` beside the records: ``<key>.<first 12 digits of the record's id>.log``.
Packing, merging and publishing leave these files alone.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from harness import provenance
from harness.record import Record
from runners.worker.job import LOG_FILE, write_atomically

LOGS = "logs"
HEAD_BYTES = 2**18
TAIL_BYTES = 3 * 2**18
"""Of a longer log, the beginning and the end are kept."""


def keep_log(job: Path, folder: Path, record: Record) -> None:
    """Keep the log of a job that is over.

    Args:
        job: the job's scratch folder.
        folder: where logs are kept (:data:`LOGS` of the workspace).
    """
    text = text_of(job / LOG_FILE)
    if not text:
        return
    with contextlib.suppress(OSError):  # a full disk ends the run where a record is written, not here
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / log_name(record), provenance.redacted(text, job=job).encode())


def log_name(record: Record) -> str:
    """File name of the record's log."""
    return f"{record.key}.{record.id[:12]}.log"


def text_of(path: Path) -> str:
    """A log, or its beginning and end with a line between them that says how much is left out; "" without one."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            if size <= HEAD_BYTES + TAIL_BYTES:
                return stream.read().decode(errors="replace")
            head = stream.read(HEAD_BYTES)
            stream.seek(size - TAIL_BYTES)
            tail = stream.read()
    except OSError:
        return ""
    left_out = f"\n... {size - HEAD_BYTES - TAIL_BYTES:,} bytes are left out here ...\n"
    return head.decode(errors="replace") + left_out + tail.decode(errors="replace")

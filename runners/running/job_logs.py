"""Keep the logs of jobs that are over: without secrets and places of this machine, and at most 1 MiB of each.

One file per record, in the folder ``logs`` beside the records: ``<key>.<first 12 digits of the record's id>.log``.
Merging copies these files; packing and publishing leave them alone.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from harness import provenance
from harness.record import Record
from harness.store.store import log_path
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
    return log_path(record.key, record.id).rpartition("/")[2]


def text_of(path: Path) -> str:
    """A log, or its beginning and end with a line between them that says how much is left out; "" without one.

    It is cut between two lines, so that no secret is cut in two, which nothing would then recognise.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            if size <= HEAD_BYTES + TAIL_BYTES:
                return stream.read().decode(errors="replace")
            head = stream.read(HEAD_BYTES)
            head = head[: max(head.rfind(b"\n"), head.rfind(b"\r")) + 1]  # progress bars end their lines with \r
            stream.seek(size - TAIL_BYTES)
            tail = re.sub(rb"\A[^\r\n]*[\r\n]?", b"", stream.read())
    except OSError:
        return ""
    left_out = f"\n... {size - len(head) - len(tail):,} bytes are left out here ...\n"
    return head.decode(errors="replace") + left_out + tail.decode(errors="replace")

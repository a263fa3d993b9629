"""Checks before a cell starts: free disk space and memory. Every refusal has a typed reason."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.hardware import GIB
from harness.store.blob_storage import open_files
from runners.planning.plan import NotRun, WhyNotRun


def no_room(
    folders: list[Path], *, min_free_disk_gib: float, needs_bytes: float | None, memory_free_bytes: int | None = None
) -> tuple[WhyNotRun, str] | None:
    """Reason why a cell should not start now, or None.

    Args:
        folders: where the cell and its record will be written; they need not exist yet.
        needs_bytes: host memory the cell is known to need, from its model's size or from records; None: not known.
        memory_free_bytes: what is free now; None: looked up.
    """
    for folder in folders:
        here = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(here).free
        if free < min_free_disk_gib * GIB:
            return "disk", f"{free / GIB:.2f} GiB are free at {folder}, {min_free_disk_gib:g} GiB are wanted"
    if needs_bytes is not None:
        if memory_free_bytes is None:
            import psutil

            memory_free_bytes = int(psutil.virtual_memory().available)
        if needs_bytes > memory_free_bytes:
            return "memory", (
                f"{needs_bytes / GIB:.2f} GiB of memory are needed, {memory_free_bytes / GIB:.2f} GiB are free"
            )
    return None


def keep(results: str, sweep: str, not_run: Sequence[NotRun]) -> None:
    """Write the cells that the latest run of a sweep did not start next to the records; remove the file if there is
    none.

    Raises:
        UserError: the folder cannot be written.
    """
    files, path = open_files(results), _path(sweep)
    if not not_run and not files.exists(path):
        return
    content = {one.cell.key: {"label": one.cell.label, "kind": one.kind, "reason": one.reason} for one in not_run}
    data = json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"
    files.write(path, data, temporary=f"not_run/.{uuid.uuid4().hex}.tmp")


def kept(results: str, sweep: str) -> dict[str, dict[str, Any]]:
    """Content written by :func:`keep`: cell key to label, kind and reason."""
    data = open_files(results).read(_path(sweep))
    return dict(json.loads(data)) if data is not None else {}


def _path(sweep: str) -> str:
    return f"not_run/{sweep}.json"

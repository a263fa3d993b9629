"""Counting what follows from shapes, once each, into a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.record import FINAL_STATUSES
from harness.silence_stderr import quiet_stderr
from harness.store.store import Store


def count_missing(wanted: Mapping[str, Mapping[str, Any]], store: Store, *, sweep: str) -> int:
    """Count what the store does not hold yet.

    Args:
        wanted: record key to what :func:`runners.worker.static_counts.count` takes.
        sweep: name the records are filed under.

    Returns:
        How many were counted now.
    """
    held = store.entries()
    missing = [k for k in wanted if not any(e.status in FINAL_STATUSES for e in held.get(k, ()))]
    if not missing:
        return 0
    with quiet_stderr():
        from runners.worker.static_counts import count
    for key in missing:
        store.append(count(key, wanted[key], sweep=sweep))
    return len(missing)

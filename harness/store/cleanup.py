"""Garbage of a store: files that no board, history or run needs. Nothing here edits a record."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from harness.errors import UserError
from harness.record import FINAL_STATUSES
from harness.store import index, packing
from harness.store.store import LEFTOVER_AFTER_S, Store, log_path

_TEMPORARY = re.compile(r"^\.(?:\d+\.)?[0-9a-f]+\.tmp$")


class Waste(NamedTuple):
    """A file that no board, history or run needs: its path below the root, its size in bytes, and why it may go."""

    path: str
    size: int
    why: str


@dataclass(frozen=True)
class WasteReport:
    """Result of :func:`waste`; ``kept_back`` has the reason why it did not judge the rest."""

    waste: tuple[Waste, ...]
    kept_back: tuple[str, ...] = ()


def waste(store: Store) -> WasteReport:
    """Files of a store that may go.

    - temporary files that a dead writer left more than an hour ago,
    - records that a finished record of the same cell corrects (``supersedes``), and interrupted or lost attempts at a
      cell that has a final record since. Other repeats stay: they are the cell's history,
    - samples that no remaining record refers to and that were written more than an hour ago, since a writer puts
      samples before the record that refers to them. They stay as long as any record cannot be read, also one in
      ``quarantine/``. The same holds for logs.

    Raises:
        UserError: a folder may not be listed.
    """
    loaded = index.load(store)
    rows = {n: loaded.flat.rows.column(n).to_pylist() for n in ("id", "key", "status", "supersedes", "samples")}
    cell_of = dict(zip(rows["id"], rows["key"], strict=True))
    superseded = {
        corrected
        for corrected, key, status in zip(rows["supersedes"], rows["key"], rows["status"], strict=True)
        if corrected is not None and status in FINAL_STATUSES and cell_of.get(corrected) == key
    }
    finished = {k for k, status in zip(rows["key"], rows["status"], strict=True) if status in FINAL_STATUSES}
    found = [Waste(path, store.files.size(path) or 0, "left by a writer that died") for path in _leftovers(store)]
    needed: set[str] = set()
    logs: set[str] = set()
    for path, identity, key, status, samples in zip(
        loaded.paths, rows["id"], rows["key"], rows["status"], rows["samples"], strict=True
    ):
        if identity in superseded:
            found.append(Waste(path, store.files.size(path) or 0, "corrected by a later record"))
        elif status not in FINAL_STATUSES and key in finished:
            found.append(Waste(path, store.files.size(path) or 0, f"{status}; the cell has ended since"))
        else:
            needed.add(f"samples/{samples}.parquet")
            logs.add(log_path(key, identity))
    if loaded.damaged:
        first = loaded.damaged[0]
        why = f"samples: {len(loaded.damaged)} records cannot be read and may need them ({first.path}: {first.reason})"
        return WasteReport(tuple(found), (why,))
    quarantined = [name for _, name in store.files.listing("quarantine") if name.endswith(".json")]
    if quarantined:
        why = f"samples: {len(quarantined)} records in quarantine may need them ({quarantined[0]})"
        return WasteReport(tuple(found), (why,))
    return WasteReport((*found, *_orphans(store, "samples", needed), *_orphans(store, "logs", logs)))


def _leftovers(store: Store) -> Iterator[str]:
    for top in ("records", "samples", "segments", "index", "quarantine"):
        for folder, name in store.files.listing(top):
            if _TEMPORARY.match(name) and _age_s(store, f"{folder}/{name}") > LEFTOVER_AFTER_S:
                yield f"{folder}/{name}"


def _orphans(store: Store, top: str, needed: set[str]) -> Iterator[Waste]:
    for folder, name in store.files.listing(top):
        path = f"{folder}/{name}"
        if not name.startswith(".") and path not in needed and _age_s(store, path) > LEFTOVER_AFTER_S:
            yield Waste(path, store.files.size(path) or 0, "no record refers to them")


def _age_s(store: Store, path: str) -> float:
    written = store.files.modified(path)
    return time.time() - written if written is not None else 0.0


def remove(store: Store, found: WasteReport) -> int:
    """Remove what :func:`waste` found: records first, so that none ever refers to samples that are gone.

    Returns:
        Bytes freed.

    Raises:
        UserError: a run holds a cell of this store on this machine, so that its files may be in use.
    """
    held = store.held()
    if held:
        raise UserError(
            f"a run is using this store: it holds {len(held)} cells", where=store.root, fix="Wait until it has ended."
        )
    for one in sorted(found.waste, key=lambda w: not w.path.startswith("records/")):
        store.files.remove(one.path)
    packed = {one.path for one in found.waste if store.files.packed(one.path) is not None}
    if packed:
        packing.drop(store, packed)
    return sum(one.size for one in found.waste)

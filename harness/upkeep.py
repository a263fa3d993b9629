"""Keeping stores in order: what may go, and several stores made one. Nothing here edits a record."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness import index
from harness.errors import UserError
from harness.facts import place
from harness.record import FINAL_STATUSES, Record
from harness.store import LEFTOVER_AFTER_S, SHORT_ID, Damage, Entry, Store

_TEMPORARY = re.compile(r"^\.(?:\d+\.)?[0-9a-f]+\.tmp$")


# --- what may go ---------------------------------------------------------------------------------
class Waste(NamedTuple):
    """A file that no board, history or run needs: its path below the root, its size in bytes, and why it may go."""

    path: str
    size: int
    why: str


@dataclass(frozen=True)
class Found:
    """What :func:`waste` found, and in ``kept_back`` why it did not judge the rest."""

    waste: tuple[Waste, ...]
    kept_back: tuple[str, ...] = ()


def waste(store: Store) -> Found:
    """Files of a store that may go.

    - temporary files that a dead writer left more than an hour ago,
    - records that another one corrects (``supersedes``), and interrupted or lost attempts at a cell that has a final
      record since. Other repeats stay: they are the cell's history,
    - samples that no remaining record refers to and that were written more than an hour ago, since a writer puts
      samples before the record that refers to them. They stay as long as any record cannot be read.

    Raises:
        UserError: a folder may not be listed.
    """
    loaded = index.load(store)
    rows = {n: loaded.flat.rows.column(n).to_pylist() for n in ("id", "key", "status", "supersedes", "samples")}
    superseded = set(rows["supersedes"]) - {None}
    finished = {k for k, status in zip(rows["key"], rows["status"], strict=True) if status in FINAL_STATUSES}
    found = [Waste(path, store.files.size(path) or 0, "left by a writer that died") for path in _leftovers(store)]
    needed: set[str] = set()
    for path, identity, key, status, samples in zip(
        loaded.paths, rows["id"], rows["key"], rows["status"], rows["samples"], strict=True
    ):
        if identity in superseded:
            found.append(Waste(path, store.files.size(path) or 0, "corrected by a later record"))
        elif status not in FINAL_STATUSES and key in finished:
            found.append(Waste(path, store.files.size(path) or 0, f"{status}; the cell has ended since"))
        elif samples is not None:
            needed.add(samples)
    if loaded.damaged:
        first = loaded.damaged[0]
        why = f"samples: {len(loaded.damaged)} records cannot be read and may need them ({first.path}: {first.reason})"
        return Found(tuple(found), (why,))
    return Found((*found, *_orphans(store, needed)))


def _leftovers(store: Store) -> Iterator[str]:
    for top in ("records", "samples", "index", "quarantine"):
        for folder, name in store.files.listing(top):
            if _TEMPORARY.match(name) and _age_s(store, f"{folder}/{name}") > LEFTOVER_AFTER_S:
                yield f"{folder}/{name}"


def _orphans(store: Store, needed: set[str]) -> Iterator[Waste]:
    for folder, name in store.files.listing("samples"):
        path, digest = f"{folder}/{name}", name.removesuffix(".parquet")
        if not name.startswith(".") and digest not in needed and _age_s(store, path) > LEFTOVER_AFTER_S:
            yield Waste(path, store.files.size(path) or 0, "no record refers to them")


def _age_s(store: Store, path: str) -> float:
    written = store.files.modified(path)
    return time.time() - written if written is not None else 0.0


def remove(store: Store, found: Found) -> int:
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
    return sum(one.size for one in found.waste)


# --- several stores into one ---------------------------------------------------------------------
class Side(NamedTuple):
    """One record of a conflict."""

    store: str
    id: str
    status: str
    finished: str
    fingerprint: str
    machine: str


@dataclass(frozen=True)
class Conflict:
    """Two stores that tell different things about the same attempt at a cell. Both records are kept.

    Attributes:
        differs: ``machine``, ``environment`` or, where both are equal, ``result``.
    """

    key: str
    label: str
    attempt: int
    differs: str
    sides: tuple[Side, ...]


@dataclass
class Merged:
    """What a merge did.

    Attributes:
        records: copied into the target.
        samples: sample files copied into the target.
        known: records that the target held already.
        left_out: files that are damaged, or whose samples are missing or damaged; the sources are not touched.
    """

    records: int = 0
    samples: int = 0
    known: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    left_out: list[Damage] = field(default_factory=list)


def merge(sources: Sequence[Store], into: Store) -> Merged:
    """Copy the records of several stores, byte for byte, and the samples they refer to, into one.

    Every file is checked before it is copied. A record's name holds the digest of its content, so none can take
    another one's place; where stores disagree on an attempt, both stay and the conflict is named.

    Raises:
        UserError: a folder may not be read or written, or a source is the target.
    """
    if any(source.root == into.root for source in sources):
        raise UserError("a store cannot be merged into itself", where=into.root, fix="Name a new folder.")
    done = Merged()
    told: dict[tuple[str, int], list[tuple[Record, str]]] = {}
    present = {entry.path for group in into.entries().values() for entry in group}
    for store in (into, *sources):
        for entries in store.entries().values():
            for entry in entries:
                record = _checked(store, entry, done)
                if record is None:
                    continue
                told.setdefault((record.key, record.attempt), []).append((record, store.root))
                if store is not into:
                    _copy(store, into, entry, record, present, done)
    for (key, attempt), members in sorted(told.items()):
        found = _conflict(key, attempt, members)
        if found is not None:
            done.conflicts.append(found)
    return done


def _checked(store: Store, entry: Entry, done: Merged) -> Record | None:
    """The record of an entry; a damaged one is named and, other than in :meth:`Store.read`, left where it is."""
    data = store.files.read(entry.path)
    try:
        return Record.from_json((data or b"").decode(), id_prefix=entry.id)
    except (UserError, UnicodeDecodeError) as error:
        what = error.what if isinstance(error, UserError) else str(error)
        done.left_out.append(Damage(store.files.show(entry.path), what))
        return None


def _copy(store: Store, into: Store, entry: Entry, record: Record, present: set[str], done: Merged) -> None:
    if entry.path in present:
        done.known += 1
        return
    if record.samples is not None:
        path = f"samples/{record.samples.digest}.parquet"
        if not into.files.exists(path):
            data = store.files.read(path)
            if data is None or hashlib.sha256(data).hexdigest() != record.samples.digest:
                what = "are missing" if data is None else "do not match their digest"
                done.left_out.append(Damage(store.files.show(entry.path), f"its samples {what} ({path})"))
                return
            into.put(path, data)
            done.samples += 1
    into.put(entry.path, store.files.read(entry.path) or b"")
    present.add(entry.path)
    done.records += 1


def _conflict(key: str, attempt: int, members: Sequence[tuple[Record, str]]) -> Conflict | None:
    """The disagreement of several stores about one attempt: each holds a record that another one lacks."""
    held: dict[str, set[str]] = {}
    for record, root in members:
        held.setdefault(root, set()).add(record.id)
    alone = {root: ids - set().union(*(other for r, other in held.items() if r != root)) for root, ids in held.items()}
    if sum(bool(ids) for ids in alone.values()) < 2:
        return None
    sides = [(record, root) for record, root in members if record.id in alone[root]]
    machines = {place(record) for record, _ in sides}
    differs = "machine" if len(machines) > 1 else "environment"
    if differs == "environment" and len({record.fingerprint for record, _ in sides}) == 1:
        differs = "result"
    told = tuple(
        Side(root, r.id[:SHORT_ID], r.status, r.finished, r.fingerprint[:8], place(r)[:8])
        for r, root in sorted(sides, key=lambda pair: (pair[1], pair[0].finished, pair[0].id))
    )
    return Conflict(key, sides[0][0].label, attempt, differs, told)

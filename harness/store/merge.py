"""Several stores made one. Nothing here edits a record."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.comparability import place
from harness.errors import UserError
from harness.record import Record
from harness.store.store import SHORT_ID, Damage, Entry, Store, log_path


class ConflictingRecord(NamedTuple):
    """One record of a conflict."""

    store: str
    id: str
    status: str
    finished: str
    fingerprint: str
    machine: str


@dataclass(frozen=True)
class Conflict:
    """Two stores that disagree about the same attempt at a cell. Both records are kept.

    Attributes:
        differs: ``machine``, ``environment`` or, where both are equal, ``result``.
    """

    key: str
    label: str
    attempt: int
    differs: str
    sides: tuple[ConflictingRecord, ...]


@dataclass
class MergeResult:
    """Result of a merge.

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


def merge(sources: Sequence[Store], into: Store) -> MergeResult:
    """Copy the records of several stores, byte for byte, with their logs and the samples they refer to, into one.

    Every file is checked before it is copied. A record's name holds the digest of its content, so none can take
    another one's place; where stores disagree on an attempt, both stay and the conflict is named.

    Raises:
        UserError: a folder may not be read or written, or a source is the target.
    """
    if any(source.root == into.root for source in sources):
        raise UserError("a store cannot be merged into itself", where=into.root, fix="Name a new folder.")
    done = MergeResult()
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
                    copy_record(store, into, entry, record, present, done)
    for (key, attempt), members in sorted(told.items()):
        found = _conflict(key, attempt, members)
        if found is not None:
            done.conflicts.append(found)
    return done


def _checked(store: Store, entry: Entry, done: MergeResult) -> Record | None:
    """The record of an entry; a damaged one is named and, other than in :meth:`Store.read`, left where it is."""
    data = store.files.read(entry.path)
    try:
        return Record.from_json((data or b"").decode(), id_prefix=entry.id)
    except (UserError, UnicodeDecodeError) as error:
        what = error.what if isinstance(error, UserError) else str(error)
        done.left_out.append(Damage(store.files.show(entry.path), what))
        return None


def copy_record(store: Store, into: Store, entry: Entry, record: Record, present: set[str], done: MergeResult) -> None:
    """Copy one record with its samples and its log, unless ``present``, the records of the target, has it."""
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
    log = log_path(record.key, record.id)
    if (text := store.files.read(log)) is not None:
        into.put(log, text)
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
        ConflictingRecord(root, r.id[:SHORT_ID], r.status, r.finished, r.fingerprint[:8], place(r)[:8])
        for r, root in sorted(sides, key=lambda pair: (pair[1], pair[0].finished, pair[0].id))
    )
    return Conflict(key, sides[0][0].label, attempt, differs, told)

"""Removing or archiving chosen records of a store, with their logs and the samples that nothing else needs.

A record is never edited. One that corrects another (``supersedes``) takes that one along, which would otherwise count
again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from harness.errors import UserError
from harness.store import index, packing
from harness.store.merge import MergeResult, copy_record
from harness.store.store import Damage, Entry, Store, log_path


@dataclass(frozen=True)
class Chosen:
    """Conditions on records. A record is meant if it meets all of those that are set.

    Attributes:
        pattern: shell-style pattern over labels, or the beginning of a key.
        sweep: name of the sweep that ran them, as are ``method`` and ``model`` patterns over those labels.
        status: how they ended.
        older_than_days: they finished longer ago than this.
        planned: keys of the cells that the sweep plans now; only records of other cells are meant. None: any.
    """

    pattern: str = ""
    sweep: str = ""
    method: str = ""
    model: str = ""
    status: str = ""
    older_than_days: float | None = None
    planned: Collection[str] | None = None

    def conditions(self) -> bool:
        """True if anything narrows the choice."""
        return self != Chosen()

    def __contains__(self, row: dict[str, Any]) -> bool:
        """Whether a row of the index is meant."""
        exact = self.sweep in ("", row["sweep"]) and self.status in ("", row["status"])
        patterns = ((row["method"], self.method), (row["model"], self.model))
        named = all(not pattern or fnmatchcase(label, pattern) for label, pattern in patterns)
        cell = not self.pattern or fnmatchcase(row["label"], self.pattern) or row["key"].startswith(self.pattern)
        return exact and named and cell and self._is_old(row["finished"]) and row["key"] not in (self.planned or ())

    def _is_old(self, finished: str) -> bool:
        if self.older_than_days is None:
            return True
        try:
            when = datetime.fromisoformat(finished)
        except ValueError:
            return False  # imported without a date: its age is not known
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        return datetime.now(UTC) - when > timedelta(days=self.older_than_days)


class ChosenRecord(NamedTuple):
    """A record that goes; ``why`` is "" where it was chosen itself."""

    path: str
    id: str
    key: str
    label: str
    sweep: str
    status: str
    finished: str
    why: str = ""


@dataclass(frozen=True)
class Removal:
    """Records that go, or have gone.

    Attributes:
        records: in the order of their paths.
        samples: sample files that no other record refers to.
        logs: logs of these records.
        size: bytes of all of these files.
        kept: records that were chosen and stay, with the reason.
        notes: other reasons why a file stays.
        left_out: records that could not be archived; they stay too.
        done: whether the files were removed.
    """

    records: tuple[ChosenRecord, ...]
    samples: tuple[str, ...]
    logs: tuple[str, ...]
    size: int
    kept: tuple[tuple[ChosenRecord, str], ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[Damage, ...] = field(default_factory=tuple)
    done: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """All files that go, records first, so that none ever refers to samples that are gone."""
        return (*(one.path for one in self.records), *self.samples, *self.logs)


def choose(store: Store, chosen: Chosen, *, busy: Collection[str] = ()) -> Removal:
    """The records that are meant and the files that go with them. Nothing is changed.

    Args:
        busy: names of sweeps that run now: their records stay, and so do the records of cells that are locked.

    Raises:
        UserError: no record is meant, or a folder may not be listed.
    """
    loaded = index.load(store)
    names = ("id", "key", "label", "sweep", "status", "finished", "method", "model", "samples", "supersedes")
    columns = [loaded.flat.rows.column(name).to_pylist() for name in names]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    meant = {i for i, row in enumerate(rows) if row in chosen}
    if not meant:
        raise UserError("no record is chosen", where=store.root, fix="List them: peft-matrix results query")
    held = set(store.held())
    stays = {
        i: "its sweep runs now" if rows[i]["sweep"] in busy else "its cell runs now"
        for i in meant
        if rows[i]["sweep"] in busy or rows[i]["key"] in held
    }
    goes = meant - set(stays)
    taken = dict(_corrected(rows, goes))
    goes |= set(taken)
    records = tuple(_record(loaded.paths[i], rows[i], taken.get(i, "")) for i in sorted(goes))
    kept = tuple((_record(loaded.paths[i], rows[i], ""), why) for i, why in sorted(stays.items()))
    samples, notes = _samples(store, rows, goes, loaded.damaged, in_use=bool(busy or held))
    logs = tuple(path for one in records if store.files.exists(path := log_path(one.key, one.id)))
    found = Removal(records, samples, logs, 0, kept, notes)
    return replace(found, size=sum(store.files.size(path) or 0 for path in found.files))


def remove(store: Store, found: Removal) -> Removal:
    """Remove the files of a removal.

    Raises:
        UserError: a folder cannot be written, or another process packs the store.
    """
    packed = {path for path in found.files if store.files.packed(path) is not None}
    if packed:
        packing.drop(store, packed)
    for path in found.files:
        store.files.remove(path)
    return replace(found, done=True)


def archive(store: Store, into: Store, found: Removal) -> Removal:
    """Copy the records of a removal into another store, byte for byte, then remove those that were copied.

    Raises:
        UserError: the other store is this one or lies in it, or cannot be written.
    """
    if store.folder is not None and into.folder is not None:
        here, there = store.folder.resolve(), into.folder.resolve()
        if there == here or here in there.parents:
            raise UserError("an archive cannot lie in the store", where=str(there), fix="Name another folder.")
    told = MergeResult()
    present = {entry.path for group in into.entries().values() for entry in group}
    entries = {entry.path: entry for group in store.entries().values() for entry in group}
    gone: list[ChosenRecord] = []
    for one in found.records:
        before = len(told.left_out)
        _copy(store, into, entries.get(one.path), present, told)
        if len(told.left_out) == before:
            gone.append(one)
    stays = {log_path(one.key, one.id) for one in found.records if one not in gone}
    logs = tuple(path for path in found.logs if path not in stays)
    # a record that stays may need any of the samples
    samples = found.samples if len(gone) == len(found.records) else ()
    return remove(store, replace(found, records=tuple(gone), samples=samples, logs=logs, left_out=tuple(told.left_out)))


def _copy(store: Store, into: Store, entry: Entry | None, present: set[str], told: MergeResult) -> None:
    if entry is None:
        return  # gone since it was listed
    record = store.read(entry)
    if isinstance(record, Damage):
        told.left_out.append(record)
    else:
        copy_record(store, into, entry, record, present, told)


def _record(path: str, row: dict[str, Any], why: str) -> ChosenRecord:
    return ChosenRecord(path=path, why=why, **{name: row[name] for name in ChosenRecord._fields if name in row})


def _corrected(rows: list[dict[str, object]], meant: set[int]) -> Iterator[tuple[int, str]]:
    """Records that a chosen one corrects, and those that these correct in turn."""
    at = {row["id"]: i for i, row in enumerate(rows)}
    for i in meant:
        seen = {i}
        while (next_one := at.get(rows[i]["supersedes"] or "")) is not None and next_one not in seen:
            if rows[next_one]["key"] != rows[i]["key"]:
                break
            seen.add(next_one)
            if next_one not in meant:
                yield next_one, "corrected by a record that goes"
            i = next_one


def _samples(
    store: Store, rows: list[dict[str, Any]], goes: set[int], damaged: Collection[Damage], *, in_use: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sample files that only these records refer to; or why they stay."""
    needed = {row["samples"] for i, row in enumerate(rows) if i not in goes}
    free = sorted({row["samples"] for i, row in enumerate(rows) if i in goes} - needed - {None})
    if free and in_use:
        return (), (
            f"{len(free)} sample files stay while a run uses the store; later: peft-matrix results gc --delete",
        )
    if free and (damaged or any(name.endswith(".json") for _, name in store.files.listing("quarantine"))):
        return (), (f"{len(free)} sample files stay: a record that cannot be read may need them",)
    return tuple(path for digest in free if store.files.exists(path := f"samples/{digest}.parquet")), ()

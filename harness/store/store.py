"""Append-only records on a local folder or any fsspec URL.

Layout under the root::

    records/<key[:2]>/<key>.<fingerprint8>.<status>.<id12>.json   one attempt at one cell
    samples/<digest>.parquet                                     its scored items
    segments/<digest>.parquet                                    many of both, packed (:mod:`harness.store.segments`)
    index/records.parquet                                        a copy for fast loading (:mod:`harness.store.index`)
    logs/<key>.<id12>.log                                        what the worker printed; no record depends on it
    quarantine/                                                  damaged files, each with a <name>.why.txt
    claims/<key>.lock                                            who runs which cell now

A file name alone gives a plan the key, the environment and the status, so planning lists folders and reads nothing. A
record appears under its name complete or not at all: it is written to a temporary file in the same
folder, flushed to the disk and renamed. Records are never edited; a correction is a new record.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from harness.errors import UserError
from harness.record import FINAL_STATUSES, Record, SharedParts, UnknownLayout
from harness.store.blob_storage import LocalFiles, RemoteFiles, open_files
from harness.store.leases import Leases
from harness.store.samples import samples_table
from harness.store.segments import Damage as Damage
from harness.store.segments import DamagedSegment, StoreFiles

if TYPE_CHECKING:  # heavy, and only for types
    import pyarrow
    from filelock import FileLock

SHORT_FINGERPRINT = 8
SHORT_ID = 12
LEFTOVER_AFTER_S = 3600.0
"""A temporary file older than this belongs to a writer that died: no append takes an hour."""

_NO_FINGERPRINT = "none"
_NAME = re.compile(r"^([\w-]{2,})\.([\w-]+)\.([a-z]+)\.([0-9a-f]{12})\.json$", re.ASCII)
_TEMPORARY = re.compile(r"^\.(\d+)\.[0-9a-f]+\.tmp$")


class Entry(NamedTuple):
    """Fields in the name of a record file.

    Attributes:
        key: the cell's key.
        fingerprint: first 8 characters of the environment's fingerprint, "" if the record has none.
        status: how the cell ended (:data:`harness.record.Status`).
        id: first 12 characters of the record's id.
        path: file below the root, with forward slashes.
    """

    key: str
    fingerprint: str
    status: str
    id: str
    path: str


class CellClaim:
    """The right to run one cell, held until :meth:`release` or the end of the process, however that comes."""

    def __init__(self, key: str, lock: FileLock, leases: Leases | None = None) -> None:
        self.key = key
        self._lock = lock
        self._leases = leases

    def release(self) -> None:
        """Give the cell back. Doing so twice is harmless."""
        if self._leases is not None:
            self._leases.give(self.key)
        self._lock.release()

    def __enter__(self) -> CellClaim:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()


class Store:
    """Records and samples under one root. Opening a store touches nothing; the first append creates it.

    Args:
        root: a local folder, or a URL that fsspec knows (``memory://x``, ``s3://bucket/x``).
        claims_dir: local folder for claims; needed for concurrent runs on a store that is not local.

    Raises:
        UserError: the URL's protocol is unknown or its package is not installed.
    """

    def __init__(self, root: str | Path, *, claims_dir: str | Path | None = None) -> None:
        self.root = str(root)
        self.files = StoreFiles(open_files(root))
        self._claims_dir = Path(claims_dir) if claims_dir is not None else self.files.local_folder("claims")
        self._swept = False
        loose, claims = self.files.loose, self._claims_dir
        self._leases = Leases(loose, claims) if isinstance(loose, RemoteFiles) and claims is not None else None

    @property
    def folder(self) -> Path | None:
        """The store's local folder; None for one on another file system."""
        return self.files.loose.root if isinstance(self.files.loose, LocalFiles) else None

    # --- listing -------------------------------------------------------------------------------
    def entries(self) -> dict[str, list[Entry]]:
        """Every record by key, from file names alone; keys and the entries of a key in sorted order."""
        return self._entries("records")

    def entries_of(self, key: str) -> list[Entry]:
        """The entries of one key; lists one folder only."""
        return self._entries(f"records/{key[:2]}").get(key, [])

    def _entries(self, top: str) -> dict[str, list[Entry]]:
        found: dict[str, list[Entry]] = {}
        for folder, name in self.files.listing(top):
            entry = _parse(folder, name)
            if entry is not None:
                found.setdefault(entry.key, []).append(entry)
        return {key: sorted(found[key]) for key in sorted(found)}

    def record_stamps(self) -> dict[str, str]:
        """Every file below ``records`` with its stamp, another one as soon as it is written again.

        Which of them are records, :func:`parsed` says. The stamps are those of :meth:`LocalFiles.stamps`.
        """
        return {f"{folder}/{name}": stamp for folder, name, stamp in self.files.stamps("records")}

    # --- writing -------------------------------------------------------------------------------
    def append(self, record: Record, samples: bytes | None = None) -> Entry:
        """Add a record and its samples (Parquet bytes). The same content twice is stored once.

        Samples go first, so that a record never refers to samples that are not there.

        Raises:
            UserError: the disk is full or the folder cannot be written.
            ValueError: the samples do not belong to the record.
        """
        self.sweep_leftovers()
        path = self.samples_path(record, samples)
        if samples is not None:
            self.put(path, samples)
        data = record.to_json().encode()
        entry = entry_of(record)
        if not _same_record(self.files.read(entry.path), data, record.id):
            self.put(entry.path, data)
        return entry

    def samples_path(self, record: Record, samples: bytes | None) -> str:
        """Path of a record's samples, "" if it has none.

        Raises:
            ValueError: the samples do not belong to the record, or are neither given nor stored.
        """
        if record.samples is None:
            if samples is not None:
                raise ValueError("samples were given for a record that refers to none")
            return ""
        path = f"samples/{record.samples.digest}.parquet"
        if samples is None:
            if not self.files.exists(path):
                raise ValueError(f"the record refers to samples that are neither given nor stored ({path})")
        elif hashlib.sha256(samples).hexdigest() != record.samples.digest:
            raise ValueError("the samples do not hash to the digest the record gives")
        return path

    def put(self, path: str, data: bytes) -> None:
        """Make a file below the root hold ``data``, whole or not at all; nothing happens if it holds that already.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        folder, slash, _ = path.rpartition("/")
        temporary = f"{folder}{slash}.{time.time():.0f}.{uuid.uuid4().hex[:12]}.tmp"
        if self.files.read(path) != data:
            self.files.write(path, data, temporary=temporary)

    def sweep_leftovers(self) -> None:
        """Once per opened store: remove temporary files that dead writers left more than an hour ago."""
        if self._swept:
            return
        self._swept = True
        for top in ("records", "samples", "segments", "index"):
            for folder, name in list(self.files.listing(top)):
                match = _TEMPORARY.match(name)
                if match and time.time() - int(match[1]) > LEFTOVER_AFTER_S:
                    self.files.remove(f"{folder}/{name}")

    # --- reading -------------------------------------------------------------------------------
    def load(self, entry: Entry) -> Record:
        """The record behind an entry, checked against its id.

        Raises:
            UserError: the file is damaged (it is then moved to ``quarantine/``) or cannot be read.
        """
        record = self.read(entry)
        if isinstance(record, Damage):
            raise UserError(record.reason, where=record.path, fix="The other records are not affected.")
        return record

    def records(self, keys: Iterable[str] | None = None) -> tuple[list[Record], list[Damage]]:
        """All readable records (of ``keys``, if given) in the order of their file names, and what was damaged.

        Damaged files are moved to ``quarantine/``. A record written by a newer version is reported and left.
        """
        entries = self.entries()
        wanted = entries if keys is None else [key for key in sorted(set(keys)) if key in entries]
        chosen = {entry.path: entry for key in wanted for entry in entries[key]}
        shared = SharedParts()
        with without_collection():
            found: dict[str, Record | Damage] = {}
            for path in self.files.in_reading_order(chosen):
                one = self.read(chosen[path])
                found[path] = shared.share(one) if isinstance(one, Record) else one
        read = [found[path] for path in chosen]
        return [r for r in read if isinstance(r, Record)], [d for d in read if isinstance(d, Damage)]

    def latest(self, entries: Sequence[Entry]) -> Entry | None:
        """The current entry of its cell (see :func:`current`); files are read only if there are several.

        Args:
            entries: entries of one key, as :meth:`entries` gives them.
        """
        if len(entries) <= 1:
            return entries[0] if entries else None
        loaded = [(entry, self.read(entry)) for entry in entries]
        readable = [(record, entry) for entry, record in loaded if isinstance(record, Record)]
        if not readable:
            return None
        best = _best([record for record, _ in readable])
        return next(entry for record, entry in readable if record is best)

    def samples(self, record: Record) -> pyarrow.Table:
        """The scored items of a record, checked against their digest.

        Raises:
            UserError: the record has none, or the file is missing or damaged (it is then quarantined).
        """
        if record.samples is None:
            raise UserError("no samples were stored", where=f"record {record.id[:SHORT_ID]} ({record.label})")
        return self.sample_file(record.samples.digest)

    def sample_file(self, digest: str) -> pyarrow.Table:
        """The scored items in the sample file of this digest, checked against it.

        Raises:
            UserError: the file is missing, damaged (it is then quarantined), or no table of scored items.
        """
        path = f"samples/{digest}.parquet"
        data = self.files.read(path)
        if data is None:
            raise UserError("the samples are missing", where=self.files.show(path), fix="Run the cell again.")
        if hashlib.sha256(data).hexdigest() != digest:
            damage = self._quarantine(path, "the content does not match its digest: changed or cut off")
            raise UserError(damage.reason, where=damage.path, fix="Run the cell again.")
        return samples_table(data, where=self.files.show(path))

    def read(self, entry: Entry) -> Record | Damage:
        """The record behind an entry, or what is wrong with its file, which is then moved to ``quarantine/``.

        A file that merely cannot be read now, or was written by a newer version, stays where it is.
        """
        where = self.files.show(entry.path)
        try:
            data = self.files.read(entry.path)
        except OSError as error:  # not the file's fault: say so and leave it
            return Damage(where, f"cannot be read: {error.strerror or error}")
        except DamagedSegment:
            raise
        except UserError as error:
            return Damage(where, error.what)
        if data is None:
            return Damage(where, "the file is no longer there")
        try:
            record = Record.from_json(data.decode(), id_prefix=entry.id)
        except UnknownLayout as error:
            return Damage(where, f"{error.what}. {error.fix}")
        except UnicodeDecodeError as error:
            return self._quarantine(entry.path, f"not a readable record ({error})")
        except UserError as error:
            return self._quarantine(entry.path, error.what)
        if _name(record, entry.id) != entry.path.rpartition("/")[2]:
            return self._quarantine(entry.path, "the file name says something else than the content")
        return record

    def _quarantine(self, path: str, reason: str) -> Damage:
        """Move a damaged file away and write the reason next to it."""
        name = path.rpartition("/")[2]
        kept = f"quarantine/{name}"
        try:
            self.files.move(path, kept)
            self.files.write(
                f"{kept}.why.txt", f"{path}: {reason}\n".encode(), temporary=f"quarantine/.{uuid.uuid4().hex}.tmp"
            )
        except (OSError, UserError):  # a store one may only read: the damage is still reported
            return Damage(self.files.show(path), reason)
        return Damage(self.files.show(kept), reason)

    # --- claims --------------------------------------------------------------------------------
    def claim(self, key: str) -> CellClaim | None:
        """Claim a cell for this process, or None if another one holds it. Never waits for it.

        The claim is a kernel lock, so it ends with the process even under ``kill -9``. In a store that is not local
        there is a lease besides, for runs on other machines (:mod:`harness.store.leases`). After a successful claim
        read :meth:`entries` again: the cell may have been finished a moment before. Lock files
        stay where they are, because removing one while another process opens it would let two processes hold it.

        Raises:
            UserError: the store is not local and no ``claims_dir`` was given, or the folder cannot hold locks.
        """
        lock = self._locked(key)
        if lock is None or self._leases is None:
            return CellClaim(key, lock) if lock is not None else None
        try:
            if self._leases.take(key):
                return CellClaim(key, lock, self._leases)
            lock.release()
        except OSError as error:
            lock.release()
            raise UserError(f"cells cannot be leased here: {error}", where=self.root) from error
        return None

    def _locked(self, key: str) -> FileLock | None:
        """The kernel lock of a cell; None if another process of this machine holds it."""
        if self._claims_dir is None:
            raise UserError(
                "concurrent runs need a local folder for locks",
                where=self.root,
                fix="Give one that all runs on this store share (claims_dir).",
            )
        if not re.fullmatch(r"[\w-]+", key, re.ASCII):
            raise ValueError(f"not a cell key: {key!r}")
        from filelock import FileLock, Timeout

        try:
            self._claims_dir.mkdir(parents=True, exist_ok=True)
            # no soft locks: those outlive a killed process
            lock = FileLock(self._claims_dir / f"{key}.lock", thread_local=False, fallback_to_soft=False)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except (OSError, NotImplementedError) as error:
            raise UserError(
                f"cells cannot be locked here: {error}", where=str(self._claims_dir), fix="Use another local folder."
            ) from error
        return lock

    def held(self) -> list[str]:
        """Keys of the cells that a run on this machine holds now; [] where this store keeps no claims here."""
        if self._claims_dir is None or not self._claims_dir.is_dir():
            return []
        found = []
        for path in sorted(self._claims_dir.glob("*.lock")):
            lock = self._locked(path.stem)
            if lock is None:
                found.append(path.stem)
            else:
                lock.release()
        return found


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection meanwhile: records and series have no cycles, and a collection walks through all."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


# --- choosing ------------------------------------------------------------------------------------
class Attempt(Protocol):
    """Fields that decide which of several records of a cell is current: a :class:`Record`, or a row of the index."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def key(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def finished(self) -> str: ...  # noqa: D102
    @property
    def attempt(self) -> int: ...  # noqa: D102
    @property
    def supersedes(self) -> str | None: ...  # noqa: D102


A = TypeVar("A", bound=Attempt)


def current(records: Iterable[A]) -> dict[str, A]:
    """The current record of each key.

    A record that a finished one of the same key supersedes is left out; a finished record goes before an interrupted
    or lost attempt; of the rest the one that finished last is taken.
    """
    by_key: dict[str, list[A]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(record)
    return {key: _best(group) for key, group in by_key.items()}


def _best(group: Sequence[A]) -> A:
    if len(group) == 1:  # spares the digest of a record that was not read from disk
        return group[0]
    superseded = {record.supersedes for record in group if record.status in FINAL_STATUSES}
    standing = [record for record in group if record.id not in superseded] or group
    return max(standing, key=lambda r: (r.status in FINAL_STATUSES, r.finished, r.attempt, r.id))


def short_fingerprint(fingerprint: str) -> str:
    """The part of a fingerprint in file names and in :class:`Entry`."""
    return fingerprint[:SHORT_FINGERPRINT]


def _same_record(held: bytes | None, data: bytes, identity: str) -> bool:
    """True if a stored file holds this record, in this layout of the text or in an earlier one."""
    if held is None or held == data:
        return held == data
    try:
        return Record.from_json(held.decode()).id == identity
    except (UserError, UnicodeDecodeError):
        return False


def parsed(path: str) -> Entry | None:
    """The entry of a file, from the name alone; None for one that is no record."""
    folder, _, name = path.rpartition("/")
    return _parse(folder, name)


def _parse(folder: str, name: str) -> Entry | None:
    match = _NAME.match(name)
    if match is None:
        return None
    key, fingerprint, status, short_id = match.groups()
    return Entry(key, "" if fingerprint == _NO_FINGERPRINT else fingerprint, status, short_id, f"{folder}/{name}")


def _name(record: Record, short_id: str) -> str:
    fingerprint = short_fingerprint(record.fingerprint) or _NO_FINGERPRINT
    return f"{record.key}.{fingerprint}.{record.outcome.status}.{short_id}.json"


def log_path(key: str, identity: str) -> str:
    """Path of the log of a record in a store, from the record's id or its first digits."""
    return f"logs/{key}.{identity[:SHORT_ID]}.log"


def entry_of(record: Record) -> Entry:
    """Name and path of a record in a store."""
    short_id = record.id[:SHORT_ID]
    name = _name(record, short_id)
    if not _NAME.match(name):
        raise ValueError(f"key {record.key!r} or fingerprint {record.fingerprint!r} cannot be used in a file name")
    path = f"records/{record.key[:2]}/{name}"
    return Entry(record.key, short_fingerprint(record.fingerprint), record.outcome.status, short_id, path)

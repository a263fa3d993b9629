"""Packing a store: its records and samples into one segment, and back into loose files, byte for byte.

The order of the steps makes a crash harmless. Packing writes a new segment under a temporary name, reads all of it
back, gives it its name, and only then removes the files and segments it replaces. Unpacking writes every file and only
then removes the segments. After a crash in between, some files are there twice; the same command finishes the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from harness.digests import digest
from harness.errors import UserError
from harness.record import Record
from harness.store import index, segments
from harness.store.blob_storage import LocalFiles
from harness.store.segments import FOLDER, Segment
from harness.store.store import Damage, Entry, Store, entry_of

LOCK = "pack"
"""Claim that lets one process at a time rewrite segments."""


@dataclass(frozen=True)
class Packed:
    """Result of packing or unpacking.

    Attributes:
        segment: path of the segment that holds the records now; "" after unpacking or where there is nothing to pack.
        records: records in it; for unpacking, written back.
        samples: sample files in it; for unpacking, written back.
        loose_bytes: size of these files when loose.
        packed_bytes: size of the segment; for unpacking, of the segments removed.
        left_out: files that are damaged, with the reason. They were not packed.
    """

    segment: str
    records: int
    samples: int
    loose_bytes: int
    packed_bytes: int
    left_out: tuple[Damage, ...] = ()


def pack(store: Store) -> Packed:
    """Put all records and the samples they refer to into one segment; existing segments are taken in.

    Runs may go on meanwhile: what they append stays loose. Files that are damaged, of a newer version, or that no
    record refers to stay loose too.

    Raises:
        UserError: the store is not a local folder, another process packs it, or the disk is full.
        DamagedSegment: an existing segment is damaged; nothing was changed.
    """
    local = _local(store)
    with _only_one(store):
        old = store.files.segments()  # before the records are listed: a batch appended meanwhile is not replaced
        loaded = index.load(store)
        left_out = list(loaded.damaged)
        digests = dict.fromkeys(d for d in loaded.flat.rows.column("samples").to_pylist() if d is not None)
        wanted = [*loaded.paths, *(f"samples/{d}.parquet" for d in digests)]
        if any(local.exists(path) for path in wanted) or len(old) > 1:
            _replace(store, local, old, wanted, left_out)
            index.restamp(store, loaded)
        return _described(store, left_out)


def append_batch(store: Store, items: Sequence[tuple[Record, bytes | None]]) -> list[Entry]:
    """Add many records, each with its samples (Parquet bytes) or None, as one segment.

    The segment is flushed to the disk once, before this returns: after a power cut or ``kill -9`` either all records
    of the batch are there or none. Several processes may append batches at once, beside one that packs. What the store
    holds already is left out. On a store that is not a local folder the records are appended one by one.

    Returns:
        The entries, in the order of ``items``.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing of the batch is stored.
        ValueError: samples do not belong to their record; nothing of the batch is stored.
    """
    if not isinstance(store.files.loose, LocalFiles):
        return [store.append(record, samples) for record, samples in items]
    local = store.files.loose
    store.sweep_leftovers()
    store.files.segments()
    entries: list[Entry] = []
    files: dict[str, bytes] = {}
    for record, samples in items:
        path = store.samples_path(record, samples)
        if samples is not None:
            files[path] = samples
        data = record.to_json().encode()
        entries.append(entry_of(record))
        files[entries[-1].path] = data
    new = sorted(path for path, data in files.items() if not _held(store, local, path, data))
    if new:
        local.build(
            _temporary(FOLDER),
            lambda path: segments.write(path, ((name, files[name]) for name in new), level=segments.BATCH_LEVEL),
            name=segments.name_of,
            check=lambda _: None,  # every reader checks all bytes against their digests
        )
    return entries


def drop(store: Store, paths: Collection[str]) -> None:
    """Remove packed files by writing a segment without them. Loose files are not touched.

    Raises:
        UserError: as for :func:`pack`.
    """
    local = _local(store)
    with _only_one(store):
        loaded = index.load(store)
        old = store.files.segments()
        kept = [row.path for segment in old for row in segment.rows if row.path not in paths]
        _replace(store, local, old, kept, [])
        index.restamp(store, loaded)


def unpack(store: Store, *, salvage: bool = False) -> Packed:
    """Write every packed file back, byte for byte, then remove the segments.

    Args:
        store: on a local folder.
        salvage: take from damaged segments what hashes to its digest; such a segment then goes to ``quarantine/``.

    Raises:
        UserError: the store is not a local folder, another process packs it, or the disk is full.
        DamagedSegment: a segment is damaged and ``salvage`` is not set; no segment was removed.
    """
    local = _local(store)
    with _only_one(store):
        loaded = None if salvage else index.load(store)
        damaged: list[Damage] = []
        held = store.files.salvageable(damaged) if salvage else store.files.segments()
        counts = {"records": 0, "samples": 0}
        size = packed = 0
        for segment in held:
            for path, data in _readable(local, segment, damaged) if salvage else segment.files():
                folder = path.rpartition("/")[0]
                if local.read(path) != data:
                    local.write(path, data, temporary=_temporary(folder))
                counts[path.split("/")[0]] += 1
                size += len(data)
        bad = {one.path for one in damaged}
        for segment in held:
            packed += local.size(segment.path) or 0
            if local.show(segment.path) not in bad:
                local.remove(segment.path)
        for path in [path for path in store.files.segment_paths() if local.show(path) in bad]:
            local.move(path, f"quarantine/{path.rpartition('/')[2]}")
        local.remove_empty(FOLDER)
        store.files.segments()
        if loaded is not None:
            index.restamp(store, loaded)
        return Packed("", counts["records"], counts["samples"], size, packed, tuple(damaged))


def verify(store: Store) -> tuple[int, int]:
    """Read every packed file and check it against its digest.

    Returns:
        Number of segments and of files in them.

    Raises:
        DamagedSegment: one does not match.
    """
    held = store.files.segments()
    return len(held), sum(1 for segment in held for _ in segment.files())


# --- steps ---------------------------------------------------------------------------------------
def _local(store: Store) -> LocalFiles:
    if isinstance(store.files.loose, LocalFiles):
        return store.files.loose
    raise UserError(
        "only a store in a local folder can be packed", where=store.root, fix="Pack a local copy and upload that."
    )


@contextlib.contextmanager
def _only_one(store: Store) -> Iterator[None]:
    claim = store.claim(LOCK)
    if claim is None:
        raise UserError("another process packs this store", where=store.root, fix="Wait until it has ended.")
    with claim:
        yield


def _temporary(folder: str) -> str:
    return f"{folder}/.{time.time():.0f}.{uuid.uuid4().hex[:12]}.tmp"


def _replace(
    store: Store, local: LocalFiles, old: Sequence[Segment], wanted: list[str], left_out: list[Damage]
) -> None:
    """Write a segment of these files, check it, and remove the segments and loose files that it replaces."""
    draft = _temporary(FOLDER)
    target = ""
    rows: list[segments.SegmentEntry] = []
    if wanted:
        target, rows = local.build(
            draft,
            lambda path: segments.write(path, _contents(store, wanted, left_out)),
            name=segments.name_of,
            check=lambda target: _check(local, draft, target),
        )
    for segment in old:
        if segment.path != target:
            local.remove(segment.path)
    for row in rows:
        local.remove(row.path)
    for folder in ("records", "samples", FOLDER):
        local.remove_empty(folder)


def _contents(store: Store, wanted: list[str], left_out: list[Damage]) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of the files to pack; loose ones are checked against the digest in their names."""
    for path in wanted:
        data = store.files.read(path)
        if data is None:
            left_out.append(Damage(store.files.show(path), "the file is no longer there"))
        elif store.files.packed(path) is None and not _intact(path, data):
            left_out.append(Damage(store.files.show(path), "the content does not match its digest: changed or cut off"))
        else:
            yield path, data


def _held(store: Store, local: LocalFiles, path: str, data: bytes) -> bool:
    """True if the store has this file already; a damaged loose one does not count."""
    if store.files.packed(path) is not None:
        return True
    held = local.read(path)
    return held == data or (held is not None and path.startswith("records/") and _intact(path, held))


def _intact(path: str, data: bytes) -> bool:
    name = path.rpartition("/")[2]
    if path.startswith("samples/"):
        return hashlib.sha256(data).hexdigest() == name.removesuffix(".parquet")
    try:
        content = json.loads(data)
        stored = content.pop("id")
        return bool(digest(content) == stored and stored.startswith(name.split(".")[-2]))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False


def _check(local: LocalFiles, draft: str, target: str) -> None:
    """Read a new segment back, every byte of it."""
    for _ in Segment(target, local.show(draft), lambda: local.open(draft)).files():
        pass


def _readable(local: LocalFiles, segment: Segment, damaged: list[Damage]) -> Iterator[tuple[str, bytes]]:
    for number in range(segment.groups):
        found, bad = segment.salvage(number)
        damaged += [Damage(local.show(segment.path), why) for why in bad]
        yield from found.items()


def _described(store: Store, left_out: list[Damage]) -> Packed:
    held = store.files.segments()
    rows = [row for segment in held for row in segment.rows]
    records = sum(row.path.startswith("records/") for row in rows)
    size = sum(store.files.loose.size(segment.path) or 0 for segment in held)
    name = held[0].path if held else ""
    return Packed(name, records, len(rows) - records, sum(row.size for row in rows), size, tuple(left_out))

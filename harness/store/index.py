"""The index: what all records of a store say, flat, in one Parquet file, so that many of them load at once.

``index/records.parquet`` under the store's root holds one row per record with its readings as a list. It is a copy and
never trusted over the records: a row counts only while the store has a file of its name, size and time of modification
(on a remote file system: entity tag or times). Files without such a row are read, rows without such a file are
dropped, and an index that cannot be read, or of another version, counts as none. It is replaced in one piece, so that
several processes may bring it up to date at once: each writes a whole one, and the last one stays.

Small stores have none: below :data:`FEWEST` records, reading them costs less than keeping a copy.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from harness.comparability import (
    AXES,
    SETTINGS,
    comparable,
    configuration,
    marks,
    place,
    remarks,
    role,
    settings_of,
)
from harness.digests import canonical_json, digest
from harness.errors import UserError
from harness.record import SCHEMA_VERSION, Record
from harness.store.store import Damage, Entry, Store, parsed, without_collection

FEWEST = 1_000
FILE = "index/records.parquet"
VERSION = f"3, records of layout {SCHEMA_VERSION}"
_DICTIONARY_BYTES = 64 * 2**20  # of the distinct texts of a column, of 20,000 records
_CHUNK = 500  # records turned into arrays at once: bounds the memory of a first build

_TEXT = ("id", "key", "label", "sweep", "role", "status", "stage", "reason", "check", "started", "finished")
_WORDS = ("schedule", "dtype", "version")
ROWS = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in _TEXT),
        pa.field("supersedes", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("attempt", pa.int64()),
        *(pa.field(axis, pa.string()) for axis in AXES),  # labels
        pa.field("seed", pa.int64()),
        pa.field("config", pa.string()),  # harness.comparability.configuration
        pa.field("condition", pa.string()),  # digest of harness.comparability.comparable
        pa.field("machine", pa.string()),  # harness.comparability.place
        pa.field("task_name", pa.string()),
        pa.field("task_version", pa.int64()),
        pa.field("protocol", pa.int64()),
        pa.field("marks", pa.list_(pa.string())),
        pa.field("remarks", pa.list_(pa.string())),
        pa.field("samples", pa.string()),  # digest of the sample file
        pa.field("sample_rows", pa.int64()),
        pa.field("packages", pa.string()),  # JSON: name to version
        pa.field("loss_rose", pa.bool_()),
        *(
            pa.field(name, {"learning_rate": pa.float64()}.get(name, pa.string() if name in _WORDS else pa.int64()))
            for name in SETTINGS
        ),
    ]
)
"""Columns of the flat rows; one row a record."""
PARTS = pa.field("parts", pa.list_(pa.field("element", pa.dictionary(pa.int32(), pa.string()))))
"""A further column: each part of cell, environment and outcome as a JSON list of (what, name, value), so that
:mod:`harness.store.indexed` can make the record again without its readings and series."""
_WHOLE = ROWS.append(PARTS)
_FILE_COLUMNS = [pa.field("path", pa.string()), pa.field("stamp", pa.string())]
_READING = pa.struct([("kind", pa.int32()), ("value", pa.float64()), ("n", pa.float64()), ("spread", pa.float64())])


class Kind(NamedTuple):
    """Shared by the readings of many records: quantity, stage, unit, instrument, typed reason."""

    stage: str
    quantity: str
    unit: str
    source: str | None
    why_missing: str | None

    @property
    def name(self) -> str:
        """Name of the quantity; ``stage.name`` for one of a stage."""
        return f"{self.stage}.{self.quantity}" if self.stage else self.quantity


@dataclass(frozen=True)
class Flat:
    """Records as columns.

    Attributes:
        rows: columns of :data:`ROWS`, one row a record, and :data:`PARTS` where they were asked for.
        starts: shape (records + 1,): readings of record i are those from ``starts[i]`` to ``starts[i + 1]``.
        kinds: meaning of the codes in ``kind``.
        kind: shape (readings,), as are ``value``, ``n`` and ``spread``, which are NaN where there is none.
    """

    rows: pa.Table
    starts: NDArray[np.int64]
    kinds: tuple[Kind, ...]
    kind: NDArray[np.int32]
    value: NDArray[np.float64]
    n: NDArray[np.float64]
    spread: NDArray[np.float64]

    def take(self, which: NDArray[np.int64]) -> Flat:
        """These records only, in this order."""
        lengths = np.diff(self.starts)[which]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.repeat(self.starts[which] - starts[:-1], lengths) + np.arange(starts[-1])
        columns = (self.kind[at], self.value[at], self.n[at], self.spread[at])
        return Flat(self.rows.take(pa.array(which)), starts, self.kinds, *columns)

    def owners(self) -> NDArray[np.int64]:
        """Shape (readings,): the number of the record each reading belongs to."""
        return np.repeat(np.arange(self.rows.num_rows), np.diff(self.starts))


# --- records to columns --------------------------------------------------------------------------
def flatten(records: Iterable[Record]) -> Flat:
    """The columns of these records, in their order, without their parts."""
    return _flatten(records, None)


def _flatten(records: Iterable[Record], parts: list[list[str]] | None) -> Flat:
    rows: dict[str, list[Any]] = {name: [] for name in ROWS.names}
    codes: dict[Kind, int] = {}
    starts, kind, value, n, spread = [0], [], [], [], []
    for record in records:
        for name, item in _row(record).items():
            rows[name].append(item)
        if parts is not None:
            parts.append(_parts(record))
        for what, number, count, sd in _readings(record):
            kind.append(codes.setdefault(what, len(codes)))
            value.append(number)
            n.append(count)
            spread.append(sd)
        starts.append(len(kind))
    table = pa.table(rows, schema=ROWS)
    if parts is not None:
        offsets = np.cumsum([0, *map(len, parts)]).astype(np.int32)
        texts = pa.array([text for of in parts for text in of], pa.string()).dictionary_encode()
        table = table.append_column(PARTS, pa.ListArray.from_arrays(pa.array(offsets), texts).cast(PARTS.type))
    return Flat(
        table,
        np.array(starts, np.int64),
        tuple(codes),
        np.array(kind, np.int32),
        np.array(value, np.float64),
        np.array(n, np.float64),
        np.array(spread, np.float64),
    )


def _row(record: Record) -> dict[str, object]:
    cell, outcome = record.cell_view, record.outcome
    return {
        **{name: getattr(record, name) for name in ("id", "key", "label", "sweep", "started", "finished", "attempt")},
        **{name: getattr(outcome, name) for name in ("status", "stage", "reason", "check")},
        "role": role(record),
        "supersedes": record.supersedes,
        "fingerprint": record.fingerprint,
        **{axis: cell.label(axis) for axis in AXES},
        "seed": _whole(cell.seed),
        "config": configuration(record),
        "condition": digest(comparable(record)),
        "machine": place(record),
        "task_name": cell.name("task"),
        "task_version": _whole(cell.part("task").get("version")),
        "protocol": _whole(cell.protocol),
        "marks": list(marks(record)),
        "remarks": list(remarks(record)),
        "samples": record.samples.digest if record.samples is not None else None,
        "sample_rows": record.samples.rows if record.samples is not None else None,
        "loss_rose": record.loss_rose,
        "packages": json.dumps(record.environment.get("packages") or {}, sort_keys=True),
        **settings_of(record),
    }


def _parts(record: Record) -> list[str]:
    """JSON of each part. Parts of many records are alike, and the file holds each text once."""
    whats = (("cell", record.cell), ("environment", record.environment))
    found = [canonical_json([what, name, value]) for what, of in whats for name, value in of.items()]
    return [*found, canonical_json(["outcome", "", record.outcome.model_dump(mode="json")])]


def _whole(value: object) -> int | None:
    return value if type(value) is int and value.bit_length() < 64 else None


def _readings(record: Record) -> Iterator[tuple[Kind, float | None, int | None, float | None]]:
    for name, r in record.metrics.items():
        yield Kind("", name, r.unit, r.source, r.why_missing), r.value, r.n, r.spread
    for span in record.spans:
        if span.seconds is not None:  # else its readings hold the reason
            yield Kind(span.stage, "stage_s", "s", "monotonic clock", None), span.seconds, None, None
        for r in span.readings:
            yield Kind(span.stage, r.quantity, r.unit, r.source, r.why_missing), r.value, r.n, r.spread


def join(parts: Sequence[Flat]) -> Flat:
    """Several sets of columns as one, one below the other."""
    codes: dict[Kind, int] = {}
    kinds = []
    for one in parts:
        new = np.array([codes.setdefault(what, len(codes)) for what in one.kinds], np.int32)
        kinds.append(new[one.kind] if len(one.kind) else one.kind)
    lengths = np.concatenate([[0], *(np.diff(one.starts) for one in parts)])
    return Flat(
        pa.concat_tables([one.rows for one in parts]).combine_chunks(),
        np.cumsum(lengths).astype(np.int64),
        tuple(codes),
        np.concatenate(kinds),
        *(np.concatenate([getattr(one, name) for one in parts]) for name in ("value", "n", "spread")),
    )


# --- the file ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Index:
    """All readable records of a store, flat.

    Attributes:
        flat: in the order of their file names; ``paths`` are those names.
        damaged: files that could not be read (:class:`harness.store.store.Damage`).
        read: how many records were read from their own files, because the index held no row of theirs.
        unwritten: why the index was not written, "" if it was or did not need to be.
    """

    flat: Flat
    paths: tuple[str, ...]
    damaged: tuple[Damage, ...]
    read: int
    unwritten: str


def load(store: Store, *, rebuild: bool = False, fewest: int = FEWEST, parts: bool = False) -> Index:
    """The records of a store, from its index where that is right, and from their files elsewhere.

    Args:
        rebuild: read every record, without using the index.
        fewest: records below which no index is written where there is none.
        parts: with the column :data:`PARTS`.

    Raises:
        UserError: a folder may not be listed.
    """
    with without_collection():
        found = _load(store, rebuild, fewest, parts)
    if parts or PARTS.name not in found.flat.rows.column_names:
        return found
    return replace(found, flat=replace(found.flat, rows=found.flat.rows.drop_columns(PARTS.name)))


def _load(store: Store, rebuild: bool, fewest: int, with_parts: bool) -> Index:
    stamps = store.record_stamps()
    old = None if rebuild else _read(store, with_parts)
    if old is not None and not with_parts and dict(zip(*old[1:], strict=True)) != stamps:
        old = _read(store, True)  # it will be written again
    rows: Flat | None = None
    kept: list[tuple[str, int]] = []
    if old is not None:
        rows = old[0]
        kept = [(p, i) for i, (p, s) in enumerate(zip(*old[1:], strict=True)) if stamps.get(p) == s]
    known = {path for path, _ in kept}
    there = {path: entry for path in stamps if path not in known and (entry := parsed(path)) is not None}
    new = store.files.in_reading_order(sorted(there))
    parts, paths, damaged = [], [path for path, _ in kept], []
    if rows is not None:
        parts.append(rows.take(np.array([i for _, i in kept], np.int64)) if len(kept) < rows.rows.num_rows else rows)
    for start in range(0, len(new), _CHUNK):
        found, bad = _read_records(store, [there[path] for path in new[start : start + _CHUNK]])
        damaged += bad
        paths += [entry.path for entry, _ in found]
        parts.append(_flatten((record for _, record in found), []))
    flat = join(parts) if len(parts) > 1 else parts[0] if parts else _flatten((), [])
    if new:
        order = np.argsort(np.array(paths), kind="stable")
        flat, paths = flat.take(order.astype(np.int64)), [paths[i] for i in order]
    stale = rows is None or bool(new) or len(kept) < rows.rows.num_rows
    why = ""
    if stale and (rows is not None or rebuild or len(paths) >= fewest):
        why = _write(store, flat, paths, [stamps[path] for path in paths])
    return Index(flat, tuple(paths), tuple(damaged), len(new) - len(damaged), why)


def restamp(store: Store, loaded: Index) -> None:
    """Write the index again after files were packed or unpacked: the same rows, with the stamps of today.

    Args:
        loaded: the index as it was before.
    """
    if store.files.exists(FILE) or len(loaded.paths) >= FEWEST:
        stamps = store.record_stamps()
        kept = [i for i, path in enumerate(loaded.paths) if path in stamps]
        paths = [loaded.paths[i] for i in kept]
        flat = loaded.flat if len(kept) == len(loaded.paths) else loaded.flat.take(np.array(kept, np.int64))
        _write(store, flat, paths, [stamps[path] for path in paths])


def _read_records(store: Store, entries: Iterable[Entry]) -> tuple[list[tuple[Entry, Record]], list[Damage]]:
    read = [(entry, store.read(entry)) for entry in entries]
    return [(e, r) for e, r in read if isinstance(r, Record)], [d for _, d in read if isinstance(d, Damage)]


def _read(store: Store, parts: bool) -> tuple[Flat, list[str], list[str]] | None:
    """Columns, paths and stamps of the index file; None where there is none of this version that can be read."""
    data = store.files.read(FILE)
    if data is None:
        return None
    try:
        about = parquet.read_schema(pa.BufferReader(data)).metadata or {}
        if about.get(b"peft_matrix_index") != VERSION.encode():
            return None
        wanted = _WHOLE if parts else ROWS
        names = [*wanted.names, "readings", *(field.name for field in _FILE_COLUMNS)]
        table = parquet.read_table(pa.BufferReader(data), columns=names)
        kinds = tuple(Kind(*one) for one in json.loads(about[b"kinds"]))
    except (pa.ArrowException, KeyError, ValueError, TypeError):
        return None  # cut off, or no index: it is made again from the records, which alone count
    table = table.combine_chunks()
    lists = table.column("readings").chunk(0) if table.num_rows else pa.array([], pa.list_(_READING))
    inner = lists.flatten()
    columns = [inner.field(i).to_numpy(zero_copy_only=False) for i in range(4)]
    flat = Flat(
        table.select(wanted.names).cast(wanted),
        np.asarray(lists.offsets, np.int64) - lists.offsets[0].as_py(),
        kinds,
        *columns,
    )
    return flat, table.column("path").to_pylist(), table.column("stamp").to_pylist()


def _write(store: Store, flat: Flat, paths: list[str], stamps: list[str]) -> str:
    """Put a whole index in the place of the one before; why that was not possible, or ""."""
    inner = pa.StructArray.from_arrays(
        [pa.array(flat.kind), pa.array(flat.value), pa.array(flat.n), pa.array(flat.spread)], fields=list(_READING)
    )
    table = flat.rows.append_column("readings", pa.ListArray.from_arrays(pa.array(flat.starts.astype(np.int32)), inner))
    for field, values in zip(_FILE_COLUMNS, (paths, stamps), strict=True):
        table = table.append_column(field, pa.array(values, pa.string()))
    about = {"peft_matrix_index": VERSION, "kinds": json.dumps(flat.kinds)}
    stream = pa.BufferOutputStream()
    options = {"compression": "zstd", "row_group_size": 20_000, "dictionary_pagesize_limit": _DICTIONARY_BYTES}
    parquet.write_table(table.replace_schema_metadata(about), stream, **options)
    temporary = f"index/.{time.time():.0f}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        store.files.write(FILE, bytes(stream.getvalue()), temporary=temporary)
    except UserError as error:  # a read-only store, or a full disk: the records can still be read
        return str(error)
    return ""

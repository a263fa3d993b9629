"""The scored items of many records from one file, so that a board of 10,000 rows does not open 20,000.

``index/samples.parquet`` holds what :class:`reports.data.samples.Answered` holds of each sample file, and each layout
once. Like the index of the records it is a copy: a row counts only while the store has a sample file of its digest,
with the stamp that it had; any other file is read, checked against its digest, and added.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from harness.errors import UserError
from harness.record import Record
from harness.store.index import FEWEST
from harness.store.store import Store
from reports.data.samples import Answered, Items, Layout, SampleSource, ScoredItems, answered, of_layout, stored_samples

FILE = "index/samples.parquet"
VERSION = b"1"
_MARK = b"peft_matrix_samples"
_SCHEMA = pa.schema(
    [
        pa.field("digest", pa.string()),  # of the sample file, or of a layout
        pa.field("stamp", pa.string()),  # of the sample file; none for a layout
        pa.field("arms", pa.large_string()),  # of a layout, JSON: arm to items, answers, rows, all rows
        pa.field("layout", pa.int32()),  # of a sample file: position among the layouts
        pa.field("correct", pa.binary()),
        pa.field("logp", pa.binary()),
        pa.field("bytes_each", pa.int8()),  # of a log-probability
        pa.field("one_prediction", pa.list_(pa.bool_())),
        pa.field("cut", pa.list_(pa.int64())),
        pa.field("calibration_error", pa.float64()),
    ],
    metadata={_MARK: VERSION},
)
Known = dict[str, tuple[str, Answered]]
"""Digest of a sample file to its stamp and its columns."""


def indexed_samples(store: Store, records: Iterable[Record], *, fewest: int = FEWEST) -> SampleSource:
    """The scored items of these records.

    Args:
        fewest: sample files below which each is read by itself, and no file is written.
    """
    digests = {record.id: record.samples.digest for record in records if record.samples is not None}
    wanted = sorted(set(digests.values()))
    return stored_samples(store, digests.get, known_items(store, wanted) if len(wanted) >= fewest else None)


def known_items(store: Store, wanted: Sequence[str]) -> dict[str, ScoredItems | UserError]:
    """The scored items in sample files, by digest, or why a file cannot be read; missing files are left out."""
    stamps = {name.partition(".")[0]: stamp for _, name, stamp in store.files.stamps("samples")}
    held = _read(store)
    known = {digest: one for digest, one in held.items() if stamps.get(digest) == one[0]}
    new = store.files.in_reading_order(f"samples/{d}.parquet" for d in wanted if d in stamps and d not in known)
    out: dict[str, ScoredItems | UserError] = {}
    for path in new:
        digest = path.removeprefix("samples/").removesuffix(".parquet")
        try:
            known[digest] = stamps[digest], answered(store.sample_file(digest))
        except UserError as error:
            out[digest] = error
    if len(new) > len(out) or len(known) < len(held):
        _write(store, known)
    alike: dict[tuple[str, int, int], list[str]] = {}
    for digest in wanted:
        if digest in known:
            one = known[digest][1]
            alike.setdefault((one.layout, len(one.correct), one.logp.itemsize), []).append(digest)
    for digests in alike.values():
        out |= zip(digests, of_layout([known[digest][1] for digest in digests]), strict=True)
    return out


def _read(store: Store) -> Known:
    """The rows of the file; none where there is no file of this version that can be read."""
    data = store.files.read(FILE)
    if data is None:
        return {}
    try:
        table = parquet.read_table(pa.BufferReader(data))
        if (table.schema.metadata or {}).get(_MARK) != VERSION:
            return {}
        columns = {name: table.column(name).to_pylist() for name in _SCHEMA.names}
        rows = list(zip(*columns.values(), strict=True))
        layouts = [(digest, _arms(arms)) for digest, _, arms, *_ in rows if arms is not None]
        return {row[0]: (row[1], _row(layouts, *row[3:])) for row in rows if row[2] is None}
    except (pa.ArrowException, KeyError, ValueError, TypeError, IndexError):
        return {}  # cut off, or none: it is made again from the sample files, which alone count


def _arms(text: str) -> dict[str, Layout]:
    found: Mapping[str, Any] = json.loads(text)
    return {
        arm: Layout(Items(map(tuple, items)), tuple(answers), np.array(rows, np.int64), np.array(all_rows, np.int64))
        for arm, (items, answers, rows, all_rows) in found.items()
    }


def _row(
    layouts: Sequence[tuple[str, Mapping[str, Layout]]],
    layout: int,
    correct: bytes,
    logp: bytes,
    bytes_each: int,
    one_prediction: Sequence[bool],
    cut: Sequence[int],
    calibration_error: float | None,
) -> Answered:
    kind = np.dtype(f"<f{bytes_each}")
    arrays = np.frombuffer(correct, np.int8), np.frombuffer(logp, kind)
    return Answered(*layouts[layout], *arrays, tuple(one_prediction), tuple(cut), calibration_error)


def _write(store: Store, known: Known) -> None:
    """Put a whole file in the place of the one before. In a store that is only read, the files are read each time."""
    layouts = {one.layout: one.arms for _, one in known.values()}
    place = {digest: number for number, digest in enumerate(layouts)}
    empty = dict.fromkeys(_SCHEMA.names)
    rows: list[dict[str, Any]] = [
        {
            **empty,
            "digest": digest,
            "arms": json.dumps(
                {arm: [one.items, one.answers, one.rows.tolist(), one.all_rows.tolist()] for arm, one in arms.items()}
            ),
        }
        for digest, arms in layouts.items()
    ]
    rows += (
        {
            **empty,
            "digest": digest,
            "stamp": stamp,
            "layout": place[one.layout],
            "correct": one.correct.tobytes(),
            "logp": one.logp.astype(one.logp.dtype.newbyteorder("<")).tobytes(),
            "bytes_each": one.logp.itemsize,
            "one_prediction": one.one_prediction,
            "cut": one.cut,
            "calibration_error": one.calibration_error,
        }
        for digest, (stamp, one) in sorted(known.items())
    )
    stream = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), stream, compression="zstd", use_dictionary=False)
    temporary = f"index/.{time.time():.0f}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        store.files.write(FILE, bytes(stream.getvalue()), temporary=temporary)
    except UserError:
        return

"""Stored samples as arrays, one number an item: what boards, comparisons and regressions need of them.

Records of one task were scored on the same items in the same order, so the items are kept once for all of them
(:class:`Items`), and a board of 10,000 rows holds two arrays a record and arm.

``index/samples.parquet`` holds the columns of many sample files (:class:`Answered`), and each layout once, so that such
a board does not open 20,000 files. Like the index of the records it is a copy: a row counts only while the store has a
sample file of its digest, with the stamp that it had; any other file is read, checked against its digest, and added.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from harness import stats
from harness.errors import UserError
from harness.record import Record, Scalar
from harness.store.index import FEWEST
from harness.store.store import Store

ARMS = {
    "accuracy": "adapted",
    "merged_accuracy": "merged",
    "retained_accuracy": "retained",
    "base_retained_accuracy": "base",
}
"""Metric to the arm of the samples it is the mean of."""
_MOST_LAYOUTS = 256


class Items(tuple[tuple[str, str], ...]):
    """(task, item) of scored items, sorted. Its hash is computed once."""

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return super().__hash__()

    @functools.cached_property
    def one_task(self) -> bool:
        """True if all items are of one task."""
        return len({task for task, _ in self}) == 1

    @functools.cached_property
    def weights(self) -> NDArray[np.float64]:
        """Weight of every item such that the weighted mean is the mean over tasks: (items,), sums to 1."""
        names, index, counts = np.unique([task for task, _ in self], return_inverse=True, return_counts=True)
        return np.asarray(1.0 / (len(names) * counts[index]), dtype=np.float64)


@dataclass(frozen=True)
class ArmItems:
    """The scored items of one arm of one record.

    Attributes:
        items: all items, sorted.
        judged: those that are right or wrong, sorted.
        correct: (judged,), 1 or 0.
        logp: log-probability of the right answer, (items,), nats; NaN where there is none.
        answers: right answer of every item.
        one_prediction: whether all items have one and the same prediction.
        cut: rows whose input was longer than the context.
    """

    items: Items
    judged: Items
    correct: NDArray[np.int8]
    logp: NDArray[np.floating[Any]]
    answers: tuple[str, ...]
    one_prediction: bool
    cut: int


@dataclass(frozen=True)
class ScoredItems:
    """The samples of one record.

    Attributes:
        arms: by name.
        calibration_error: expected calibration error of the adapted arm; None where its items carry no log-probability
            of every option.
    """

    arms: Mapping[str, ArmItems]
    calibration_error: float | None


Samples: TypeAlias = "pa.Table | ScoredItems"
"""The scored items of one record, as the table that is stored, or as arrays."""
SampleSource = Callable[[str], "Samples | None"]
"""Record id to its scored items; None where the record has none."""


def stored_samples(
    store: Store, digest_of: Callable[[str], str | None], known: Mapping[str, ScoredItems | UserError] | None = None
) -> SampleSource:
    """The scored items of a store's records, each sample file read once.

    Args:
        digest_of: record id to the digest of its samples, None where it has none.
        known: scored items by digest, of those that need not be read, or why they cannot be.
    """
    held: dict[str, ScoredItems | UserError | None] = dict(known or {})

    def read(identity: str) -> ScoredItems | None:
        digest = digest_of(identity)
        if digest is not None and digest not in held:
            held[digest] = scored_items(store.sample_file(digest))
        found = held[digest] if digest is not None else None
        if isinstance(found, UserError):
            raise found
        return found

    return read


def samples_of_records(store: Store, records: Iterable[Record]) -> SampleSource:
    """The scored items of these records, each file read when it is asked for."""
    digests = {record.id: record.samples.digest for record in records if record.samples is not None}
    return stored_samples(store, digests.get)


@dataclass(frozen=True)
class Layout:
    """The part of one arm of a sample file that records share.

    Attributes:
        rows: row of each item, in the order of ``items``; an item listed twice counts as its last row says.
        all_rows: every row of the arm, in the order of the file.
    """

    items: Items
    answers: tuple[str, ...]
    rows: NDArray[np.int64]
    all_rows: NDArray[np.int64]


_layouts: dict[str, Mapping[str, Layout]] = {}


def _layout(table: pa.Table) -> tuple[str, Mapping[str, Layout]]:
    """Digest of what records share, and name of an arm to its layout."""
    columns = table.select(["arm", "task", "item", "answer"])
    state = hashlib.sha256()
    for batch in columns.combine_chunks().to_batches():
        state.update(batch.serialize())
    known = state.hexdigest()
    if known not in _layouts:
        if len(_layouts) >= _MOST_LAYOUTS:
            _layouts.clear()
        _layouts[known] = read_layout(*(columns.column(name).to_pylist() for name in columns.column_names))
    return known, _layouts[known]


def read_layout(arms: list[str], tasks: list[str], items: list[str], answers: list[str]) -> dict[str, Layout]:
    """Arm to its layout, from the columns of a sample file."""
    found: dict[str, list[int]] = {}
    for at, arm in enumerate(arms):
        found.setdefault(arm, []).append(at)
    out = {}
    for arm, rows in found.items():
        places = {(tasks[at], items[at]): at for at in rows}
        order = sorted(places)
        told = tuple(answers[places[key]] for key in order)
        out[arm] = Layout(Items(order), told, np.array([places[key] for key in order]), np.array(rows))
    return out


class Answered(NamedTuple):
    """The columns of a sample file that boards need, and what follows from the others.

    Attributes:
        layout: digest of the columns that records share.
        arms: arm to its layout.
        correct: 1, 0, or 2 where nothing is right or wrong; (rows,).
        logp: log-probability of the right answer, nats; (rows,).
        one_prediction: of each arm, in their order.
        cut: likewise.
    """

    layout: str
    arms: Mapping[str, Layout]
    correct: NDArray[np.int8]
    logp: NDArray[np.floating[Any]]
    one_prediction: tuple[bool, ...]
    cut: tuple[int, ...]
    calibration_error: float | None


def answered(found: pa.Table) -> Answered:
    """The columns of a sample file that boards need."""
    correct = found.column("correct").combine_chunks()
    known = correct.is_valid().to_numpy(zero_copy_only=False)
    right = correct.fill_null(False).to_numpy(zero_copy_only=False).astype(np.int8)
    cut = found.column("cut").to_numpy()
    name, layouts = _layout(found)
    rows = layouts["adapted"].all_rows if "adapted" in layouts else np.array([], np.int64)
    predictions = found.column("prediction")
    return Answered(
        name,
        layouts,
        np.where(known, right, np.int8(2)),
        _narrow(found.column("logp_answer").to_numpy()),
        tuple(pc.count_distinct(predictions.take(one.all_rows)).as_py() == 1 for one in layouts.values()),
        tuple(int(cut[one.all_rows].sum()) for one in layouts.values()),
        _calibration_error(found, rows[known[rows]], right),
    )


def of_layout(files: Sequence[Answered]) -> list[ScoredItems]:
    """The arrays of sample files of one layout and one width of ``logp``, made for all of them at once."""
    correct, logp = np.stack([one.correct for one in files]), np.stack([one.logp for one in files])
    arms: list[dict[str, ArmItems]] = [{} for _ in files]
    for number, (name, layout) in enumerate(files[0].arms.items()):
        right, logps = np.take(correct, layout.rows, axis=1), np.take(logp, layout.rows, axis=1)
        for at, file in enumerate(files):
            known = right[at] < 2
            all_known = bool(known.all())
            arms[at][name] = ArmItems(
                items=layout.items,
                judged=layout.items if all_known else _some(layout.items, tuple(known.tolist())),
                correct=right[at] if all_known else right[at][known],
                logp=logps[at],
                answers=layout.answers,
                one_prediction=file.one_prediction[number],
                cut=file.cut[number],
            )
    return [ScoredItems(of, file.calibration_error) for of, file in zip(arms, files, strict=True)]


def scored_items(found: Samples | None) -> ScoredItems | None:
    """The samples of a record as arrays; None where it has none."""
    return found if found is None or isinstance(found, ScoredItems) else of_layout([answered(found)])[0]


def _narrow(values: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
    """As float32 where that loses nothing, as in every file that is written now."""
    narrow = values.astype(np.float32)
    return narrow if np.array_equal(narrow, values, equal_nan=True) else values


@functools.lru_cache(maxsize=_MOST_LAYOUTS)
def _some(items: Items, kept: tuple[bool, ...]) -> Items:
    return Items(key for key, one in zip(items, kept, strict=True) if one)


def _calibration_error(table: pa.Table, rows: NDArray[np.int64], right: NDArray[np.int8]) -> float | None:
    """Of the rows with two options or more. The confidence is the likeliest option's share of all options."""
    column = table.column("logp_choices").combine_chunks()
    if column.null_count == len(column):
        return None
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)[rows]
    rows, lengths = rows[lengths > 1], lengths[lengths > 1]
    if not len(rows):
        return None
    starts = column.offsets.to_numpy()[rows]
    values = column.values.to_numpy(zero_copy_only=False)
    confidence = np.empty(len(rows))
    for length in np.unique(lengths):
        these = lengths == length
        logps = values[starts[these][:, None] + np.arange(length)]
        most = logps.max(axis=1)
        possible = np.isfinite(most)
        confidence[these] = 1.0 / length  # where no option is possible
        shares = np.exp(logps[possible] - most[possible, None])
        confidence[np.flatnonzero(these)[possible]] = 1.0 / shares.sum(axis=1)
    return stats.calibration_error(confidence, right[rows].astype(np.float64)).error


@dataclass(frozen=True)
class Scores:
    """Right or wrong, for every seed and item of one arm of one configuration.

    Attributes:
        correct: (seeds, items), 0 or 1.
        items: (task, item) of every column, sorted.
        seeds: seed of every row.
    """

    correct: NDArray[np.int8]
    items: Items
    seeds: tuple[Scalar, ...]

    @property
    def right(self) -> NDArray[np.float64]:
        """(seeds, items), 0.0 or 1.0."""
        return self.correct.astype(np.float64)


def gather(tables: Sequence[tuple[Scalar, Samples | None]], arm: str) -> Scores | None:
    """The scores of one arm over the seeds of a configuration.

    Args:
        tables: seed and its samples.
        arm: ``adapted``, ``merged``, ``retained`` or ``base``.

    Returns:
        None where a seed has no samples of this arm, or seeds were scored on different items, so that nothing
        can be resampled together.
    """
    found = [scored.arms.get(arm) if (scored := scored_items(table)) is not None else None for _, table in tables]
    arms = [one for one in found if one is not None and one.judged]
    if not arms or len(arms) < len(found) or any(one.judged != arms[0].judged for one in arms):
        return None
    return Scores(np.stack([one.correct for one in arms]), arms[0].judged, tuple(seed for seed, _ in tables))


# --- of many records, from one file -----------------------------------------------------------------
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
    return samples_of_digests(store, digests, digests, fewest=fewest)


def samples_of_digests(
    store: Store, digests: Mapping[str, str], first: Iterable[str], *, fewest: int = FEWEST
) -> SampleSource:
    """The scored items of records by the digest of their samples; those that are surely asked for are read together.

    Args:
        digests: record id to the digest of its samples.
        first: ids of the records that are surely asked for; those without samples are left out.
        fewest: sample files below which each is read by itself, and no file is written.
    """
    wanted = sorted({digests[identity] for identity in first if identity in digests})
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
    found = json.loads(text)
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
    rows: list[dict[str, object]] = [
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

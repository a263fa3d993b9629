"""Stored samples as arrays, one number an item: what boards, comparisons and regressions need of them.

Records of one task were scored on the same items in the same order, so the items are kept once for all of them
(:class:`Items`), and a board of 10,000 rows holds two arrays a record and arm.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness import stats
from harness.errors import UserError
from harness.record import Record, Scalar
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

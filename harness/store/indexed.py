"""Records that are made from the index, so that a board of 10,000 rows does not read 20,000 files.

Key, cell, environment, outcome and the values of readings come from the index. Anything else of such a record (its
readings with their details, its series) is read from its own file when it is asked for.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Self, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.comparability import SETTINGS
from harness.record import SCHEMA_VERSION, Outcome, Record, SamplesRef
from harness.store.index import FEWEST, PARTS, Flat, Index, flatten, load
from harness.store.store import Damage, Store, parsed

_FIELDS = ("key", "label", "sweep", "fingerprint", "attempt", "started", "finished", "supersedes")
_INDEXED = ("machine", "marks", "config", *SETTINGS)


def read_records(
    store: Store, keys: Iterable[str] | None = None, *, fewest: int = FEWEST
) -> tuple[list[Record], list[Damage]]:
    """All readable records (of ``keys``, if given), as :meth:`harness.store.store.Store.records`.

    Args:
        fewest: records below which each is read from its file.
    """
    if sum(map(len, store.entries().values())) < fewest:
        return store.records(keys)
    loaded = load(store, parts=True, fewest=fewest)
    found = IndexedRecords(store, loaded).records()
    if keys is not None:
        wanted = set(keys)
        found = [record for record in found if record.key in wanted]
    return found, list(loaded.damaged)


def flat_of(records: Sequence[Record]) -> Flat:
    """The columns of these records, in their order; from the index, where all are of one."""
    of = {record.of for record in records if isinstance(record, IndexedRecord)}
    if len(of) != 1 or not all(isinstance(record, IndexedRecord) for record in records):
        return flatten(records)
    flat = of.pop().flat.take(np.array([record.at for record in records if isinstance(record, IndexedRecord)]))
    used, kind = np.unique(flat.kind, return_inverse=True)
    return replace(flat, kinds=tuple(flat.kinds[code] for code in used), kind=kind.astype(np.int32))


class IndexedRecord(Record):
    """A record of an index. What the index does not hold is read from the record's file."""

    of: ClassVar[IndexedRecords]  # of each instance its own, as is the next
    at: ClassVar[int]

    def __getattr__(self, name: str) -> object:
        if name not in Record.model_fields:
            raise AttributeError(name)
        for field in Record.model_fields:
            self.__dict__.setdefault(field, getattr(self.whole, field))
        return self.__dict__[name]

    @functools.cached_property
    def whole(self) -> Record:
        """The record as its file holds it.

        Raises:
            UserError: the file is damaged, or gone since the index was read.
        """
        return self.of.read(self.at)

    def content(self) -> dict[str, object]:
        """As of the file."""
        return self.whole.content()

    def to_json(self) -> str:
        """As of the file."""
        return self.whole.to_json()

    def model_copy(self, *, update: Mapping[str, object] | None = None, deep: bool = False) -> Self:
        """A copy of the whole record."""
        return cast("Self", self.whole.model_copy(update=update, deep=deep))

    def value(self, name: str) -> float | None:
        """From the index."""
        return _number(self.of.values(name)[self.at])

    def items(self, name: str) -> int | None:
        """From the index."""
        count = _number(self.of.counts(name)[self.at])
        return None if count is None else int(count)


def _shared_texts(column: pa.ChunkedArray) -> list[object]:
    """The values of a column, equal texts as one object."""
    if not pa.types.is_string(column.type):
        return list(column.to_pylist())
    found = column.combine_chunks().dictionary_encode()
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    pool = found.dictionary.to_pylist()
    return [None if code is None else pool[code] for code in found.indices.to_pylist()]


def _number(value: np.float64) -> float | None:
    return None if math.isnan(value) else float(value)


class IndexedRecords:
    """The records of one index.

    Args:
        loaded: with :data:`harness.store.index.PARTS`.
    """

    def __init__(self, store: Store, loaded: Index) -> None:
        self._store, self._paths, self.flat = store, loaded.paths, loaded.flat
        self._arrays: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def records(self) -> list[Record]:
        """All of them, in the order of the index. Equal parts are one object."""
        rows = self.flat.rows
        names = ("id", "samples", "sample_rows", "loss_rose", *_FIELDS, *_INDEXED)
        columns = [_shared_texts(rows.column(name)) for name in names]
        return [
            self._made(at, dict(zip(names, row, strict=True)), parts)
            for at, (row, parts) in enumerate(zip(zip(*columns, strict=True), self._parts(), strict=True))
        ]

    def _made(self, at: int, row: Mapping[str, object], parts: Mapping[str, dict[str, object]]) -> IndexedRecord:
        digest = row["samples"]
        values = {
            **{name: row[name] for name in ("id", "loss_rose", *_FIELDS)},
            "schema_version": SCHEMA_VERSION,
            "cell": parts["cell"],
            "environment": parts["environment"],
            "outcome": parts["outcome"][""],
            "samples": SamplesRef.model_validate({"digest": digest, "rows": row["sample_rows"]}) if digest else None,
            "indexed": {name: row[name] for name in _INDEXED},
            "of": self,
            "at": at,
        }
        made = IndexedRecord.__new__(IndexedRecord)
        for name, value in (
            ("__dict__", values),
            ("__pydantic_fields_set__", set()),
            ("__pydantic_extra__", None),
            ("__pydantic_private__", None),
        ):
            object.__setattr__(made, name, value)
        return made

    def _parts(self) -> list[dict[str, dict[str, object]]]:
        """Cell, environment and outcome of every record, each distinct text read once."""
        if not self.flat.rows.num_rows:
            return []
        lists = self.flat.rows.column(PARTS.name).combine_chunks()
        lists = lists.chunk(0) if hasattr(lists, "chunk") else lists
        texts = lists.flatten()
        pool = [self._part(text) for text in texts.dictionary.to_pylist()]
        codes, ends = texts.indices.to_pylist(), lists.offsets.to_numpy()
        ends = (ends - ends[0]).tolist()
        out = []
        environments: dict[tuple[int, ...], dict[str, object]] = {}
        for start, end in itertools.pairwise(ends):
            one: dict[str, dict[str, object]] = {"cell": {}, "environment": {}, "outcome": {}}
            for code in codes[start:end]:
                what, name, value = pool[code]
                one[what][name] = value
            alike = tuple(code for code in codes[start:end] if pool[code][0] == "environment")
            out.append({**one, "environment": environments.setdefault(alike, one["environment"])})
        return out

    @staticmethod
    def _part(text: str) -> tuple[str, str, object]:
        what, name, value = json.loads(text)
        return what, name, Outcome.model_validate(value) if what == "outcome" else value

    def read(self, at: int) -> Record:
        """The record as its file holds it."""
        entry = parsed(self._paths[at])
        assert entry is not None  # it was listed as a record
        return self._store.load(entry)

    def values(self, name: str) -> NDArray[np.float64]:
        """Value of a metric, or of ``stage.metric``, of every record; NaN where there is none."""
        return self._array(name)[0]

    def counts(self, name: str) -> NDArray[np.float64]:
        """Number behind it, likewise."""
        return self._array(name)[1]

    def _array(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if name not in self._arrays:
            flat = self.flat
            named = np.array([kind.name == name and kind.quantity != "stage_s" for kind in flat.kinds], bool)
            at = np.flatnonzero(named[flat.kind])[::-1]  # of several the first one counts
            owners = np.searchsorted(flat.starts, at, side="right") - 1
            arrays = np.full((2, flat.rows.num_rows), math.nan)
            arrays[0, owners], arrays[1, owners] = flat.value[at], flat.n[at]
            self._arrays[name] = arrays[0], arrays[1]
        return self._arrays[name]

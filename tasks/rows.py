"""Rows of a task: JSON Lines, JSON, CSV and Parquet files, and data sets of the Hub, with columns made from others.

``datasets`` and ``pyarrow`` are imported only where such rows are read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.bounded import parse_json
from harness.errors import UserError, kind_of
from harness.file_digests import FileDigests
from tasks.task import DerivedColumn, HubSource
from tasks.template import FieldError, lookup, render

Row = dict[str, Any]

DATA_ROOT_HINT = "Pass --data-root DIR (or set PEFT_MATRIX_DATA), where DIR/{} holds the rows."

_DIGESTS = FileDigests()
"""A file of rows is hashed once in a process as long as it does not change."""


class SplitRows(Protocol):
    """The rows of one source split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def where(self, index: int) -> str:
        """Readable position of row ``index``: the file and line, or the data set and row."""
        ...

    def values(self, column: str) -> list[Any]:
        """One column of all rows; None where a row does not have it."""
        ...


@dataclass(frozen=True)
class FileOrigin:
    """A file of rows; its ending says how it is read.

    Attributes:
        path: ``.jsonl`` (one object a line; blank lines are skipped), ``.json`` (a list of objects, or lines),
            ``.csv`` or ``.tsv`` (the first line names the columns, every value is text), or ``.parquet``.
        columns: fields added to every row, in order.
    """

    path: Path
    columns: Mapping[str, str | DerivedColumn] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """The digest of the file's bytes, and the columns made from its own."""
        made = {n: c if isinstance(c, str) else c.model_dump(mode="json") for n, c in self.columns.items()}
        return {"sha256": _DIGESTS.of(self.path), **({"columns": made} if made else {})}

    def read(self) -> SplitRows:
        """The rows.

        Raises:
            UserError: the file cannot be read, or is not what its ending says.
        """
        rows = self._rows()
        return MappedRows(rows, self.columns) if self.columns else rows

    def _rows(self) -> SplitRows:
        kind = self.path.suffix.lower()
        if kind == ".parquet":
            return _parquet(self.path)
        try:
            with self.path.open(encoding="utf-8-sig", newline="" if kind in DELIMITERS else None) as stream:
                text = stream.read()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot be read: {error}", where=str(self.path)) from error
        if kind in DELIMITERS:
            return _table(self.path, text, DELIMITERS[kind])
        if kind == ".json" and text.lstrip().startswith("["):
            listed = parse_json(text, where=str(self.path))
            return ListedRows(self.path, "item", list(enumerate(listed)))
        lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return JsonlRows(self.path, lines)


DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class ListedRows:
    """Rows that were read at once, with their positions in the file."""

    path: Path
    unit: str
    rows: list[tuple[int, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Row:
        row = self.rows[index][1]
        if not isinstance(row, dict):
            raise UserError(f"a row must be a JSON object, not {kind_of(row)}", where=self.where(index))
        return dict(row)

    def where(self, index: int) -> str:
        """File and position in it."""
        return f"{self.path}, {self.unit} {self.rows[index][0]}"

    def values(self, column: str) -> list[Any]:
        """One column of all rows."""
        return [self[i].get(column) for i in range(len(self))]


def _table(path: Path, text: str, delimiter: str) -> ListedRows:
    """Rows of a CSV file: every value is text.

    Raises:
        UserError: no header, a column without a name or named twice, a row that is longer or shorter than the header,
            or a field beyond the csv module's limit (128 Ki characters).
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, Any]] = []
    try:
        header = next(reader, [])
        if not header or "" in header or len(set(header)) != len(header):
            raise UserError(
                "the first line must name every column once", where=f"{path}, line 1", fix=f"It reads {header}."
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"a row of {len(cells)} fields under {len(header)} column names",
                    where=f"{path}, line {reader.line_num}",
                    fix='Put a field that holds the separator or a line break in quotes ("...").',
                )
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"not valid CSV: {error}", where=f"{path}, line {reader.line_num}") from None
    return ListedRows(path, "line", rows)


def _parquet(path: Path) -> ParquetRows:
    """Rows of a Parquet file.

    Raises:
        UserError: the file cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return ParquetRows(path, pyarrow.parquet.read_table(path))
    except (OSError, pyarrow.ArrowException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot be read as Parquet: {reason}", where=str(path)) from error


@dataclass(frozen=True)
class ParquetRows:
    """Rows of a Parquet file. NaN is a missing value, as pandas writes it."""

    path: Path
    table: Any

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int, /) -> Row:
        return {name: _present(value) for name, value in self.table.slice(index, 1).to_pylist()[0].items()}

    def where(self, index: int) -> str:
        """File and row, from 0."""
        return f"{self.path}, row {index}"

    def values(self, column: str) -> list[Any]:
        """One column of all rows."""
        if column not in self.table.column_names:
            return [None] * len(self)
        return [_present(value) for value in self.table[column].to_pylist()]


def _present(value: object) -> object:
    return None if isinstance(value, float) and value != value else value


@dataclass(frozen=True)
class JsonlRows:
    """Lines of a JSONL file with their numbers."""

    path: Path
    lines: list[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int, /) -> Row:
        try:
            row = json.loads(self.lines[index][1], parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            fix = "Each line must be one JSON object."
            raise UserError(f"not valid JSON: {error}", where=self.where(index), fix=fix) from None
        if not isinstance(row, dict):
            raise UserError(f"a row must be a JSON object, not {kind_of(row)}", where=self.where(index))
        return row

    def where(self, index: int) -> str:
        """File and line."""
        return f"{self.path}, line {self.lines[index][0]}"

    def values(self, column: str) -> list[object]:
        """One column of all rows."""
        return [self[i].get(column) for i in range(len(self))]


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number; write null or leave the field out")


@dataclass(frozen=True)
class HubOrigin:
    """A split of a data set on the Hub.

    Attributes:
        split: the Hub's name of it.
        instead: path below a data root where the same rows would be searched.
    """

    hub: HubSource
    split: str
    instead: str

    def identity(self) -> dict[str, object]:
        """Properties that pin the rows: id, configuration, revision, split and the columns made from them."""
        return {"hub": self.hub.model_dump(mode="json", exclude={"splits", "unpinned"}), "split": self.split}

    def read(self) -> SplitRows:
        """The rows, downloaded or from the local cache.

        Raises:
            UserError: no network, no such data set, configuration, revision or split.
        """
        import datasets
        from datasets.exceptions import DatasetsError

        hub = self.hub
        configs = hub.config if isinstance(hub.config, tuple) else (hub.config,)
        try:
            parts = [datasets.load_dataset(hub.id, c, split=self.split, revision=hub.revision) for c in configs]
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the data set {hub.id!r}, split {self.split!r}, cannot be downloaded from the Hub: {reason}",
                fix=DATA_ROOT_HINT.format(self.instead),
            ) from error
        rows = HubRows(f"{hub.id}[{self.split}]", datasets.concatenate_datasets(parts))
        return MappedRows(rows, hub.columns) if hub.columns else rows


@dataclass(frozen=True)
class HubRows:
    """Rows of a data set."""

    name: str
    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int, /) -> Row:
        return dict(self.data[index])

    def where(self, index: int) -> str:
        """Data set, split and row."""
        return f"{self.name}, row {index}"

    def values(self, column: str) -> list[object]:
        """One column of all rows, read at once."""
        return list(self.data[column]) if column in self.data.column_names else [None] * len(self)


@dataclass(frozen=True)
class MappedRows:
    """Rows with the columns that the task adds."""

    rows: SplitRows
    columns: Mapping[str, str | DerivedColumn]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Row:
        row = dict(self.rows[index])
        for name, column in self.columns.items():
            try:
                row[name] = _column(column, row)
            except FieldError as error:
                raise UserError(f"{error}; it is needed for the column {name!r}", where=self.where(index)) from None
        return row

    def where(self, index: int) -> str:
        """Position of the row in its source."""
        return self.rows.where(index)

    def values(self, column: str) -> list[object]:
        """One column of all rows, read at once unless the task makes it."""
        if column not in self.columns:
            return self.rows.values(column)
        return [self[i].get(column) for i in range(len(self))]


def _column(column: str | DerivedColumn, row: Row) -> str:
    if isinstance(column, str):
        return render(column, row)
    if column.each:
        listed = lookup(column.from_, row)
        return column.join.join(render(column.each, {"n": n, "value": v}) for n, v in enumerate(listed, start=1))
    text = render(column.from_, row)
    if not column.values:
        return text
    if text not in column.values:
        raise FieldError(f"{text!r} is none of the values {', '.join(column.values)}")
    return column.values[text]

"""Scored items of a record: the columns of a sample file, its bytes, and the reference that a record holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.record import SamplesRef

if TYPE_CHECKING:
    import pyarrow


def samples_schema() -> pyarrow.Schema:
    """Columns of a sample file. Log-probabilities are in nats; ``length`` is in tokens."""
    import pyarrow as pa

    def required(name: str, kind: object) -> object:
        return pa.field(name, kind, nullable=False)

    return pa.schema(
        [
            required("arm", pa.string()),  # adapted | merged | retained | base
            required("task", pa.string()),
            required("item", pa.string()),
            pa.field("correct", pa.bool_()),  # missing where nothing is right or wrong: a text, an overlap
            required("prediction", pa.string()),
            required("answer", pa.string()),
            pa.field("logp_answer", pa.float64()),
            pa.field("logp_choices", pa.list_(pa.float64())),
            pa.field("margin", pa.float64()),
            required("length", pa.int32()),  # of the answer, or of what was generated
            required("cut", pa.bool_()),  # the input was longer than the context
        ]
    )


def samples_to_parquet(rows: Sequence[Mapping[str, object]]) -> bytes:
    """Parquet bytes of scored items; equal rows give equal bytes under one version of pyarrow.

    Args:
        rows: one mapping per item with the columns of :func:`samples_schema`; only those that may be missing
            can be left out.

    Raises:
        ValueError: an unknown column, or a required one without a value.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = samples_schema()
    known, required = set(schema.names), [field.name for field in schema if not field.nullable]
    for number, row in enumerate(rows):
        unknown = sorted(set(row) - known)
        absent = [name for name in required if row.get(name) is None]
        if unknown or absent:
            wrong = f"unknown columns: {', '.join(unknown)}; required ones without a value: {', '.join(absent)}"
            raise ValueError(f"sample {number}: {wrong}")
    table = pa.Table.from_pylist(list(rows), schema=schema).cast(_written_schema(schema))
    stream = pa.BufferOutputStream()
    # A byte of every number beside the same byte of the next one compresses well: half the bytes of plain doubles.
    split = dict.fromkeys(("logp_answer", "logp_choices.list.element", "margin"), "BYTE_STREAM_SPLIT")
    text = ["arm", "task", "item", "prediction", "answer"]
    parquet.write_table(
        table, stream, compression="zstd", use_dictionary=text, column_encoding=split, write_statistics=False
    )
    return bytes(stream.getvalue())


def _written_schema(schema: pyarrow.Schema) -> pyarrow.Schema:
    """The schema as it is written: log-probabilities as float32, the precision in which models compute them."""
    import pyarrow as pa

    narrow = {pa.float64(): pa.float32(), pa.list_(pa.float64()): pa.list_(pa.float32())}
    return pa.schema([field.with_type(narrow.get(field.type, field.type)) for field in schema])


def samples_table(data: bytes, *, where: str) -> pyarrow.Table:
    """The scored items in a file, with the columns and types of :func:`samples_schema`.

    Raises:
        UserError: not Parquet, other columns or types, a missing value where there must be one, or a log-probability
            that is NaN or above every number.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet

    schema = samples_schema()
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        if sorted(file.schema_arrow.names) != sorted(schema.names):
            raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)[:200]}")
        table = file.read(use_threads=False).select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # Arrow raises all four
        what = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"not a table of scored items: {what}", where=where, fix="Run the cell again.") from error
    for field in schema:
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            raise UserError(f"items without a value of {field.name!r}", where=where, fix="Run the cell again.")
        flat = pc.list_flatten(column) if pa.types.is_list(field.type) else column
        if pa.types.is_floating(flat.type) and not pc.all(pc.less_equal(flat, 1e300), min_count=0).as_py():
            raise UserError(f"{field.name!r} is not a number", where=where, fix="Run the cell again.")
    return table


def samples_ref(data: bytes) -> SamplesRef:
    """Reference of a record to a sample file with these bytes."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = parquet.ParquetFile(pa.BufferReader(data)).metadata.num_rows
    return SamplesRef(digest=hashlib.sha256(data).hexdigest(), rows=rows)

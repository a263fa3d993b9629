"""A sweep's records and samples as files for others: one archive that is a store, or tables."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

from harness.errors import UserError
from harness.store import index
from harness.store.samples import samples_schema
from harness.store.store import Store
from reports.apps.sql import samples_of
from reports.board.formats.to_csv import neutral
from reports.data.frame import PLAIN, speaking, wide

KINDS = (".zip", ".parquet", ".csv")
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # equal records give equal bytes: an archive has no time stamp


def export(store: Store, to: Path, *, sweep: str | None = None) -> tuple[list[Path], int]:
    """Write the records of one sweep, or of all.

    ``.zip`` has the record and sample files unchanged; unpacked it is a store, which ``results merge`` reads.
    ``.parquet`` and ``.csv`` have a row per record (``current`` marks the current record of its cell) and columns per
    quantity with value and details; samples follow in ``NAME.samples.parquet`` or ``NAME.samples.csv``.

    Returns:
        The files written, and the number of records.

    Raises:
        UserError: another ending, no such records, damaged samples, or a folder that cannot be written.
    """
    if to.suffix not in KINDS:
        raise UserError(f"cannot export to {to.name!r}", where="--to", fix=f"End the name in {', '.join(KINDS)}.")
    flat, paths = _of_sweep(store, sweep)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.suffix == ".zip":
            _archive(store, flat, paths, to)
            return [to], len(paths)
        return _tables(store, flat, to), len(paths)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise UserError(what, where=str(to), fix="Name another file: --to FILE.") from error


def _of_sweep(store: Store, sweep: str | None) -> tuple[index.Flat, list[str]]:
    loaded = index.load(store)
    sweeps = loaded.flat.rows.column("sweep").to_pylist()
    which = [i for i, name in enumerate(sweeps) if sweep is None or name == sweep]
    if not which:
        held = ", ".join(sorted(set(sweeps))) or "none"
        raise UserError(f"no records of the sweep {sweep!r}", where=store.root, fix=f"There are records of: {held}.")
    return loaded.flat.take(np.array(which, np.int64)), [loaded.paths[i] for i in which]


def _archive(store: Store, flat: index.Flat, paths: list[str], to: Path) -> None:
    digests = sorted({digest for digest in flat.rows.column("samples").to_pylist() if digest is not None})
    for digest in digests:
        store.sample_file(digest)  # raises if they are damaged: an archive must not contain damaged records
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (*sorted(paths), *(f"samples/{digest}.parquet" for digest in digests)):
            data = store.files.read(path)
            if data is None:
                raise UserError("the file is no longer there", where=store.files.show(path))
            archive.writestr(zipfile.ZipInfo(path, _LONG_AGO), data, zipfile.ZIP_DEFLATED)


def _tables(store: Store, flat: index.Flat, to: Path) -> list[Path]:
    plain = flat.rows.select([*PLAIN, "attempt", "started", "supersedes", "samples"])
    rows = plain.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)  # a whole number that is missing stays whole
    rows["current"] = np.isin(np.arange(len(rows)), speaking(flat))
    rows["marks"] = [" ".join(marks) for marks in flat.rows.column("marks").to_pylist()]
    table = pd.concat([rows, wide(flat)], axis=1)
    empty = pa.schema([pa.field("id", pa.string()), *samples_schema()]).empty_table()
    items = pa.concat_tables([empty, *samples_of(store, flat)])
    beside = to.with_suffix(f".samples{to.suffix}")
    if to.suffix == ".parquet":
        table.to_parquet(to, index=False)
        parquet.write_table(items, beside, compression="zstd")
    else:
        texts = table.select_dtypes(include=["object", "string"]).columns
        table[texts] = table[texts].map(lambda value: neutral(value) if isinstance(value, str) else value)
        table.to_csv(to, index=False, lineterminator="\n")
        at = items.schema.get_field_index("logp_choices")
        logps = [None if value is None else json.dumps(value) for value in items.column(at).to_pylist()]
        items = items.set_column(at, "logp_choices", pa.array(logps, pa.string()))
        for at, field in enumerate(items.schema):
            if pa.types.is_string(field.type) and field.name != "logp_choices":
                shown = [None if value is None else neutral(value) for value in items.column(at).to_pylist()]
                items = items.set_column(at, field.name, pa.array(shown, pa.string()))
        csv.write_csv(items, beside)
    return [to, beside]

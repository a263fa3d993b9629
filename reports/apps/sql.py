"""Questions to a store in SQL, answered by DuckDB from the index: read only, and shut off from files and network.

``records`` one row per record: its key, labels of the axes, seed, outcome (``status``, ``stage_reached``, ``reason``),
digests, and whether it is the ``current`` record of its cell on its machine.
``readings``  one row per reading of a record: ``id``, ``stage`` ("" for the whole cell), ``quantity``, ``value``,
              ``unit``, ``n``, ``spread``, ``source``, ``why_missing``.
``results``   one row per cell and machine with its settings and main numbers as columns, the frame of the Python API:
              ``SELECT method, learning_rate, steps, accuracy FROM results``. Made only if asked for.
``settings``  one row per record: ``id``, ``learning_rate``, ``steps`` and others, and the whole ``cell`` as JSON, for
              ``cell->>'$.method.params.r'``. Read only if asked for.
``samples``   one row per scored item: ``id`` of the record and the columns of a sample file. Read only if asked for.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from harness.comparability import SETTINGS
from harness.errors import UserError
from harness.store import index
from harness.store.samples import samples_schema
from harness.store.store import Store
from reports.data.frame import framed, speaking
from reports.data.tidy import tidy

if TYPE_CHECKING:
    import duckdb

SECONDS = 60.0
MEMORY = "4GiB"  # of DuckDB; it may not write to disk what does not fit
MOST_ROWS = 1_000_000
ROWS_AT_ONCE = 2_048  # the size of a vector of DuckDB; the time is checked after each


def query(
    store: Store, sql: str, *, seconds: float = SECONDS, memory: str = MEMORY
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Names of the columns and rows of one SELECT.

    Args:
        store: where the records are.
        sql: the SELECT.
        seconds: time that DuckDB may take, without the reading of the records.
        memory: memory that DuckDB may take, as it writes sizes.

    Raises:
        UserError: DuckDB is not installed; not one SELECT; a mistake in it; samples that are damaged; more time, memory
            or rows than allowed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise UserError(
            "queries need DuckDB, which is not installed", fix="pip install 'peft-matrix[query]'"
        ) from error
    connection = duckdb.connect(":memory:")
    try:
        _check(connection, sql)
        flat = index.load(store).flat
        tables = {"records": _records(flat), "readings": _readings(flat)}
        if re.search(r"\bsamples\b", sql, re.IGNORECASE):
            tables["samples"] = _samples(store, flat)
        if re.search(r"\bsettings\b", sql, re.IGNORECASE):
            tables["settings"] = _settings(store, flat)
        if re.search(r"\bresults\b", sql, re.IGNORECASE):
            tables["results"] = pa.Table.from_pandas(tidy(framed(flat)), preserve_index=False)
        for name, table in tables.items():
            connection.register(name, table)
        # from here on no file, no network, no extension, no Python variable, and none of this can be switched back
        for setting, value in (
            ("python_enable_replacements", "false"),
            ("temp_directory", "''"),
            ("memory_limit", f"'{memory}'"),
            ("enable_external_access", "false"),
            ("lock_configuration", "true"),
        ):
            connection.execute(f"SET {setting} = {value}")
        return _answer(connection, sql, seconds)
    except duckdb.InterruptException as error:
        raise _too_much(f"it was stopped after {seconds:g} s") from error
    except duckdb.OutOfMemoryException as error:
        raise _too_much(f"it needs more than {memory} of memory") from error
    except duckdb.Error as error:
        tables_there = "There are the tables records, readings, results, settings and samples."
        raise UserError(str(error).replace("\n", " "), where="the query", fix=tables_there) from error
    finally:
        connection.close()


def _answer(
    connection: duckdb.DuckDBPyConnection, sql: str, seconds: float
) -> tuple[list[str], list[tuple[object, ...]]]:
    """The answer, interrupted when its time is over or its rows are too many."""
    end = time.monotonic() + seconds
    clock = threading.Timer(seconds, connection.interrupt)
    clock.daemon = True
    clock.start()
    try:
        answer = connection.execute(sql)
        names = [column[0] for column in answer.description or ()]
        rows: list[tuple[Any, ...]] = []
        while part := answer.fetchmany(ROWS_AT_ONCE):
            rows += part
            if len(rows) > MOST_ROWS:
                raise _too_much(f"it has more than {MOST_ROWS:,} rows")
            if time.monotonic() > end:
                raise _too_much(f"it was stopped after {seconds:g} s")
        return names, rows
    finally:
        clock.cancel()


def _too_much(what: str) -> UserError:
    return UserError(
        what,
        where="the query",
        fix="Join tables with USING (id), aggregate, or add a LIMIT; 'results export' writes all rows.",
    )


def _check(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    import duckdb

    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(str(s.type).rpartition(".")[2] for s in statements) or "nothing"
        raise UserError(
            f"a query is one SELECT, not {kinds}", where="the query", fix="Records are never changed by a query."
        )


def _records(flat: index.Flat) -> pa.Table:
    current = np.zeros(flat.rows.num_rows, bool)
    current[speaking(flat)] = True
    # the stage a record ended in must not be mistaken for the stage of a reading where the two are joined
    rows = flat.rows.drop_columns([*SETTINGS])
    names = ["stage_reached" if name == "stage" else name for name in rows.column_names]
    return rows.rename_columns(names).append_column("current", pa.array(current))


def _readings(flat: index.Flat) -> pa.Table:
    def of_kind(values: list[str | None]) -> pa.Array:
        words = sorted({value for value in values if value is not None})
        code = {word: i for i, word in enumerate(words)}
        codes = np.array([-1 if value is None else code[value] for value in values], np.int32)[flat.kind]
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(words, pa.string()))

    identities = flat.rows.column("id").combine_chunks()
    return pa.table(
        {
            "id": pa.DictionaryArray.from_arrays(pa.array(flat.owners().astype(np.int32)), identities),
            "stage": of_kind([kind.stage for kind in flat.kinds]),
            "quantity": of_kind([kind.quantity for kind in flat.kinds]),
            "value": pa.array(flat.value, from_pandas=True),
            "unit": of_kind([kind.unit for kind in flat.kinds]),
            "n": pa.array(flat.n, from_pandas=True),
            "spread": pa.array(flat.spread, from_pandas=True),
            "source": of_kind([kind.source for kind in flat.kinds]),
            "why_missing": of_kind([kind.why_missing for kind in flat.kinds]),
        }
    )


def _settings(store: Store, flat: index.Flat) -> pa.Table:
    cells = {record.id: json.dumps(record.cell, sort_keys=True) for record in store.records()[0]}
    columns = flat.rows.select(["id", *SETTINGS])
    ids = columns.column("id").to_pylist()
    return columns.append_column("cell", pa.array([cells.get(identity) for identity in ids], pa.string()))


def _samples(store: Store, flat: index.Flat) -> pa.Table:
    tables = list(samples_of(store, flat))
    schema = pa.schema([pa.field("id", pa.string()), *samples_schema()])
    return pa.concat_tables(tables) if tables else schema.empty_table()


def samples_of(store: Store, flat: index.Flat) -> Iterator[pa.Table]:
    """Scored items of each record that has any, with the record's id in front.

    Raises:
        UserError: samples that are missing or damaged.
    """
    for identity, digest in zip(*(flat.rows.column(name).to_pylist() for name in ("id", "samples")), strict=True):
        if digest is not None:
            table = store.sample_file(digest).select(samples_schema().names)
            yield table.add_column(0, "id", pa.array([identity] * table.num_rows, pa.string()))

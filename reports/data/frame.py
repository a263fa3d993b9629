"""Records to frames: one row per cell and seed, then one row per configuration.

A *configuration* is everything of a cell but its seed. A *group* is a set of rows that may be compared at all:
same protocol, same machine, same budget, same data. Rows of two groups never share a ranked column.

Column names of both frames: an axis or outcome field is a plain name; a quantity of the whole cell is the name
of its metric; a quantity of one stage is ``stage.metric``; what is known about a number follows a colon, as in
``train.peak_rss_bytes:why``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness import stats
from harness.comparability import AXES, SETTINGS, comparable, configuration, machine, marks, place, role
from harness.digests import digest
from harness.record import Record
from harness.store import index, store
from harness.store.indexed import flat_of
from reports.data.derived import derive
from reports.data.effects import Evidence, members_of
from reports.data.samples import ARMS, SampleSource

__all__ = [
    "AXES",
    "aggregate",
    "comparable",
    "configuration",
    "current",
    "frame",
    "framed",
    "groups",
    "has",
    "is_trial",
    "machine",
    "marks",
    "outdated",
    "quantities",
    "rows_of",
    "speaking",
    "summary",
    "wide",
]

PLAIN = (
    "id",
    "key",
    "label",
    "sweep",
    "role",
    "config",
    *AXES,
    "seed",
    "status",
    "stage",
    "reason",
    "check",
    "fingerprint",
    "finished",
    *SETTINGS,
)
"""Columns of a frame that the index holds as they are."""
_ROWS_AT_ONCE = 1_000
_FRAMED = ("condition", "machine", "task_name", "task_version", "protocol", "marks", "remarks", "samples")
COUNTS = tuple(name for name in SETTINGS if index.ROWS.field(name).type == "int64")
"""Settings that are whole numbers, or missing."""


def current(records: Iterable[Record]) -> list[tuple[str, Record]]:
    """The current record of each cell on each machine, with its id (see :func:`harness.store.store.current`).

    A record without a machine (an impossible cell, a worker that died early) counts for the one machine that its cell
    ran on; if that is unknown, it is used only if the store names no machine.

    Returns:
        ``(id, record)`` in an order that depends on the records alone.
    """
    records = list(records)
    kept = [(record.id, record) for record in _speaking(records, [place(record) for record in records])]
    return sorted(kept, key=lambda pair: (pair[1].label, pair[1].key, pair[0]))


def _speaking(attempts: Sequence[store.A], places: Sequence[str]) -> list[store.A]:
    """One attempt for each cell on each machine; a place is the digest of a machine, "" where it is not known."""
    known: dict[str, set[str]] = {}
    for attempt, where in zip(attempts, places, strict=True):
        known.setdefault(attempt.key, set()).update({where} - {""})
    by_place: dict[str, list[store.A]] = {}
    for attempt, where in zip(attempts, places, strict=True):
        there = known[attempt.key]
        if where or len(there) <= 1:
            by_place.setdefault(where or next(iter(there), ""), []).append(attempt)
    return [best for members in by_place.values() for best in store.current(members).values()]


def is_trial(record: Record) -> bool:
    """True if the record is not a result, but part of tuning: a trial, or a run at the shared rate.

    A trial chose a learning rate on validation and never saw the test split; a run at the shared rate shows how much
    tuning mattered. Neither is a row of a board.
    """
    return role(record) != "result"


def outdated(records: Sequence[tuple[str, Record]]) -> set[str]:
    """Ids of records whose task or protocol has a newer version among these records.

    Versions are whole numbers that only grow. What carries no such number (a revision of a model, a digest) has no
    order, so nothing is called outdated for it.
    """
    versions = []
    for identity, record in records:
        cell = record.cell_view
        versions.append((identity, cell.name("task"), cell.part("task").get("version"), cell.protocol))
    return _outdated(versions)


def _outdated(versions: Iterable[tuple[str, str, object, object]]) -> set[str]:
    """Of (id, task, its version, protocol): the ids whose task or protocol has a newer whole number."""
    newest: dict[tuple[str, str], int] = {}
    told = []
    for identity, task, version, protocol in versions:
        for where, number in ((("task", task), version), (("protocol", task), protocol)):
            if isinstance(number, int):
                newest[where] = max(number, newest.get(where, number))
                told.append((identity, where, number))
    return {identity for identity, where, number in told if number < newest[where]}


def groups(records: Iterable[tuple[str, Record]]) -> dict[str, str]:
    """Record id to its group, a digest of 12 characters.

    A record that does not say where it ran (an impossible cell, a worker that died early) joins the one machine
    on which cells like it ran, if there is exactly one.
    """
    return _groups((identity, digest(comparable(record)), place(record)) for identity, record in records)


def _groups(conditions: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Of (id, digest of the conditions, digest of the machine): id to group."""
    conditions = list(conditions)
    known: dict[str, set[str]] = {}
    for _, condition, where in conditions:
        known.setdefault(condition, set()).add(where)
    out, made = {}, dict[tuple[str, str], str]()
    for identity, condition, where in conditions:
        named = sorted(known[condition] - {""})
        pair = (condition, where or (named[0] if len(named) == 1 else ""))
        if pair not in made:
            made[pair] = digest(list(pair))[:12]
        out[identity] = made[pair]
    return out


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per cell (that is: configuration and seed) and machine; see the module for the column names.

    Non-``ok`` cells are rows too, with ``status``, ``stage`` and ``reason``. Values are floats in the metric's
    unit, NaN where missing, with the typed reason in ``NAME:why``.
    """
    return framed(flat_of(list(records)))


class _Attempt(NamedTuple):
    """A row of the index, as far as it decides which row is current for its cell; ``at`` is its number."""

    id: str
    key: str
    status: str
    finished: str
    attempt: int
    supersedes: str | None
    label: str
    at: int


def framed(flat: index.Flat) -> pd.DataFrame:
    """:func:`frame` of flat records: those of a store through its index, ``framed(index.load(store).flat)``."""
    kept = speaking(flat)
    flat = flat.take(kept)
    rows = {name: flat.rows.column(name).to_pylist() for name in (*PLAIN, *_FRAMED)}
    group_of = _groups(zip(rows["id"], rows["condition"], rows["machine"], strict=True))
    old = _outdated(zip(rows["id"], rows["task_name"], rows["task_version"], rows["protocol"], strict=True))
    out: dict[str, Any] = {name: rows[name] for name in PLAIN}
    out |= {name: pd.array(rows[name], dtype="Int64") for name in COUNTS}
    out["group"] = [group_of[identity] for identity in rows["id"]]
    out["marks"] = [
        (*found, *(("outdated",) if identity in old else ()))
        for identity, found in zip(rows["id"], rows["marks"], strict=True)
    ]
    out["remarks"] = rows["remarks"]
    out["samples"] = [digest is not None for digest in rows["samples"]]
    return pd.concat([pd.DataFrame(out), with_growth(wide(flat))], axis=1) if len(kept) else pd.DataFrame()


def speaking(flat: index.Flat) -> NDArray[np.int64]:
    """Numbers of the rows that are current for their cell and machine (:func:`current`), in the order of a frame."""
    columns = [flat.rows.column(name).to_pylist() for name in _Attempt._fields[:-1]]
    attempts = [_Attempt._make((*row, at)) for at, row in enumerate(zip(*columns, strict=True))]
    kept = _speaking(attempts, flat.rows.column("machine").to_pylist())
    return np.array([a.at for a in sorted(kept, key=lambda a: (a.label, a.key, a.id))], np.int64)


def wide(flat: index.Flat) -> pd.DataFrame:
    """Readings spread over columns: a value, ``:n``, ``:sd``, ``:why`` and ``:source`` of every quantity."""
    names = sorted({kind.name for kind in flat.kinds})
    column_of = {name: i for i, name in enumerate(names)}
    shape = (len(names), flat.rows.num_rows)
    column = np.array([column_of[kind.name] for kind in flat.kinds], np.int64)[flat.kind]
    at = column * shape[1] + flat.owners()  # position in a table with a row per quantity
    columns: dict[str, Any] = {}
    for suffix, values in (("", flat.value), (":n", flat.n), (":sd", flat.spread)):
        table = np.full(shape, math.nan)
        table.reshape(-1)[at] = values
        columns.update({f"{name}{suffix}": table[i] for i, name in enumerate(names)})
    for suffix, of in (
        (":why", [kind.why_missing for kind in flat.kinds]),
        (":source", [k.source for k in flat.kinds]),
    ):
        words = sorted({word for word in of if word is not None})
        code = {word: i for i, word in enumerate(words)}
        codes = np.full(shape, -1, np.int32)
        codes.reshape(-1)[at] = np.array([-1 if word is None else code[word] for word in of], np.int32)[flat.kind]
        texts = pd.Index(words, dtype=object)
        columns.update({f"{name}{suffix}": pd.Categorical.from_codes(codes[i], texts) for i, name in enumerate(names)})
    return pd.DataFrame(columns, copy=False)


def with_growth(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``train.rss_growth_bytes`` of records made before the resident set before a stage was read.

    The peak of ``attach`` takes its place: the model and its adapter, without gradients and optimizer state.
    """
    peak, before, growth = "train.peak_rss_bytes", "attach.peak_rss_bytes", "train.rss_growth_bytes"
    if not {peak, before} <= set(table.columns):
        return table
    values = (table[peak] - table[before]).clip(lower=0)
    measured = table[growth].notna() if growth in table else pd.Series(False, index=table.index)
    if growth in table:
        values = values.where(~measured, table[growth])
    why = table[f"{peak}:why"].astype(object)
    source = pd.Series("VmHWM less that of attach", index=table.index, dtype=object).where(values.notna())
    if growth in table:
        why = why.where(table[f"{growth}:why"].isna(), table[f"{growth}:why"].astype(object))
        source = source.where(~measured, table[f"{growth}:source"].astype(object))
    columns = {
        growth: values,
        f"{growth}:n": table[f"{growth}:n"] if growth in table else math.nan,
        f"{growth}:sd": table[f"{growth}:sd"] if growth in table else math.nan,
        f"{growth}:why": why.where(values.isna(), None),
        f"{growth}:source": source,
    }
    rest = table.drop(columns=[name for name in columns if name in table])
    return pd.concat([rest, pd.DataFrame(columns, index=table.index)], axis=1)


def has(row: Mapping[str, object], name: str) -> bool:
    """True if an aggregated row has a value of this quantity."""
    value = row.get(name)
    return isinstance(value, float) and not math.isnan(value)


def quantities(rows: pd.DataFrame) -> list[str]:
    """Names of the measured columns of a frame (those that carry a reason column), sorted."""
    return sorted(str(c).removesuffix(":why") for c in rows.columns if str(c).endswith(":why"))


def aggregate(
    rows: pd.DataFrame,
    samples: SampleSource | None = None,
    evidence: Evidence | None = None,
    only: Collection[str] | None = None,
) -> pd.DataFrame:
    """One row per configuration and group.

    For every quantity ``Q``: ``Q`` is the mean over the seeds that ended ``ok``; ``Q:n`` how many seeds;
    ``Q:sd`` their standard deviation (n - 1; NaN below two); for accuracies also ``Q:low``, ``Q:high`` (95 %),
    ``Q:items`` and ``Q:interval``, which says how the interval came about: from stored samples, for other items and
    seeds, with the variance over seeds estimated over all rows of the same model, task and conditions
    (:mod:`reports.data.effects`), or Wilson's where there are no samples. ``Q:why`` holds the reason where no seed has
    a value.

    Args:
        rows: what :func:`frame` gives.
        samples: record id to its table of scored items; None: no samples.
        evidence: scores read from ``samples`` so far, if the caller goes on to compare rows.
        only: quantities of the frame that are asked for; None: all. A board shows 25 of a hundred.
    """
    if rows.empty:
        return pd.DataFrame()
    names = [name for name in quantities(rows) if only is None or name in only]
    unasked = set(quantities(rows)) - set(names)
    rows = rows[[column for column in rows.columns if column.partition(":")[0] not in unasked]]
    # a plain dictionary per row: 10,000 rows group in well under a second, and each step can be read
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows_of(rows):
        found.setdefault((row["group"], row["config"]), []).append(row)
    made = [_configuration_row(members, names, samples) for members in found.values()]
    if samples is not None:
        _set_intervals(made, names, evidence or Evidence(samples))
    return pd.DataFrame(made)


def rows_of(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows as mappings: as ``to_dict("records")``, in half the time and a part at a time."""
    names = table.columns.tolist()  # once: a column index of texts makes a new one each time
    for start in range(0, len(table), _ROWS_AT_ONCE):
        part = table.iloc[start : start + _ROWS_AT_ONCE]
        for row in zip(*(part[name].tolist() for name in names), strict=True):
            yield dict(zip(names, row, strict=True))


def _set_intervals(made: Sequence[dict[str, Any]], names: Sequence[str], evidence: Evidence) -> None:
    """Intervals from stored samples, for every row whose seeds all have them."""
    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in made:
        families.setdefault((row["group"], row["model"], row["task"]), []).append(row)
    for members in families.values():
        for name in ARMS:
            having = [row for row in members if name in names and row[f"{name}:n"] == len(row["ok_records"]) > 0]
            for family in evidence.families(members_of(having), name):
                for row in having:
                    if row["config"] in family.scores:
                        row.update(_columns(name, family.interval(row["config"])))


def _configuration_row(
    members: Sequence[Mapping[str, Any]], names: Sequence[str], samples: SampleSource | None
) -> dict[str, object]:
    members = sorted(members, key=lambda row: (str(row["seed"]), row["id"]))
    ok = [row for row in members if row["status"] == "ok"]
    failed = [row for row in members if row["status"] != "ok"]
    first = (ok or failed)[0]
    out: dict[str, Any] = {
        **{name: first[name] for name in ("config", "group", *AXES, "sweep", *SETTINGS)},
        "finished": max(row["finished"] for row in members),
        "status": first["status"],
        "stage": first["stage"],
        "reason": first["reason"],
        "check": first["check"],
        "seeds": tuple(row["seed"] for row in ok),
        "failed": tuple((row["seed"], row["status"], row["stage"], row["reason"]) for row in failed),
        "marks": tuple(sorted({mark for row in members for mark in row["marks"]})),
        "records": tuple(row["id"] for row in members),
        "ok_records": tuple(row["id"] for row in ok),
        "stacks": len({row["fingerprint"] for row in ok}),
        "remarks": tuple(sorted({remark for row in ok for remark in row["remarks"]})),
    }
    for name in names:
        out.update(_mean(name, ok))
    for name in ARMS:
        if name in names and out[f"{name}:n"]:
            out.update(_without_samples(name, out, ok))
    if samples is not None:
        derived = derive([samples(row["id"]) for row in ok if row["samples"]])
        for name, values in derived.items():
            if values:
                out.update(summary(name, values))
    return out


def _mean(name: str, ok: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    values = [row[name] for row in ok if not math.isnan(row[name])]
    if values:
        return summary(name, values)
    reasons = [row[f"{name}:why"] for row in ok if isinstance(row[f"{name}:why"], str)]
    why = min(reasons) if reasons else ("not_measured" if ok else "stage_not_reached")
    return {name: math.nan, f"{name}:n": 0, f"{name}:sd": math.nan, f"{name}:why": why}


def summary(name: str, values: Sequence[float]) -> dict[str, object]:
    """The columns of a quantity with one value or more: mean, how many, standard deviation (n - 1; NaN below two)."""
    mean = math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan
    return {name: mean, f"{name}:n": len(values), f"{name}:sd": sd, f"{name}:why": ""}


def _without_samples(name: str, out: Mapping[str, Any], ok: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Wilson's interval from the counted items alone; an item is not counted once a seed."""
    counts = [row[f"{name}:n"] for row in ok if not math.isnan(row[name])]
    items = 0 if any(count is None or math.isnan(count) for count in counts) else int(min(counts))
    if not items:
        return {f"{name}:interval": ""}
    return _columns(name, stats.wilson(round(out[name] * items), items), ", no samples available")


def _columns(name: str, found: stats.Interval, more: str = "") -> dict[str, object]:
    return {
        f"{name}:low": found.low,
        f"{name}:high": found.high,
        f"{name}:items": found.n,
        f"{name}:interval": found.method + more,
    }

"""Records to frames: one row per cell and seed, then one row per configuration.

A *configuration* is everything of a cell but its seed. A *group* is a set of rows that may be compared at all:
same protocol, same machine, same budget, same data. Rows of two groups never share a ranked column.

Column names of both frames: an axis or outcome field is a plain name; a quantity of the whole cell is the name
of its metric; a quantity of one stage is ``stage.metric``; what is known about a number follows a colon, as in
``train.peak_rss_bytes:why``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import pandas as pd

from harness import stats, store
from harness.canonical import digest
from harness.record import Record
from reports.derived import derive
from reports.scores import ARMS, SampleSource, Scores, gather, interval

AXES = ("model", "method", "quantization", "task", "hardware")
META = ("why", "n", "sd", "source")


def current(records: Iterable[Record]) -> list[tuple[str, Record]]:
    """The record that speaks for each cell on each machine, with its id (see :func:`harness.store.current`).

    A record that does not say where it ran (an impossible cell, a worker that died early) counts for the one
    machine that its cell ran on; where that is not known, it stands only if no machine is.

    Returns:
        ``(id, record)`` in an order that depends on the records alone.
    """
    records = list(records)
    places = [digest(machine(record)) if machine(record) else "" for record in records]
    known: dict[str, set[str]] = {}
    for record, place in zip(records, places, strict=True):
        known.setdefault(record.key, set()).update({place} - {""})
    by_place: dict[str, list[Record]] = {}
    for record, place in zip(records, places, strict=True):
        there = known[record.key]
        if place or len(there) <= 1:
            by_place.setdefault(place or next(iter(there), ""), []).append(record)
    kept = [(record.id, record) for members in by_place.values() for record in store.current(members).values()]
    return sorted(kept, key=lambda pair: (pair[1].label, pair[1].key, pair[0]))


def machine(record: Record) -> dict[str, Any]:
    """The machine as far as it changes time, memory or energy; ``{}`` where the record does not say.

    The host's name is not in it: two hosts with the same processor and accelerators count as one machine.
    """
    cpu = record.environment.get("cpu")
    if not isinstance(cpu, Mapping):
        return {}
    out: dict[str, Any] = {"cpu": str(cpu.get("model", ""))}
    if _part(record.cell, "hardware").get("device") != "cpu":
        gpus = record.environment.get("gpus") or ()
        out["gpus"] = sorted(_gpu_words(gpu) for gpu in gpus)
    return out


def _gpu_words(gpu: Mapping[str, Any]) -> str:
    if gpu.get("power_limit_w") is None:
        return f"{gpu.get('name')}, power limit not stated"
    return f"{gpu.get('name')}, {gpu['power_limit_w']} W"


def marks(record: Record) -> tuple[str, ...]:
    """Why a row may be shown but not ranked: ``imported``, ``simulated``, ``throttled``, ``shared``,
    ``halved``.

    ``imported`` and ``simulated`` stand in the environment of a record; ``throttled`` and ``shared`` come from what the
    meters saw in any stage; a ``halved`` cell ran out of memory and was trained in smaller batches than asked for.
    """
    found = {name for name in ("imported", "simulated") if record.environment.get(name)}
    if (record.environment.get("facts") or {}).get("batch", {}).get("out_of_memory"):
        found.add("halved")
    for reading in (*record.metrics.values(), *(r for span in record.spans for r in span.readings)):
        if reading.why_missing == "shared" or (reading.quantity == "foreign_processes" and (reading.value or 0) > 0):
            found.add("shared")
        if reading.quantity == "throttled_fraction" and (reading.value or 0) > 0:
            found.add("throttled")
    return tuple(sorted(found))


def is_trial(record: Record) -> bool:
    """Whether the record is no result of its own, but part of tuning: a trial, or a run at the shared rate.

    A trial chose a learning rate on validation and never saw the test split; a run at the shared rate shows how much
    tuning mattered. Neither is a row of a board.
    """
    return bool(record.cell.get("role", "result") != "result")


def remarks(record: Record) -> tuple[str, ...]:
    """What a reader of a result has to know of how it came about, in words; ``()`` for most."""
    facts = record.environment.get("facts")
    tuning = facts.get("tuning") if isinstance(facts, Mapping) else None
    if isinstance(tuning, Mapping) and tuning.get("lr_at_edge") is True:
        return ("the best learning rate lies at the edge of the rates tried",)
    return ()


def outdated(records: Sequence[tuple[str, Record]]) -> set[str]:
    """Ids of records whose task or protocol has a newer version among these records.

    Versions are whole numbers that only grow. What carries no such number (a revision of a model, a digest) has no
    order, so nothing is called outdated for it.
    """
    newest: dict[tuple[str, str], int] = {}
    for _, record in records:
        for place, version in _versions(record).items():
            newest[place] = max(version, newest.get(place, version))
    return {
        identity
        for identity, record in records
        if any(version < newest[place] for place, version in _versions(record).items())
    }


def _versions(record: Record) -> dict[tuple[str, str], int]:
    task = _part(record.cell, "task")
    name = str(task.get("name", ""))
    found = {("task", name): task.get("version"), ("protocol", name): record.cell.get("protocol")}
    return {place: version for place, version in found.items() if isinstance(version, int)}


def comparable(record: Record) -> dict[str, Any]:
    """Everything but the machine that must be equal before two rows may be ranked against each other."""
    cell = record.cell
    task = {k: v for k, v in _part(cell, "task").items() if k != "label"}
    shared = {name: cell.get(name) for name in ("training", "evaluation", "threads", "protocol")}
    return {"task": task, "hardware": _part(cell, "hardware").get("label", ""), **shared}


def groups(records: Iterable[tuple[str, Record]]) -> dict[str, str]:
    """Record id to its group, a digest of 12 characters.

    A record that does not say where it ran (an impossible cell, a worker that died early) joins the one machine
    on which cells like it ran, if there is exactly one.
    """
    conditions: dict[str, str] = {}
    machines: dict[str, str] = {}
    known: dict[str, set[str]] = {}
    for identity, record in records:
        conditions[identity] = digest(comparable(record))
        machines[identity] = digest(machine(record)) if machine(record) else ""
        known.setdefault(conditions[identity], set()).add(machines[identity])
    out = {}
    for identity, condition in conditions.items():
        named = sorted(known[condition] - {""})
        where = machines[identity] or (named[0] if len(named) == 1 else "")
        out[identity] = digest([condition, where])[:12]
    return out


def configuration(record: Record) -> str:
    """Digest of the cell without its seed and its labels, 16 hexadecimal characters."""
    cell = {
        name: {k: v for k, v in part.items() if k != "label"} if isinstance(part, dict) else part
        for name, part in record.cell.items()
        if name != "seed"
    }
    return digest(cell)[:16]


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per cell (that is: configuration and seed) and machine; see the module for the column names.

    Non-``ok`` cells are rows too, with ``status``, ``stage`` and ``reason``. Values are floats in the metric's
    unit, NaN where missing, with the typed reason in ``NAME:why``.
    """
    kept = current(records)
    group_of = groups(kept)
    old = outdated(kept)
    rows = []
    for identity, record in kept:
        cell = record.cell
        row: dict[str, Any] = {
            "id": identity,
            "key": record.key,
            "label": record.label,
            "sweep": record.sweep,
            "config": configuration(record),
            "group": group_of[identity],
            **{axis: str(_part(cell, axis).get("label", "")) for axis in AXES},
            "seed": cell.get("seed"),
            "status": record.outcome.status,
            "stage": record.outcome.stage,
            "reason": record.outcome.reason,
            "check": record.outcome.check,
            "marks": (*marks(record), *(("outdated",) if identity in old else ())),
            "fingerprint": record.fingerprint,
            "samples": record.samples is not None,
            "remarks": remarks(record),
        }
        for name, reading in record.metrics.items():
            _add(row, name, reading.value, reading.why_missing, reading.n, reading.spread, reading.source)
        for span in record.spans:
            if span.seconds is not None:  # else its readings hold the reason
                _add(row, f"{span.stage}.stage_s", span.seconds, None, None, None, "monotonic clock")
            for reading in span.readings:
                name = f"{span.stage}.{reading.quantity}"
                _add(row, name, reading.value, reading.why_missing, reading.n, reading.spread, reading.source)
        rows.append(row)
    return pd.DataFrame(rows)


def _part(cell: Mapping[str, Any], axis: str) -> dict[str, Any]:
    part = cell.get(axis)
    return part if isinstance(part, dict) else {}


def _add(row: dict[str, Any], name: str, value: float | None, *meta: object) -> None:
    row[name] = math.nan if value is None else value
    row.update({f"{name}:{key}": item for key, item in zip(META, meta, strict=True)})


def quantities(rows: pd.DataFrame) -> list[str]:
    """Names of the measured columns of a frame (those that carry a reason column), sorted."""
    return sorted(str(c).removesuffix(":why") for c in rows.columns if str(c).endswith(":why"))


def aggregate(rows: pd.DataFrame, samples: SampleSource | None = None) -> pd.DataFrame:
    """One row per configuration and group.

    For every quantity ``Q``: ``Q`` is the mean over the seeds that ended ``ok``; ``Q:n`` how many seeds;
    ``Q:sd`` their standard deviation (n - 1; NaN below two); for accuracies also ``Q:low``, ``Q:high`` (95 %),
    ``Q:items`` and ``Q:interval``, which says how the interval came about: from stored samples with items and
    seeds resampled together, or Wilson's where there are none. ``Q:why`` holds the reason where no seed has a
    value.

    Args:
        rows: what :func:`frame` gives.
        samples: record id to its table of scored items; None: no samples at hand.
    """
    if rows.empty:
        return pd.DataFrame()
    names = quantities(rows)
    # a plain dictionary per row: 10,000 rows group in well under a second, and each step can be read
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in cast("list[dict[str, Any]]", rows.to_dict("records")):
        found.setdefault((row["group"], row["config"]), []).append(row)
    return pd.DataFrame([_configuration_row(members, names, samples) for members in found.values()])


def _configuration_row(
    members: Sequence[Mapping[str, Any]], names: Sequence[str], samples: SampleSource | None
) -> dict[str, Any]:
    members = sorted(members, key=lambda row: (str(row["seed"]), row["id"]))
    ok = [row for row in members if row["status"] == "ok"]
    failed = [row for row in members if row["status"] != "ok"]
    first = (ok or failed)[0]
    out: dict[str, Any] = {
        **{name: first[name] for name in ("config", "group", *AXES, "sweep")},
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
    for name, arm in ARMS.items():
        if name in names and out[f"{name}:n"]:
            out.update(_with_interval(name, arm, out, ok, samples))
    if samples is not None:
        derived = derive([samples(row["id"]) for row in ok if row["samples"]])
        for name, values in derived.items():
            if values:
                out.update(_summary(name, values))
    return out


def _mean(name: str, ok: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [row[name] for row in ok if not math.isnan(row[name])]
    if values:
        return _summary(name, values)
    reasons = [row[f"{name}:why"] for row in ok if isinstance(row[f"{name}:why"], str)]
    why = min(reasons) if reasons else ("not_measured" if ok else "stage_not_reached")
    return {name: math.nan, f"{name}:n": 0, f"{name}:sd": math.nan, f"{name}:why": why}


def _summary(name: str, values: Sequence[float]) -> dict[str, Any]:
    mean = math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan
    return {name: mean, f"{name}:n": len(values), f"{name}:sd": sd, f"{name}:why": ""}


def _with_interval(
    name: str, arm: str, out: Mapping[str, Any], ok: Sequence[Mapping[str, Any]], samples: SampleSource | None
) -> dict[str, Any]:
    having = [row for row in ok if not math.isnan(row[name])]
    scores: Scores | None = None
    if samples is not None and all(row["samples"] for row in having):
        scores = gather([(row["seed"], samples(row["id"])) for row in having], arm)
    if scores is not None:
        found = interval(scores)
    else:
        counts = [row[f"{name}:n"] for row in having]
        items = 0 if any(count is None or math.isnan(count) for count in counts) else int(min(counts))
        if not items:
            return {f"{name}:interval": ""}
        found = stats.wilson(round(out[name] * items), items)  # the seeds of an item are not counted twice
    return {
        f"{name}:low": found.low,
        f"{name}:high": found.high,
        f"{name}:items": found.n,
        f"{name}:interval": found.method + ("" if scores is not None else ", no samples at hand"),
    }

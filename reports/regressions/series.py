"""Records over time: one series for every cell, machine and metric, cut where the environment changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.canonical import digest
from harness.metrics import METRICS
from harness.record import FINAL_STATUSES, Record
from reports.frame import machine, marks

FAMILIES = frozenset({"accuracy", "retention", "time", "energy", "memory"})
"""Families of quantities that are watched; sizes follow from shapes and belong to claims."""


@dataclass(frozen=True)
class Point:
    """One record's value in a series.

    Attributes:
        n: items behind a rate, where the record says so.
    """

    finished: str
    record: str
    value: float
    fingerprint: str
    n: int | None = None


@dataclass(frozen=True)
class Series:
    """A metric of one cell on one machine, oldest first.

    Attributes:
        metric: name of the quantity; ``stage.name`` for one of a stage.
        model: label of the model, by which cells move together.
    """

    key: str
    label: str
    metric: str
    model: str
    points: tuple[Point, ...]

    @property
    def quantity(self) -> str:
        """Name of the metric without its stage."""
        return self.metric.rpartition(".")[2]

    @property
    def latest(self) -> Point:
        """The newest point."""
        return self.points[-1]

    def segment(self) -> tuple[Point, ...]:
        """The newest points that share one environment."""
        end = len(self.points)
        while end > 0 and self.points[end - 1].fingerprint == self.latest.fingerprint:
            end -= 1
        return self.points[end:]

    def before_segment(self) -> tuple[Point, ...]:
        """The points of the environment just before the newest one; empty if there was no other."""
        rest = self.points[: len(self.points) - len(self.segment())]
        if not rest:
            return ()
        last = rest[-1].fingerprint
        start = len(rest)
        while start > 0 and rest[start - 1].fingerprint == last:
            start -= 1
        return rest[start:]


@dataclass(frozen=True)
class History:
    """Everything that detection looks at.

    Attributes:
        series: all watched series, in a fixed order.
        attempts: key and machine to its final records, oldest first, disturbed ones included.
        environments: fingerprint to the environment of its first record.
        records: record id to record.
    """

    series: tuple[Series, ...]
    attempts: Mapping[tuple[str, str], Sequence[tuple[str, Record]]]
    environments: Mapping[str, Mapping[str, Any]]
    records: Mapping[str, Record]


def history(records: Iterable[Record]) -> History:
    """Line records up. Superseded ones are left out; throttled and shared ones give no times and no energies."""
    named = {record.id: record for record in records if record.outcome.status in FINAL_STATUSES}
    superseded = {record.supersedes for record in named.values()}
    known: dict[str, set[str]] = {}
    for record in named.values():
        if machine(record):
            known.setdefault(record.key, set()).add(place(record))
    attempts: dict[tuple[str, str], list[tuple[str, Record]]] = {}
    environments: dict[str, Mapping[str, Any]] = {}
    for identity, record in sorted(named.items(), key=lambda pair: (pair[1].finished, pair[0])):
        if identity in superseded or record.cell.get("role", "result") != "result":
            continue
        attempts.setdefault((record.key, _home(record, known)), []).append((identity, record))
        environments.setdefault(fingerprint(record), record.environment)
    found: list[Series] = []
    for (key, _), members in sorted(attempts.items()):
        found += _series(key, members)
    return History(tuple(found), attempts, environments, named)


def _home(record: Record, known: Mapping[str, set[str]]) -> str:
    """A record of a worker that died says no machine: it belongs to the only one its cell ran on, if that is so."""
    places = known.get(record.key, set())
    return next(iter(places)) if not machine(record) and len(places) == 1 else place(record)


def place(record: Record) -> str:
    """Digest of the machine: series of two machines never mix."""
    hardware = record.cell.get("hardware")
    label = hardware.get("label", "") if isinstance(hardware, dict) else ""
    return digest([machine(record), label])[:12]


def fingerprint(record: Record) -> str:
    """The record's fingerprint; for one that has none (imported), the digest of its packages."""
    return record.fingerprint or digest(record.environment.get("packages", {}))


def _series(key: str, members: Sequence[tuple[str, Record]]) -> list[Series]:
    points: dict[str, list[Point]] = {}
    for identity, record in members:
        if record.outcome.status != "ok":
            continue
        disturbed = bool({"throttled", "shared"} & set(marks(record)))
        for name, reading in _readings(record):
            family = METRICS[name.rpartition(".")[2]].family
            if family not in FAMILIES or (disturbed and family in ("time", "energy", "memory")):
                continue
            value, n = reading
            points.setdefault(name, []).append(Point(record.finished, identity, value, fingerprint(record), n))
    record = members[-1][1]
    model = record.cell.get("model")
    named = model.get("label", "") if isinstance(model, dict) else ""
    return [Series(key, record.label, name, str(named), tuple(found)) for name, found in sorted(points.items())]


def _readings(record: Record) -> Iterable[tuple[str, tuple[float, int | None]]]:
    for name, reading in record.metrics.items():
        if reading.value is not None and name in METRICS:
            yield name, (reading.value, reading.n)
    for span in record.spans:
        if span.seconds is not None:
            yield f"{span.stage}.stage_s", (span.seconds, None)
        for reading in span.readings:
            if reading.value is not None and reading.quantity in METRICS:
                yield f"{span.stage}.{reading.quantity}", (reading.value, reading.n)

"""Records over time: one series for every cell, machine and metric, cut where the environment changed."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from harness.digests import digest
from harness.metrics import METRICS
from harness.record import FINAL_STATUSES
from harness.store.index import Flat
from reports.apps.regressions import identity

FAMILIES = frozenset({"accuracy", "retention", "time", "energy", "memory"})
"""Families of quantities that are watched; sizes follow from shapes and belong to claims."""


class SeriesPoint(NamedTuple):
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
    points: tuple[SeriesPoint, ...]
    sweep: str = ""

    @cached_property
    def quantity(self) -> str:
        """Name of the metric without its stage."""
        return self.metric.rpartition(".")[2]

    @property
    def latest(self) -> SeriesPoint:
        """The newest point."""
        return self.points[-1]

    def segment(self) -> tuple[SeriesPoint, ...]:
        """The newest points that share one environment."""
        return self._segments[1]

    def before_segment(self) -> tuple[SeriesPoint, ...]:
        """The points of the environment just before the newest one; empty if there was no other."""
        return self._segments[0]

    @cached_property
    def _segments(self) -> tuple[tuple[SeriesPoint, ...], tuple[SeriesPoint, ...]]:
        newest = _segment_before(self.points, len(self.points))
        return self.points[_segment_before(self.points, newest) : newest], self.points[newest:]


def _segment_before(points: Sequence[SeriesPoint], end: int) -> int:
    """Number of the first of the points before ``end`` that share one environment with the last of them."""
    start = end
    while start > 0 and points[start - 1].fingerprint == points[end - 1].fingerprint:
        start -= 1
    return start


class SeriesAttempt(NamedTuple):
    """One record of a cell: how it ended. ``at`` is its row."""

    id: str
    key: str
    label: str
    sweep: str
    model: str
    status: str
    stage: str
    reason: str
    finished: str
    fingerprint: str
    marks: tuple[str, ...]
    at: int


@dataclass(frozen=True)
class History:
    """Input of the detection.

    Attributes:
        series: all watched series, in a fixed order.
        attempts: key and machine to its records, oldest first, disturbed ones and those without a result included.
        environments: fingerprint to the environment of its first record.
        samples: record id to the digest of its samples, for records that have any.
        breaks: (label, fields that differ) where a series ended and another of the same label began.
        renamed: (old label, new label) of series whose cells were renamed.
        undated: records left out, because they do not say when they were made and so have no place in an order.
        environment_of: record id to its whole environment; None: not at hand.
    """

    series: tuple[Series, ...]
    attempts: Mapping[tuple[str, str], Sequence[SeriesAttempt]]
    environments: Mapping[str, Mapping[str, Any]]
    samples: Mapping[str, str]
    breaks: tuple[tuple[str, Mapping[str, str]], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    undated: int = 0
    environment_of: Callable[[str], Mapping[str, object]] | None = None


def history(
    flat: Flat,
    environment: Callable[[int], Mapping[str, object]],
    *,
    cell: Callable[[int], Mapping[str, object]] | None = None,
    sweep: str | None = None,
) -> History:
    """Line records up. Superseded ones are left out; throttled and shared ones give no times and no energies.

    Args:
        flat: the records of a store (:mod:`harness.store.index`).
        environment: number of a row to the environment its record holds; asked once for each fingerprint.
        cell: number of a row to its cell; asked where a label has several keys, which may be one series
            (:mod:`reports.apps.regressions.identity`). None: every key is a series.
        sweep: only records of this sweep.
    """
    rows = {name: flat.rows.column(name).to_pylist() for name in flat.rows.column_names}
    asked = [i for i in range(flat.rows.num_rows) if sweep is None or rows["sweep"][i] == sweep]
    wanted = [i for i in asked if rows["finished"][i]]
    wanted.sort(key=lambda i: (rows["finished"][i], rows["id"][i]))
    superseded = {rows["supersedes"][i] for i in wanted if rows["status"][i] in FINAL_STATUSES}
    known: dict[str, set[str]] = {}
    for i in wanted:
        if rows["machine"][i]:
            known.setdefault(rows["key"][i], set()).add(_place(rows, i))
    attempts: dict[tuple[str, str], list[SeriesAttempt]] = {}
    environments: dict[str, Mapping[str, Any]] = {}
    for i in wanted:
        if rows["id"][i] in superseded or rows["role"][i] != "result":
            continue
        told = (rows[name][i] for name in SeriesAttempt._fields[:-3])
        fingerprint = rows["fingerprint"][i] or digest(json.loads(rows["packages"][i]))
        found = SeriesAttempt._make((*told, fingerprint, tuple(rows["marks"][i]), i))
        attempts.setdefault((found.key, _home(rows, i, known)), []).append(found)
        if found.fingerprint not in environments:
            environments[found.fingerprint] = environment(i)
    breaks: list[tuple[str, Mapping[str, str]]] = []
    renamed: list[tuple[str, str]] = []
    if cell is not None:
        attempts, breaks = _joined(attempts, environments, cell)
        renamed = _follow_renames(attempts, environments, cell)
    watched = _watched(flat)
    series = [one for members in (attempts[place] for place in sorted(attempts)) for one in _series(members, watched)]
    samples = {rows["id"][i]: rows["samples"][i] for i in wanted if rows["samples"][i] is not None}
    at = {rows["id"][i]: i for i in wanted}
    return History(
        tuple(series),
        attempts,
        environments,
        samples,
        tuple(breaks),
        tuple(renamed),
        len(asked) - len(wanted),
        lambda identity: environment(at[identity]),
    )


def _joined(
    attempts: Mapping[tuple[str, str], list[SeriesAttempt]],
    environments: dict[str, Mapping[str, object]],
    cell: Callable[[int], Mapping[str, object]],
) -> tuple[dict[tuple[str, str], list[SeriesAttempt]], list[tuple[str, Mapping[str, str]]]]:
    """Attempts by series and not by key; what changed of a cell is part of its environment."""
    by_label: dict[tuple[str, str, str], list[str]] = {}
    for (key, home), members in attempts.items():
        by_label.setdefault((members[-1].sweep, members[-1].label, home), []).append(key)
    out: dict[tuple[str, str], list[SeriesAttempt]] = {}
    breaks: list[tuple[str, Mapping[str, str]]] = []
    for (_, label, home), keys in sorted(by_label.items()):
        spans = [(k, attempts[k, home][0].finished, attempts[k, home][-1].finished) for k in keys]
        found, ends = identity.chains(spans, lambda key, at=home: cell(attempts[key, at][-1].at))  # type: ignore[misc]
        breaks += [(label, differ) for _, _, differ in ends]
        for chain in found:
            joined: list[SeriesAttempt] = []
            states = chain.states if len(chain.keys) > 1 else {}
            for key in chain.keys:
                state = states.get(key) or {}
                joined += [_in_state(one, state, environments) for one in attempts[key, home]]
            out[chain.keys[-1], home] = joined
    return out, breaks


def _follow_renames(
    attempts: dict[tuple[str, str], list[SeriesAttempt]],
    environments: dict[str, Mapping[str, object]],
    cell: Callable[[int], Mapping[str, object]],
) -> list[tuple[str, str]]:
    """Join the attempts of renamed cells, in place; the labels, old and new."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for (key, home), members in attempts.items():
        groups.setdefault((members[-1].sweep, home), []).append((key, home))
    told = []
    for _, places in sorted(groups.items()):
        all_of = [attempts[place] for place in places]
        spans = [identity.LabelSpan(m[-1].label, m[0].key, m[-1].key, m[0].finished, m[-1].finished) for m in all_of]
        cells = {one.key: one.at for members in all_of for one in members}
        # the latest first, so that a cell renamed twice is followed back to its first name
        pairs = identity.renames(spans, lambda key, at=cells: cell(at[key]))  # type: ignore[misc]
        for old, new in sorted(pairs, key=lambda pair: spans[pair[1]].first, reverse=True):
            before, after = attempts.pop(places[old]), attempts[places[new]]
            ends = (identity.facts(cell(before[-1].at)), identity.facts(cell(after[0].at)))
            paths = identity.changed(*ends)
            states = [{path: one.get(path, identity.ABSENT) for path in paths} for one in ends]
            attempts[places[new]] = [
                _in_state(one, state, environments)
                for members, state in zip((before, after), states, strict=True)
                for one in members
            ]
            told.append((before[-1].label, after[-1].label))
    return sorted(told)


def _in_state(
    attempt: SeriesAttempt, state: Mapping[str, str], environments: dict[str, Mapping[str, Any]]
) -> SeriesAttempt:
    """The attempt with what is particular to its cell added to its environment."""
    if not state:
        return attempt
    fingerprint = digest([attempt.fingerprint, dict(state)])
    known = environments[attempt.fingerprint]
    environments.setdefault(fingerprint, {**known, "cell": {**known.get("cell", {}), **state}})
    return attempt._replace(fingerprint=fingerprint)


def _place(rows: Mapping[str, Sequence[object]], i: int) -> str:
    """Digest of the machine and the hardware asked for: series of two machines never mix."""
    return _digest_of(rows["machine"][i], rows["hardware"][i])


@functools.lru_cache(maxsize=1024)  # few machines, many records
def _digest_of(machine: object, hardware: object) -> str:
    return digest([machine, hardware])[:12]


def _home(rows: Mapping[str, Sequence[Any]], i: int, known: Mapping[str, set[str]]) -> str:
    """A record of a worker that died says no machine: it belongs to the only one its cell ran on, if that is so."""
    places = known.get(rows["key"][i], set())
    return next(iter(places)) if not rows["machine"][i] and len(places) == 1 else _place(rows, i)


class _Watched(NamedTuple):
    """Readings that are watched and have a value: those of row i are from ``starts[i]`` to ``starts[i + 1]``."""

    names: list[str]
    families: list[str]
    starts: list[int]
    kind: list[int]
    value: list[float]
    items: list[int | None]


def _watched(flat: Flat) -> _Watched:
    families = [METRICS[kind.quantity].family if kind.quantity in METRICS else "" for kind in flat.kinds]
    wanted = np.array([family in FAMILIES for family in families], bool)
    at = np.flatnonzero(wanted[flat.kind] & ~np.isnan(flat.value)) if len(flat.kind) else np.array([], np.int64)
    items = [None if math.isnan(n) else int(n) for n in flat.n[at].tolist()]
    columns = (np.searchsorted(at, flat.starts).tolist(), flat.kind[at].tolist(), flat.value[at].tolist(), items)
    return _Watched([kind.name for kind in flat.kinds], families, *columns)


def _series(members: Sequence[SeriesAttempt], watched: _Watched) -> list[Series]:
    names, families, starts, kinds, values, items = watched

    def readings(one: SeriesAttempt) -> tuple[list[int], bool]:
        return kinds[starts[one.at] : starts[one.at + 1]], bool({"throttled", "shared"} & set(one.marks))

    points: dict[str, list[SeriesPoint]] = {}
    for (codes, disturbed), group in itertools.groupby((one for one in members if one.status == "ok"), readings):
        told = [(one.finished, one.id, one.fingerprint, starts[one.at]) for one in group]
        for place, code in enumerate(codes):
            if not (disturbed and families[code] in ("time", "energy", "memory")):
                points.setdefault(names[code], []).extend(
                    SeriesPoint(when, record, values[start + place], fingerprint, items[start + place])
                    for when, record, fingerprint, start in told
                )
    last = members[-1]
    return [
        Series(last.key, last.label, name, last.model, tuple(found), last.sweep)
        for name, found in sorted(points.items())
    ]

"""From a store to a report: the whole of the verb ``regressions``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness import stats
from harness.record import Record
from harness.store import Store
from reports.regressions import decisions as kept
from reports.regressions.detect import Report, detect
from reports.regressions.series import History, Point, Series, history


def read(root: str, *, sweep: str | None = None) -> History:
    """The history that a store holds, of one sweep or of all."""
    records: Iterable[Record] = Store(root).records()[0]
    return history(r for r in records if sweep is None or r.sweep == sweep)


def look(root: str, *, sweep: str | None = None) -> Report:
    """What moved, by the records and samples of a store and the decisions kept beside it."""
    store, found = Store(root), read(root, sweep=sweep)

    def samples(identity: str) -> pa.Table | None:
        record = found.records[identity]
        return store.samples(record) if record.samples is not None else None

    decisions = kept.load(Path(root)) if "://" not in root else ()
    return detect(found, samples=samples, decisions=decisions)


def false_alarms(found: History, *, rounds: int = 200, seed: int = 0) -> stats.Interval | None:
    """Share of nights on which identical runs would have alarmed: the series' own values in another order (A/A).

    Each round shuffles the nights of the newest environment, the same for all series, so that what a night does to
    all cells stays together.

    Returns:
        None where no series has six values of one environment.
    """
    long = [s for s in found.series if len(s.segment()) >= 6]
    if not long:
        return None
    nights = min(len(s.segment()) for s in long)

    def draw(rng: np.random.Generator) -> NDArray[np.float64]:
        return np.asarray(rng.permutation(nights), dtype=np.float64)

    def alarms(order: NDArray[np.float64]) -> bool:
        shuffled = tuple(_reordered(s, order) for s in long)
        return detect(History(shuffled, {}, {}, {}), drift=False).alarmed

    return stats.false_alarm_rate(alarms, draw, rounds=rounds, seed=seed)


def _reordered(series: Series, order: NDArray[np.float64]) -> Series:
    segment = series.segment()[-len(order) :]
    times = [p.finished for p in segment]
    points = tuple(
        Point(time, segment[int(i)].record, segment[int(i)].value, segment[int(i)].fingerprint, segment[int(i)].n)
        for time, i in zip(times, order, strict=True)
    )
    return Series(series.key, series.label, series.metric, series.model, points)

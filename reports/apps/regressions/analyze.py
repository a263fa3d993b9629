"""From a store to a report: the whole of the verb ``regressions``."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness import stats
from harness.record import Record
from harness.store import index
from harness.store.store import Store
from reports.apps.regressions import decisions as kept
from reports.apps.regressions.detect import Report, detect
from reports.apps.regressions.series import History, Series, SeriesPoint, history


def read(root: str, *, sweep: str | None = None) -> History:
    """The history that a store holds, of one sweep or of all."""
    store = Store(root)
    loaded = index.load(store)

    def record(row: int) -> Record:
        return Record.from_json((store.files.read(loaded.paths[row]) or b"").decode(), where=loaded.paths[row])

    return history(loaded.flat, lambda row: record(row).environment, cell=lambda row: record(row).cell, sweep=sweep)


def look(root: str, *, sweep: str | None = None) -> Report:
    """Changes in the records and samples of a store, given its baseline decisions."""
    store, found = Store(root), read(root, sweep=sweep)

    def samples(identity: str) -> pa.Table | None:
        return store.sample_file(found.samples[identity]) if identity in found.samples else None

    return detect(found, samples=samples, decisions=kept.load(store))


def false_alarms(found: History, *, rounds: int = 200, seed: int = 0) -> stats.Interval | None:
    """Share of nights on which identical runs would have alarmed: the series' own values in another order (A/A).

    Every kind of alarm counts, change points included, before reruns dismiss any.

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
        return detect(History(shuffled, {}, {}, {})).alarmed

    return stats.false_alarm_rate(alarms, draw, rounds=rounds, seed=seed)


def _reordered(series: Series, order: NDArray[np.float64]) -> Series:
    segment = series.segment()[-len(order) :]
    times = [p.finished for p in segment]
    points = tuple(
        SeriesPoint(time, segment[int(i)].record, segment[int(i)].value, segment[int(i)].fingerprint, segment[int(i)].n)
        for time, i in zip(times, order, strict=True)
    )
    return Series(series.key, series.label, series.metric, series.model, points)

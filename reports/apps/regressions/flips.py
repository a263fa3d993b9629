"""The same items scored twice: what the last good record answered, and what the newest one does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from harness import stats
from reports.apps.regressions.series import Series, SeriesPoint
from reports.data.samples import ARMS, Scores, gather

Samples = Callable[[str], "pa.Table | None"]
"""Record id to its scored items."""


@dataclass(frozen=True)
class FlipCount:
    """Items of one cell that are scored otherwise than by its last good record.

    Attributes:
        lost: right then, wrong now (negative flips).
        gained: wrong then, right now.
        n: items both scored.
        records: of the last good record and the newest one.
    """

    key: str
    label: str
    metric: str
    lost: int
    gained: int
    n: int
    records: tuple[str, str]


def count_flips(series: Sequence[Series], samples: Samples | None) -> list[FlipCount]:
    """Flips of every series that has items in its two newest records."""
    out = []
    for one in series:
        before, after = one.points[-2], one.points[-1]
        pair = _scores(one, before, after, samples)
        if pair is not None:
            a, b, _ = pair
            found = stats.flips(a.right[0], b.right[0])
            records = (before.record, after.record)
            out.append(FlipCount(one.key, one.label, one.metric, found.lost, found.gained, found.n, records))
    return out


def _scores(
    one: Series, before: SeriesPoint, after: SeriesPoint, samples: Samples | None
) -> tuple[Scores, Scores, list[pa.Table | None]] | None:
    """Scores of the newest record and of the one before on the same items, and their tables; None without them."""
    if samples is None or one.metric not in ARMS:
        return None
    tables = [samples(p.record) for p in (after, before)]
    a, b = (gather([(0, table)], ARMS[one.metric]) if table is not None else None for table in tables)
    return None if a is None or b is None or a.items != b.items else (a, b, tables)


def on_items(
    one: Series, before: SeriesPoint, after: SeriesPoint, samples: Samples | None
) -> tuple[float, float, str] | None:
    """Effect and p on the items both records scored: McNemar, and the log-probability test where it sees more."""
    pair = _scores(one, before, after, samples)
    if pair is None:
        return None
    a, b, tables = pair
    p = stats.mcnemar(a.right[0], b.right[0]).p
    logs = [_log_probabilities(table, ARMS[one.metric], a.items) for table in tables]
    if logs[0] is not None and logs[1] is not None and len(logs[0]) > 1:
        # two tests of one change: Bonferroni over the pair
        p = min(1.0, 2 * min(p, stats.paired_t(logs[0], logs[1]).p))
    effect = float(a.right[0].mean() - b.right[0].mean())
    if effect == 0 and logs[0] is not None and logs[1] is not None:
        effect = float(np.mean(logs[0]) - np.mean(logs[1]))
    return effect, p, "items"


def _log_probabilities(
    table: pa.Table | None, arm: str, items: Sequence[tuple[str, str]]
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    if table is None or "logp_answer" not in table.column_names:
        return None
    columns = table.select(["arm", "task", "item", "logp_answer"]).to_pydict()
    by_item = {
        (task, item): value
        for which, task, item, value in zip(*(columns[c] for c in ("arm", "task", "item", "logp_answer")), strict=True)
        if which == arm
    }
    values = [by_item.get(item) for item in items]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return np.array(values, dtype=np.float64)

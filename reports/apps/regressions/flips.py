"""The same items scored twice: what the last good record answered, and what the newest one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness import stats
from reports.apps.regressions.series import Series, SeriesPoint
from reports.data.effects import Evidence, ScoreEffect
from reports.data.samples import ARMS, ArmItems, SampleSource, scored_items


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


def count_flips(series: Sequence[Series], samples: SampleSource | None) -> list[FlipCount]:
    """Flips of every series that has items in its two newest records."""
    out = []
    for one in series:
        before, after = one.points[-2], one.points[-1]
        pair = _arms(one, before, after, samples)
        if pair is not None:
            a, b = pair
            lost, gained = int((a.correct < b.correct).sum()), int((a.correct > b.correct).sum())
            records = (before.record, after.record)
            out.append(FlipCount(one.key, one.label, one.metric, lost, gained, len(a.judged), records))
    return out


def _arms(
    one: Series, before: SeriesPoint, after: SeriesPoint, samples: SampleSource | None
) -> tuple[ArmItems, ArmItems] | None:
    """Scored items of the newest record and of the one before, the same items; None without them."""
    if samples is None or one.metric not in ARMS:
        return None
    a, b = (
        found.arms.get(ARMS[one.metric]) if (found := scored_items(samples(p.record))) is not None else None
        for p in (after, before)
    )
    return None if a is None or b is None or not a.judged or a.judged != b.judged else (a, b)


def on_items(
    one: Series, before: SeriesPoint, after: SeriesPoint, samples: SampleSource | None
) -> tuple[float, float] | None:
    """Effect and p on the items both records scored: McNemar, and the log-probability test where it sees more."""
    pair = _arms(one, before, after, samples)
    if pair is None:
        return None
    a, b = pair
    if a is b:
        return 0.0, 1.0
    p = stats.mcnemar(a.correct, b.correct).p
    logs = [_log_probabilities(arm) for arm in pair]
    if logs[0] is not None and logs[1] is not None and len(logs[0]) > 1:
        # two tests of one change: Bonferroni over the pair
        p = min(1.0, 2 * min(p, stats.paired_t(logs[0], logs[1]).p))
    effect = float(a.correct.mean() - b.correct.mean())
    if effect == 0 and logs[0] is not None and logs[1] is not None:
        effect = float(np.mean(logs[0]) - np.mean(logs[1]))
    return effect, p


def between(one: Series, before: SeriesPoint, after: SeriesPoint, samples: SampleSource | None) -> ScoreEffect | None:
    """The effect with its interval as boards, ``compare`` and ``reproduce`` give it for these two records.

    Returns:
        None without items, and where no answer or as many for the better as for the worse changed.
    """
    if one.metric not in ARMS:
        return None
    runs = {name: [(None, point.record)] for name, point in (("after", after), ("before", before))}
    family = Evidence(samples).family_of(runs, one.metric, "after")
    if family is None or "before" not in family.scores:
        return None
    found = family.effect("after", "before")
    return found if found.effect else None


def _log_probabilities(arm: ArmItems) -> NDArray[np.float64] | None:
    """Log-probability of the answer of each judged item; None where one has none."""
    values = arm.logp.astype(np.float64)
    if arm.judged is not arm.items:
        places = {item: at for at, item in enumerate(arm.items)}
        values = values[[places[item] for item in arm.judged]]
    return values if np.isfinite(values).all() else None

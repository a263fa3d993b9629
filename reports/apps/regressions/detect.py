"""Detect changes: in one cell against its own noise, over the whole matrix in pairs, and with a changed environment.

Every finding says which way it is ("worse" or "better"), because an improvement alarms too: a step that was silently
skipped looks like speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from harness import stats
from harness.metrics import METRICS
from reports.apps.regressions import decisions as kept
from reports.apps.regressions.flips import FlipCount, between, count_flips, on_items
from reports.apps.regressions.matrix import (
    ALPHA,
    EnvironmentChange,
    PooledFinding,
    direction,
    environment_changes,
    floor_of,
    pooled,
    relative,
)
from reports.apps.regressions.series import History, Series, SeriesAttempt, SeriesPoint
from reports.data.samples import SampleSource

DRIFT_ALPHA = 0.001
FEWEST_OF_A_NIGHT = 8
"""Cells of one night from which their common shift of times and energies is taken."""


@dataclass(frozen=True)
class CellFinding:
    """A change in one cell.

    Attributes:
        kind: ``level`` (latest value outside its band), ``items`` (paired test on the same items), ``rate`` (two rates
            without items), ``drift`` (change point), ``status`` (no longer ends ok), ``missing`` (no result, or not
            rerun in a new environment) or ``condition`` (throttled or shared).
        effect: difference for rates, relative change for seconds, bytes and joules; None for a status.
        p: adjusted over the cells of this look; None where the test has none.
        low: lower end of the 95 % interval of ``effect``, not adjusted: the one that boards and ``compare`` print for
            the two records; None for levels, change points and a status.
        high: its upper end.
    """

    key: str
    label: str
    metric: str
    kind: str
    direction: str
    before: float | None
    after: float | None
    effect: float | None
    p: float | None
    since: str
    reason: str
    records: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def as_json(self) -> dict[str, object]:
        """Plain JSON values; ``interval`` is the 95 % interval of ``effect``."""
        return {**asdict(self), "interval": None if self.low is None else [self.low, self.high]}


@dataclass(frozen=True)
class SeriesEnd:
    """A series without a record in the newest night of its sweep.

    Attributes:
        label: of its cell.
        since: when its last record was finished.
        differs: fields by which a newer series of the same label differs from it; empty where there is none.
    """

    label: str
    since: str
    differs: tuple[str, ...] = ()


@dataclass
class Report:
    """Everything one look found; :meth:`as_json` is the shape of ``regressions --json``.

    Attributes:
        ended: series without a record on the newest day of their sweep; ``began``: labels that have only records of
            that day; ``renamed``: labels that were taken for one series, old and new. None is an alarm.
        undecided: shifts of times or energies of all cells that one night's load could be, as too few nights came
            before to know. No alarm.
        flips: items that changed since the last good record, of every cell with stored items, with or without an alarm:
            an unchanged accuracy may hide as many lost answers as gained ones.
    """

    cells: list[CellFinding] = field(default_factory=list)
    pooled: list[PooledFinding] = field(default_factory=list)
    environment_changes: list[EnvironmentChange] = field(default_factory=list)
    improvements: list[CellFinding | PooledFinding] = field(default_factory=list)
    looked_at: dict[str, int] = field(default_factory=dict)
    flips: list[FlipCount] = field(default_factory=list)
    ended: list[SeriesEnd] = field(default_factory=list)
    began: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    undecided: list[PooledFinding] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "cells": [f.as_json() for f in self.cells],
            "pooled": [f.as_json() for f in self.pooled],
            "environment_changes": [asdict(f) for f in self.environment_changes],
            "improvements": [{"scope": _scope(f), **f.as_json()} for f in self.improvements],
            "looked_at": self.looked_at,
            "flips": [asdict(f) for f in self.flips],
            "ended": [asdict(f) for f in self.ended],
            "began": self.began,
            "renamed": self.renamed,
            "undecided": [f.as_json() for f in self.undecided],
        }

    @property
    def alarmed(self) -> bool:
        """True if anything got worse."""
        return bool(self.cells or self.pooled)


def _scope(finding: CellFinding | PooledFinding) -> str:
    return "pooled" if isinstance(finding, PooledFinding) else "cell"


def detect(
    found: History, *, samples: SampleSource | None = None, decisions: Sequence[kept.Decision] = (), drift: bool = True
) -> Report:
    """Look at the newest value of every series.

    Args:
        samples: record id to its scored items, for paired tests; None: aggregates only.
        decisions: recorded moves of baselines.
        drift: also search for lasting changes inside a segment (slower).
    """
    series = [_cut(s, decisions) for s in found.series]
    series = [s for s in series if len(s.points) > 1]
    findings = [*_status(found, decisions), *_levels(series), *_rates(series, samples)]
    if drift:
        findings += _drifts(series)
    shifts, undecided = pooled(series, found)
    report = Report(
        environment_changes=environment_changes(series, found),
        looked_at={
            "series": len(found.series),
            "with_history": len(series),
            "too_few_for_a_band": sum(len(s.segment()) <= stats_needed() for s in series if relative(s)),
            "records_without_a_date": found.undated,
        },
        flips=count_flips(series, samples),
    )
    report.ended, report.began = _ended_and_began(found)
    report.renamed = list(found.renamed)
    for finding in findings:
        (report.cells if finding.direction == "worse" else report.improvements).append(finding)
    report.undecided = undecided
    for one in shifts:
        (report.pooled if one.direction == "worse" else report.improvements).append(one)
    return report


def _ended_and_began(found: History) -> tuple[list[SeriesEnd], list[str]]:
    """Series that stop before the newest day of their sweep, and those that have records of that day alone."""
    days: dict[str, set[str]] = {}
    for members in found.attempts.values():
        days.setdefault(members[-1].sweep, set()).update(one.finished[:10] for one in members)
    spans = {sweep: (min(known), max(known)) for sweep, known in days.items()}
    differs: dict[str, Mapping[str, str]] = dict(found.breaks)
    ended, began = [], []
    for members in found.attempts.values():
        first, last = members[0], members[-1]
        oldest, newest = spans[last.sweep]
        if last.finished[:10] < newest:
            fields = differs.get(last.label, {})
            ended.append(SeriesEnd(last.label, last.finished, tuple(f"{k} {v}" for k, v in fields.items())))
        elif oldest < newest == first.finished[:10]:
            began.append(first.label)
    return sorted(ended, key=lambda one: one.label), sorted(began)


def stats_needed() -> int:
    """Fewest earlier values before a level may alarm."""
    from harness.stats.changes import FEWEST_REPEATS

    return FEWEST_REPEATS


def _cut(series: Series, decisions: Sequence[kept.Decision]) -> Series:
    return replace(series, points=kept.apply(series, decisions)) if decisions else series


# --- one cell ------------------------------------------------------------------------------------
def _status(found: History, decisions: Sequence[kept.Decision]) -> list[CellFinding]:
    """A separate alert class (protocol 8.7), never a value: cells that ended ok and no longer do, that produced no
    result or were not rerun in a new environment, or whose newest run was disturbed.
    """
    left = _left(found)
    out = []
    for members in found.attempts.values():
        if kept.covered(members[-1].label, "status", members[-1].finished, decisions):
            continue
        latest, earlier = members[-1], [one for one in members[:-1] if one.status == "ok"]
        disturbed = sorted({"throttled", "shared"} & set(latest.marks))
        if latest.status in ("interrupted", "lost") and earlier:
            out.append(_about_status(latest, "missing", f"produced no result: {latest.status}, {latest.reason}"))
        elif latest.status != "ok" and earlier:
            reason = f"ended {latest.status} in {latest.stage or 'no stage'}: {latest.reason}"
            out.append(_about_status(latest, "status", reason))
        elif disturbed and not any(set(disturbed) & set(one.marks) for one in members[-2:-1]):
            what = " and ".join(disturbed)
            out.append(_about_status(latest, "condition", f"was {what}: its times and energies are not judged"))
        elif latest.status == "ok" and (latest.sweep, latest.fingerprint) in left:
            reason = f"was not rerun in the newer environment of the cells of {latest.sweep}"
            out.append(_about_status(latest, "missing", reason))
    return out


def missing(cells: Sequence[tuple[str, str]], known: Sequence[CellFinding]) -> list[CellFinding]:
    """Findings for planned cells (key, label) without a final record; those already reported are left out."""
    told = {finding.key for finding in known}
    return [
        CellFinding(
            key, label, "status", "missing", "worse", None, None, None, None, "", "was planned and has no result"
        )
        for key, label in cells
        if key not in told
    ]


def _left(found: History) -> set[tuple[str, str]]:
    """(sweep, fingerprint) of environments that more cells have left for a newer one than still have their newest
    record in."""
    left: Counter[tuple[str, str]] = Counter()
    for members in found.attempts.values():
        newest = members[-1]
        left.update({(newest.sweep, one.fingerprint) for one in members if one.fingerprint != newest.fingerprint})
        left[newest.sweep, newest.fingerprint] -= 1
    return {place for place, balance in left.items() if balance > 0}


def _about_status(latest: SeriesAttempt, kind: str, reason: str) -> CellFinding:
    return CellFinding(
        latest.key, latest.label, "status", kind, "worse", None, None, None, None, latest.finished, reason, (latest.id,)
    )


def _levels(series: Sequence[Series]) -> list[CellFinding]:
    """Seconds, bytes and joules outside the band of their segment (protocol 8.3).

    What all cells of a night have in common is no news of one cell: a time or an energy must also be outside once the
    night's common shift is taken out. The shift itself is judged by :func:`matrix.pooled`.
    """
    out = []
    alarms = _alarms(series)
    shifts = _night_shifts(alarms)
    for one, latest, alarm in alarms:
        middle, band = (alarm.low + alarm.high) / 2, (alarm.high - alarm.low) / 2
        shift = shifts.get(_night_of(one, latest), 0.0)
        if not alarm.raised or abs(alarm.latest - middle * (1 + shift)) <= band:
            continue
        out.append(
            CellFinding(
                one.key,
                one.label,
                one.metric,
                "level",
                direction(one.quantity, alarm.latest - middle),
                middle,
                alarm.latest,
                alarm.relative,
                None,
                latest.finished,
                f"outside {alarm.low:.4g} to {alarm.high:.4g}: provisional until reruns confirm it",
                (latest.record,),
            )
        )
    return out


def _alarms(series: Sequence[Series]) -> list[tuple[Series, SeriesPoint, stats.Alarm]]:
    """The newest value of every series that has a band, and where it lies."""
    out = []
    for one in series:
        segment = one.segment()
        if relative(one) and len(segment) > 1:
            alarm = stats.provisional_alarm([p.value for p in segment[:-1]], segment[-1].value, floor_of(one.quantity))
            if not isinstance(alarm, str):
                out.append((one, segment[-1], alarm))
    return out


def _night_of(one: Series, latest: SeriesPoint) -> tuple[str, str, str, str]:
    return one.sweep, one.metric, latest.fingerprint, latest.finished[:10]


def _night_shifts(alarms: Sequence[tuple[Series, SeriesPoint, stats.Alarm]]) -> dict[tuple[str, str, str, str], float]:
    """Median relative shift of all cells of a night, of times and energies, which share the load of the machine."""
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for one, latest, alarm in alarms:
        if METRICS[one.quantity].family != "memory" and alarm.relative is not None:
            found.setdefault(_night_of(one, latest), []).append(alarm.relative)
    return {night: float(np.median(all_)) for night, all_ in found.items() if len(all_) >= FEWEST_OF_A_NIGHT}


def _rates(series: Sequence[Series], samples: SampleSource | None) -> list[CellFinding]:
    """Rates against the last good record: on the same items where there are any, else as two rates.

    p values are adjusted over all cells of this look (Benjamini and Hochberg).
    """
    tested: list[tuple[Series, float, float, stats.Comparison | None]] = []
    for one in series:
        if METRICS[one.quantity].unit != "fraction" or METRICS[one.quantity].family not in ("accuracy", "retention"):
            continue
        before, after = one.points[-2], one.points[-1]
        paired = on_items(one, before, after, samples)
        if paired is not None:
            tested.append((one, *paired, None))
        elif before.n and after.n:
            rates = (round(after.value * after.n), after.n, round(before.value * before.n), before.n)
            unpaired = stats.compare_rates(*rates)
            tested.append((one, unpaired.effect, unpaired.p, unpaired))
    if not tested:
        return []
    adjusted = stats.benjamini_hochberg([row[2] for row in tested])
    return [
        _of_rate(one, effect, float(p), unpaired, samples)
        for (one, effect, _, unpaired), p in zip(tested, adjusted, strict=True)
        if p < ALPHA and effect != 0
    ]


def _of_rate(
    one: Series, effect: float, p: float, unpaired: stats.Comparison | None, samples: SampleSource | None
) -> CellFinding:
    before, after = one.points[-2], one.points[-1]
    shown = unpaired if unpaired is not None else between(one, before, after, samples)
    effect = effect if shown is None else shown.effect
    return CellFinding(
        one.key,
        one.label,
        one.metric,
        "items" if unpaired is None else "rate",
        direction(one.quantity, effect),
        before.value,
        after.value,
        effect,
        p,
        after.finished,
        "exact McNemar or log-probability test on the same items" if unpaired is None else "two rates, no items",
        (before.record, after.record),
        None if shown is None else shown.low,
        None if shown is None else shown.high,
    )


def _drifts(series: Sequence[Series]) -> list[CellFinding]:
    """Lasting changes inside the newest segment (E-divisive with t tests), with the first night they show.

    p values are adjusted for the splits that were possible and for all series of this look (Bonferroni): the best of
    many splits is tested, which alone is 4 to 21 times as often below its level as the level says.
    """
    out = []
    looked_at = [one for one in series if len(one.segment()) >= 8 and len({p.value for p in one.segment()}) > 1]
    splits = stats.any_split([_tested(one) for one in looked_at], alpha=DRIFT_ALPHA)
    for one in (looked_at[i] for i in np.flatnonzero(splits)):
        segment = one.segment()
        values, floor, ratio = [p.value for p in segment], floor_of(one.quantity), _in_ratios(one)
        for point in stats.change_points(values, alpha=DRIFT_ALPHA, relative_floor=floor, ratio=ratio)[-1:]:
            change = point.after - point.before
            p = min(1.0, point.p * len(segment) * len(looked_at))
            if p >= ALPHA:
                continue
            out.append(
                CellFinding(
                    one.key,
                    one.label,
                    one.metric,
                    "drift",
                    direction(one.quantity, change),
                    point.before,
                    point.after,
                    point.relative if relative(one) else change,
                    p,
                    segment[point.index].finished,
                    "change point inside one environment",
                    (segment[point.index].record,),
                )
            )
    return out


def _in_ratios(one: Series) -> bool:
    """Whether change points are searched in the logarithm: seconds, bytes and joules have a skewed spread."""
    return relative(one) and min(p.value for p in one.segment()) > 0


def _tested(one: Series) -> list[float]:
    values = [p.value for p in one.segment()]
    return np.log(values).tolist() if _in_ratios(one) else values


__all__ = ["ALPHA", "CellFinding", "EnvironmentChange", "PooledFinding", "Report", "detect", "direction"]

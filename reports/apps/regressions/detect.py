"""Detect changes: in one cell against its own noise, over the whole matrix in pairs, and with a changed environment.

Every finding says which way it is ("worse" or "better"), because an improvement alarms too: a step that was silently
skipped looks like speed.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats as distributions

from harness import stats
from harness.metrics import METRICS
from reports.apps.regressions import decisions as kept
from reports.apps.regressions.flips import FlipCount, count_flips, on_items
from reports.apps.regressions.series import History, Series, SeriesAttempt, SeriesPoint
from reports.data.samples import SampleSource

ALPHA = 0.01
"""Largest adjusted p value of a confirmed change (protocol 8.4)."""
DRIFT_ALPHA = 0.001
RATIO_FAMILIES = frozenset({"time", "energy", "memory"})


@dataclass(frozen=True)
class CellFinding:
    """A change in one cell.

    Attributes:
        kind: ``level`` (latest value outside its band), ``items`` (paired test on the same items), ``rate`` (two rates
            without items), ``drift`` (change point), ``status`` (no longer ends ok), ``missing`` (no result, or not
            rerun in a new environment) or ``condition`` (throttled or shared).
        effect: difference for rates, relative change for seconds, bytes and joules; None for a status.
        p: adjusted over the cells of this look; None where the test has none.
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


@dataclass(frozen=True)
class PooledFinding:
    """A change common to many cells; ``suspects`` is what changed in the environment between them."""

    metric: str
    direction: str
    before: float
    after: float
    pairs: int
    effect: float
    low: float
    high: float
    p: float
    kind: str
    suspects: tuple[str, ...]
    cells: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; ``interval`` is the 95 % interval of ``effect``."""
        return {**asdict(self), "interval": [self.low, self.high]}


@dataclass(frozen=True)
class EnvironmentChange:
    """A new segment: what differs, and on how many cells it was seen. Reported once, not once a cell."""

    before: str
    after: str
    since: str
    cells: int
    suspects: tuple[str, ...]


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
            that day. Neither is an alarm.
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

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "cells": [asdict(f) for f in self.cells],
            "pooled": [f.as_json() for f in self.pooled],
            "environment_changes": [asdict(f) for f in self.environment_changes],
            "improvements": [{"scope": _scope(f), **_as_json(f)} for f in self.improvements],
            "looked_at": self.looked_at,
            "flips": [asdict(f) for f in self.flips],
            "ended": [asdict(f) for f in self.ended],
            "began": self.began,
        }

    @property
    def alarmed(self) -> bool:
        """True if anything got worse."""
        return bool(self.cells or self.pooled)


def _scope(finding: CellFinding | PooledFinding) -> str:
    return "pooled" if isinstance(finding, PooledFinding) else "cell"


def _as_json(finding: CellFinding | PooledFinding) -> dict[str, Any]:
    return finding.as_json() if isinstance(finding, PooledFinding) else asdict(finding)


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
    pooled = _pooled(series, found)
    report = Report(
        environment_changes=_environment_changes(series, found),
        looked_at={
            "series": len(found.series),
            "with_history": len(series),
            "too_few_for_a_band": sum(len(s.segment()) <= stats_needed() for s in series if _relative(s)),
        },
        flips=count_flips(series, samples),
    )
    report.ended, report.began = _ended_and_began(found)
    for finding in findings:
        (report.cells if finding.direction == "worse" else report.improvements).append(finding)
    for one in pooled:
        (report.pooled if one.direction == "worse" else report.improvements).append(one)
    return report


def _ended_and_began(found: History) -> tuple[list[SeriesEnd], list[str]]:
    """Series that stop before the newest day of their sweep, and those that have records of that day alone."""
    days: dict[str, list[str]] = {}
    for members in found.attempts.values():
        days.setdefault(members[-1].sweep, []).extend(one.finished[:10] for one in members)
    differs: dict[str, Mapping[str, str]] = dict(found.breaks)
    ended, began = [], []
    for members in found.attempts.values():
        first, last, known = members[0], members[-1], days[members[-1].sweep]
        newest, oldest = max(known), min(known)
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


def _relative(series: Series) -> bool:
    return METRICS[series.quantity].family in RATIO_FAMILIES


def direction(quantity: str, change: float) -> str:
    """``worse`` or ``better``; a change of a quantity without a good direction counts as worse, so that a person checks
    it.
    """
    better = METRICS[quantity].better
    if better == "neither":
        return "worse"
    return "better" if (change > 0) == (better == "higher") else "worse"


def _floor(quantity: str) -> float:
    return stats.RELATIVE_FLOORS.get(quantity, stats.RELATIVE_FLOORS.get(METRICS[quantity].family, 0.0))


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
    """Seconds, bytes and joules outside the band of their segment (protocol 8.3)."""
    out = []
    for one in series:
        segment = one.segment()
        if not _relative(one) or len(segment) < 2:
            continue
        alarm = stats.provisional_alarm([p.value for p in segment[:-1]], segment[-1].value, _floor(one.quantity))
        if isinstance(alarm, str) or not alarm.raised:
            continue
        middle = (alarm.low + alarm.high) / 2
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
                segment[-1].finished,
                f"outside {alarm.low:.4g} to {alarm.high:.4g}: provisional until reruns confirm it",
                (segment[-1].record,),
            )
        )
    return out


def _rates(series: Sequence[Series], samples: SampleSource | None) -> list[CellFinding]:
    """Rates against the last good record: on the same items where there are any, else as two rates.

    p values are adjusted over all cells of this look (Benjamini and Hochberg).
    """
    tested: list[tuple[Series, SeriesPoint, SeriesPoint, float, float, str]] = []
    for one in series:
        if METRICS[one.quantity].unit != "fraction" or METRICS[one.quantity].family not in ("accuracy", "retention"):
            continue
        before, after = one.points[-2], one.points[-1]
        paired = on_items(one, before, after, samples)
        if paired is not None:
            tested.append((one, before, after, *paired))
        elif before.n and after.n:
            unpaired = stats.compare_rates(
                round(after.value * after.n), after.n, round(before.value * before.n), before.n
            )
            tested.append((one, before, after, unpaired.effect, unpaired.p, "rate"))
    if not tested:
        return []
    adjusted = stats.benjamini_hochberg([row[4] for row in tested])
    return [
        CellFinding(
            one.key,
            one.label,
            one.metric,
            kind,
            direction(one.quantity, effect),
            before.value,
            after.value,
            effect,
            float(p),
            after.finished,
            "exact McNemar or log-probability test on the same items" if kind == "items" else "two rates, no items",
            (before.record, after.record),
        )
        for (one, before, after, effect, _, kind), p in zip(tested, adjusted, strict=True)
        if p < ALPHA and effect != 0
    ]


def _drifts(series: Sequence[Series]) -> list[CellFinding]:
    """Lasting changes inside the newest segment (E-divisive with t tests), with the first night they show.

    p values are adjusted for the splits that were possible and for all series of this look (Bonferroni): the best of
    many splits is tested, which alone is 4 to 21 times as often below its level as the level says.
    """
    out = []
    looked_at = [one for one in series if len(one.segment()) >= 8 and len({p.value for p in one.segment()}) > 1]
    splits = stats.any_split([[p.value for p in one.segment()] for one in looked_at], alpha=DRIFT_ALPHA)
    for one in (looked_at[i] for i in np.flatnonzero(splits)):
        segment = one.segment()
        values = [p.value for p in segment]
        for point in stats.change_points(values, alpha=DRIFT_ALPHA, relative_floor=_floor(one.quantity))[-1:]:
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
                    point.relative if _relative(one) else change,
                    p,
                    segment[point.index].finished,
                    "change point inside one environment",
                    (segment[point.index].record,),
                )
            )
    return out


# --- the whole matrix ----------------------------------------------------------------------------
def _pooled(series: Sequence[Series], found: History) -> list[PooledFinding]:
    """The same cells before and after, all together: across the newest environment change, and on the newest night."""
    by_metric: dict[tuple[str, str, str], list[tuple[Series, float, float]]] = {}
    for one in series:
        segment, earlier = one.segment(), one.before_segment()
        if earlier:
            names = (one.metric, "environment", one.sweep)
            by_metric.setdefault(names, []).append((one, _level(earlier), _level(segment)))
        elif len(segment) > 1:
            names = (one.metric, "night", one.sweep)
            by_metric.setdefault(names, []).append((one, _level(segment[:-1]), segment[-1].value))
    tested: list[tuple[tuple[str, str, str], list[tuple[Series, float, float]], stats.Pooled]] = []
    for names, rows in sorted(by_metric.items(), key=lambda pair: pair[0]):
        ratio = METRICS[rows[0][0].quantity].family in RATIO_FAMILIES
        usable = [row for row in rows if not ratio or min(row[1:]) > 0]
        if len(usable) < 2 or all(before == after for _, before, after in usable):
            continue
        models = [one.model for one, _, _ in usable]
        tested.append(
            (
                names,
                usable,
                stats.pooled_paired(
                    [before for _, before, _ in usable],
                    [after for _, _, after in usable],
                    clusters=models if len(set(models)) > 2 else None,
                    ratio=ratio,
                ),
            )
        )
    if not tested:
        return []
    adjusted = stats.benjamini_hochberg(
        [max(t.p, _guard(rows, t), _nights(names[1], rows)) for names, rows, t in tested]
    )
    out = []
    for (names, rows, t), p in zip(tested, adjusted, strict=True):
        metric, kind, _ = names
        quantity = metric.rpartition(".")[2]
        floor = _floor(quantity) / 2  # a shift of all cells is believed at half of what one cell may wander
        if p < ALPHA and (METRICS[quantity].family not in RATIO_FAMILIES or abs(t.effect) >= floor):
            out.append(_pooled_finding(metric, kind, rows, t, float(p), _common_suspects(found, rows, kind)))
    return out


def _guard(rows: Sequence[tuple[Series, float, float]], t: stats.Pooled) -> float:
    """Keeps one wild cell from being called a shift of all: the signed-rank test; below eight cells, one direction."""
    if t.pairs >= 8:
        return t.wilcoxon_p
    signs = {math.copysign(1.0, after - before) for _, before, after in rows if after != before}
    return 0.0 if len(signs) == 1 else 1.0


FEWEST_NIGHTS = 3
"""Nights before a shift of all cells from which the spread of nights is estimated."""


def _nights(kind: str, rows: Sequence[tuple[Series, float, float]]) -> float:
    """p of a shift of all times, bytes or joules against the spread of the nights before.

    The cells of one night share the machine's load and temperature, so many cells are no evidence against a common
    night effect. Each night is one value, the mean logarithm over the cells relative to their level; the new nights are
    compared with the earlier ones by a t test on their spread.

    Returns:
        0, which leaves the decision to the other tests: for scores, whose items and seeds are the same every night, and
        below :data:`FEWEST_NIGHTS` earlier nights, whose spread is then not known.
    """
    if METRICS[rows[0][0].quantity].family not in RATIO_FAMILIES:
        return 0.0
    before, after = [], []
    for one, _, _ in rows:
        segment = one.segment()
        earlier, now = (one.before_segment(), segment) if kind == "environment" else (segment[:-1], segment[-1:])
        before.append([point.value for point in earlier])
        after.append([point.value for point in now])
    n, m = min(map(len, before)), min(map(len, after))
    if n < FEWEST_NIGHTS or min(map(min, (*before, *after))) <= 0:
        return 0.0
    old, new = np.log([values[-n:] for values in before]), np.log([values[-m:] for values in after])
    level = old.mean(axis=1, keepdims=True)
    nights, shift = (old - level).mean(axis=0), float((new - level).mean())
    spread = float(nights.std(ddof=1))
    if spread == 0:
        return float(shift == 0)
    return 2 * float(distributions.t.sf(abs(shift) / (spread * math.sqrt(1 / n + 1 / m)), n - 1))


def _level(points: Sequence[SeriesPoint]) -> float:
    """Median of the last twenty values: one bad night does not move it."""
    return statistics.median(p.value for p in points[-20:])


def _pooled_finding(
    metric: str,
    kind: str,
    rows: Sequence[tuple[Series, float, float]],
    t: stats.Pooled,
    p: float,
    suspects: tuple[str, ...],
) -> PooledFinding:
    return PooledFinding(
        metric,
        direction(metric.rpartition(".")[2], t.effect),
        float(np.mean([before for _, before, _ in rows])),
        float(np.mean([after for _, _, after in rows])),
        t.pairs,
        t.effect,
        t.low,
        t.high,
        p,
        kind,
        suspects,
        tuple(sorted({one.label for one, _, _ in rows})),
    )


def _environment_changes(series: Sequence[Series], found: History) -> list[EnvironmentChange]:
    changes: dict[tuple[str, str], tuple[str, set[str]]] = {}
    for one in series:
        segment, earlier = one.segment(), one.before_segment()
        if not earlier:
            continue
        pair = (earlier[-1].fingerprint, segment[-1].fingerprint)
        since, cells = changes.get(pair, (segment[0].finished, set()))
        changes[pair] = (min(since, segment[0].finished), cells | {one.key})
    return [
        EnvironmentChange(old, new, since, len(cells), _suspects(found, old, new))
        for (old, new), (since, cells) in sorted(changes.items())
    ]


def _common_suspects(found: History, rows: Sequence[tuple[Series, float, float]], kind: str) -> tuple[str, ...]:
    """Differences between the two environments of the cells, those shared by most cells first."""
    if kind != "environment":
        return ()
    counts: Counter[str] = Counter()
    for one, _, _ in rows:
        counts.update(_suspects(found, one.before_segment()[-1].fingerprint, one.segment()[-1].fingerprint))
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def _suspects(found: History, old: str, new: str) -> tuple[str, ...]:
    """Differences between two environments, package by package, then machine."""
    if not old or not new:
        return ()
    before, after = _facts(found.environments.get(old, {})), _facts(found.environments.get(new, {}))
    return tuple(
        f"{name} {before.get(name, 'absent')} → {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    )


def _facts(environment: Mapping[str, Any]) -> dict[str, str]:
    """Parts of a fingerprint, by name."""
    facts = {name: str(version) for name, version in (environment.get("packages") or {}).items() if version}
    facts |= {f"cell {path}": str(value) for path, value in (environment.get("cell") or {}).items()}
    if environment.get("python"):
        facts["python"] = ".".join(str(environment["python"]).split(".")[:2])
    cpu = environment.get("cpu")
    if isinstance(cpu, Mapping) and cpu.get("model"):
        facts["processor"] = str(cpu["model"])
    for gpu in environment.get("gpus") or ():
        if isinstance(gpu, Mapping):
            facts["gpu"] = str(gpu.get("name"))
            if gpu.get("driver"):
                facts["driver"] = str(gpu["driver"])
    return facts


__all__ = ["CellFinding", "EnvironmentChange", "PooledFinding", "Report", "detect", "direction"]

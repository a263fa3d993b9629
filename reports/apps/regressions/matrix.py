"""Changes common to many cells: paired tests over the matrix, changes of environment, and what differs between them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats as distributions

from harness import stats
from harness.metrics import METRICS
from reports.apps.regressions.series import History, Series, SeriesPoint

ALPHA = 0.01
"""Largest adjusted p value of a confirmed change (protocol 8.4)."""
RATIO_FAMILIES = frozenset({"time", "energy", "memory"})


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

    def as_json(self) -> dict[str, object]:
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


def relative(series: Series) -> bool:
    """Whether a series is compared as ratios: seconds, bytes and joules."""
    return METRICS[series.quantity].family in RATIO_FAMILIES


def direction(quantity: str, change: float) -> str:
    """``worse`` or ``better``; a change of a quantity without a good direction counts as worse, so that a person checks
    it.
    """
    better = METRICS[quantity].better
    if better == "neither":
        return "worse"
    return "better" if (change > 0) == (better == "higher") else "worse"


def floor_of(quantity: str) -> float:
    """Smallest relative change of a quantity that may alarm; 0 where any may."""
    return stats.RELATIVE_FLOORS.get(quantity, stats.RELATIVE_FLOORS.get(METRICS[quantity].family, 0.0))


Rows = list[tuple[Series, float, float]]
"""Cells with their values before and after."""


def pooled(series: Sequence[Series], found: History) -> tuple[list[PooledFinding], list[PooledFinding]]:
    """The same cells before and after, all together: across the newest environment change, and on the newest night.

    Returns:
        The changes; and shifts of times and energies that the cells show but that one night's load could be, because
        too few nights came before (:data:`FEWEST_NIGHTS`).
    """
    tested = [(names, rows, _paired(rows)) for names, rows in sorted(_by_question(series).items())]
    if not tested:
        return [], []
    alone = [max(t.p, _guard(rows, t)) for _, rows, t in tested]
    nights = [_nights(names[1], rows) for names, rows, _ in tested]
    adjusted = stats.benjamini_hochberg([max(p, night) for p, (night, _) in zip(alone, nights, strict=True)])
    of_cells = stats.benjamini_hochberg(alone)
    sure: list[PooledFinding] = []
    undecided: list[PooledFinding] = []
    for ((metric, kind, _), rows, t), p, shown, (_, assumed) in zip(tested, adjusted, of_cells, nights, strict=True):
        quantity = metric.rpartition(".")[2]
        floor = floor_of(quantity) / 2  # a shift of all cells is believed at half of what one cell may wander
        large = METRICS[quantity].family not in RATIO_FAMILIES or abs(t.effect) >= floor
        if large and (p < ALPHA or (assumed and shown < ALPHA)):
            one = _pooled_finding(metric, kind, rows, t, float(p), _common_suspects(found, rows, kind))
            (sure if p < ALPHA else undecided).append(one)
    return sure, undecided


def _by_question(series: Sequence[Series]) -> dict[tuple[str, str, str], Rows]:
    """Metric, ``environment`` or ``night``, and sweep to the cells that can answer; at least two, not all unchanged.

    A series takes part in both: what a change of environment did and what the newest night did are two questions.
    """
    found: dict[tuple[str, str, str], Rows] = {}
    for one in series:
        segment, earlier = one.segment(), one.before_segment()
        if earlier:
            found.setdefault((one.metric, "environment", one.sweep), []).append((one, _level(earlier), _level(segment)))
        if len(segment) > 1:
            row = (one, _level(segment[:-1]), segment[-1].value)
            found.setdefault((one.metric, "night", one.sweep), []).append(row)
    usable = {names: [row for row in rows if not relative(row[0]) or min(row[1:]) > 0] for names, rows in found.items()}
    return {n: rows for n, rows in usable.items() if len(rows) > 1 and any(old != new for _, old, new in rows)}


def _paired(rows: Rows) -> stats.Pooled:
    models = [one.model for one, _, _ in rows]
    return stats.pooled_paired(
        [before for _, before, _ in rows],
        [after for _, _, after in rows],
        clusters=models if len(set(models)) > 2 else None,
        ratio=relative(rows[0][0]),
    )


def _guard(rows: Rows, t: stats.Pooled) -> float:
    """Keeps one wild cell from being called a shift of all: the signed-rank test; below eight cells, one direction."""
    if t.pairs >= 8:
        return t.wilcoxon_p
    signs = {math.copysign(1.0, after - before) for _, before, after in rows if after != before}
    return 0.0 if len(signs) == 1 else 1.0


FEWEST_NIGHTS = 3
"""Nights before a shift of all cells from which the spread of nights is estimated."""
ASSUMED_NIGHT_SD = 0.05
"""Standard deviation of a night's common effect on times and energies that is assumed with fewer nights."""


def _nights(kind: str, rows: Rows) -> tuple[float, bool]:
    """p of a shift of all times, bytes or joules against the spread of the nights before; whether that is assumed.

    The cells of one night share the machine's load and temperature, so many cells are no evidence against a common
    night effect. Each night is one value, the mean logarithm over the cells relative to their level; the new nights are
    compared with the earlier ones by a t test on their spread. With fewer than :data:`FEWEST_NIGHTS` earlier nights the
    spread of times and energies is taken for :data:`ASSUMED_NIGHT_SD`. Cells with fewer nights than most are left out.

    Returns:
        p = 0 leaves the decision to the other tests: for scores, whose items and seeds are the same every night, and
        for bytes of so few nights, which no load changes.
    """
    family = METRICS[rows[0][0].quantity].family
    if family not in RATIO_FAMILIES:
        return 0.0, False
    pairs = []
    for one, _, _ in rows:
        segment = one.segment()
        parts = (one.before_segment(), segment) if kind == "environment" else (segment[:-1], segment[-1:])
        pairs.append(tuple([point.value for point in part] for part in parts))
    n, m = (statistics.median_low(len(pair[at]) for pair in pairs) for at in (0, 1))
    kept = [(old[-n:], new[-m:]) for old, new in pairs if len(old) >= n and len(new) >= m and min(*old, *new) > 0]
    if not kept:
        return 1.0, False
    old, new = np.log([pair[0] for pair in kept]), np.log([pair[1] for pair in kept])
    level = old.mean(axis=1, keepdims=True)
    nights, shift = (old - level).mean(axis=0), float((new - level).mean())
    root = math.sqrt(1 / n + 1 / m)
    if n < FEWEST_NIGHTS:
        return (0.0, False) if family == "memory" else (_tail(abs(shift) / (ASSUMED_NIGHT_SD * root), math.inf), True)
    spread = float(nights.std(ddof=1))
    return (_tail(abs(shift) / (spread * root), n - 1) if spread else float(shift == 0)), False


def _tail(t: float, df: float) -> float:
    return 2 * float(distributions.t.sf(t, df))


def _level(points: Sequence[SeriesPoint]) -> float:
    """Median of the last twenty values: one bad night does not move it."""
    return stats.median([p.value for p in points[-20:]])


def _pooled_finding(
    metric: str,
    kind: str,
    rows: Rows,
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


def environment_changes(series: Sequence[Series], found: History) -> list[EnvironmentChange]:
    """Each newest change of environment once, with the cells it was seen on and what differs."""
    changes: dict[tuple[str, str], tuple[str, set[str]]] = {}
    for one in series:
        segment, earlier = one.segment(), one.before_segment()
        if not earlier:
            continue
        pair = (earlier[-1].fingerprint, segment[-1].fingerprint)
        since, cells = changes.get(pair, (segment[0].finished, set()))
        cells.add(one.key)
        changes[pair] = (min(since, segment[0].finished), cells)
    return [
        EnvironmentChange(old, new, since, len(cells), _suspects(found, old, new))
        for (old, new), (since, cells) in sorted(changes.items())
    ]


def _common_suspects(found: History, rows: Rows, kind: str) -> tuple[str, ...]:
    """Differences between the two environments of the cells, and in commits; those shared by most cells first."""
    counts: Counter[str] = Counter()
    for number, (one, _, _) in enumerate(rows):
        segment = one.segment()
        before, after = (one.before_segment()[-1], segment[0]) if kind == "environment" else segment[-2:]
        counts.update(_suspects(found, before.fingerprint, after.fingerprint))
        if number < COMMITS_OF:
            counts.update(_commits(found, before.record, after.record))
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


COMMITS_OF = 50
"""Cells of a finding whose records are read for the commits of their tools."""


def _commits(found: History, before: str, after: str) -> list[str]:
    """Commits that differ between two records; a commit is no change of environment, but a suspect."""
    if found.environment_of is None:
        return []
    old, new = (_commits_of(found.environment_of(record)) for record in (before, after))
    names = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    return [f"commit of {name} {old[name][:12]} → {new[name][:12]}" for name in names]


def _commits_of(environment: Mapping[str, Any]) -> dict[str, str]:
    found = {name.removesuffix("-commit-hash"): str(one) for name, one in (environment.get("commits") or {}).items()}
    own = environment.get("harness")
    if isinstance(own, Mapping) and own.get("commit"):
        found["peft-matrix"] = str(own["commit"])
    return {name: commit for name, commit in found.items() if commit != "None"}


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

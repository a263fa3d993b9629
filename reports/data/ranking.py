"""Ranks as intervals, and the Pareto front: what the data say about who is better than whom, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.metrics import METRICS
from harness.record import Record
from reports.data.effects import Evidence, Family, ScoreEffect, ValueEffect, members_of, of_runs
from reports.data.samples import ARMS
from reports.data.timing import RATIO_FAMILIES

NO_SAMPLES = "no stored samples that cover all its seeds"
ONE_SEED = "one seed: a single run ranks a checkpoint, not a method"
MOST_RANKED_ROWS = 500
"""Rows of one section compared with each other: 124,750 pairs take a second. Of more rows the best ones are ranked."""

_FRONT = (
    "◆ Pareto front: no other row is clearly better on one axis ({axes}) without being clearly worse on another. "
    "Clearly: by the paired test for {metric}; for times, bytes and joules by the ratio within randomised blocks where "
    "the rows have them; otherwise by more than one standard deviation over seeds."
)


@dataclass(frozen=True)
class Ranking:
    """Ranks of the rows of a section.

    Attributes:
        ranks: configuration to (first, last) rank.
        better: pairs (a, b) where a is significantly better than b, adjusted for all pairs.
        compared: configurations that took part.
        unranked: configuration to the reason why it has no rank.
        caption: how the ranks came about.
    """

    ranks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    better: frozenset[tuple[str, str]] = frozenset()
    compared: frozenset[str] = frozenset()
    unranked: Mapping[str, str] = field(default_factory=dict)
    caption: str = ""


Rows = Sequence[Mapping[str, Any]]
InBlocks = Callable[[Sequence[str], str], NDArray[np.float64]]


def family_of(rows: Rows, name: str, evidence: Evidence) -> tuple[Family | None, dict[str, str]]:
    """The largest family of rows on the same items, and why each other row is not compared with it.

    Args:
        rows: aggregated rows of one section.
        name: a metric of :data:`reports.data.samples.ARMS`.
    """
    families = evidence.families(members_of(row for row in rows if not _missing(row, name)), name)
    family, out = families[0] if families else None, dict[str, str]()
    for row in rows:
        config = row["config"]
        if row["status"] != "ok" or _missing(row, name):
            out[config] = f"no {METRICS[name].label}"
        elif row["marks"]:
            out[config] = ", ".join(row["marks"])
        elif family is None or config not in family.scores:
            elsewhere = any(config in other.scores for other in families)
            out[config] = "scored on other items than the rest" if elsewhere else NO_SAMPLES
    return family, out


def rank_rows(rows: Rows, name: str, evidence: Evidence) -> Ranking:
    """Rank intervals of the rows of a section by the model of :mod:`harness.stats.rows`, adjusted for all pairs.

    A row's interval runs from 1 + rows significantly better to all rows less those significantly worse. Rows with one
    seed have no rank: one run ranks a checkpoint, not a method. Of more than :data:`MOST_RANKED_ROWS` rows those with
    the best means are compared with each other and have ranks among themselves; the others have none. This choice
    depends on the data and errs to the safe side: chosen rows differ less than as many taken at random.
    """
    family, unranked = family_of(rows, name, evidence)
    kept = [config for config in family.configs if config not in unranked] if family is not None else []
    if len(kept) > MOST_RANKED_ROWS:
        return _rank_best(rows, name, evidence, kept, unranked)
    if family is None or not kept:
        return Ranking(unranked=unranked, caption="Fewer than two rows to rank.")
    numbers = {config: number for number, config in enumerate(family.configs)}
    replicated = family.rows.replicated
    if not (family.rows.counts > 1).any():
        single, several = kept, list[str]()
    else:
        single = [config for config in kept if not replicated[numbers[config]]]
        several = [config for config in kept if replicated[numbers[config]]]
    unranked |= dict.fromkeys(single, ONE_SEED)
    if not several:
        return Ranking(unranked=unranked, caption=f"Unranked: {ONE_SEED}.")
    if len(several) == 1:
        return Ranking({several[0]: (1, 1)}, frozenset(), frozenset(several), unranked, "Fewer than two rows to rank.")
    sign = 1.0 if METRICS[name].better == "higher" else -1.0
    places = np.array([numbers[config] for config in several])
    verdicts = family.rows.better(sign=sign)[np.ix_(places, places)]
    ranks = {c: (r.low, r.high) for c, r in zip(several, stats.rank_intervals(verdicts), strict=True)}
    better = frozenset((several[i], several[j]) for i, j in zip(*verdicts.nonzero(), strict=True))
    pairs = len(several) * (len(several) - 1) // 2
    seeds = sorted({len(family.scores[config].seeds) for config in several})
    how_many = " to ".join(dict.fromkeys(map(str, (seeds[0], seeds[-1]))))
    caption = (
        f"Ranks by {METRICS[name].label}: {pairs:,} pairs on {family.rows.items:,} shared items and {how_many} seeds, "
        "with the variance over seeds estimated over all rows and adjusted for all pairs (family-wise error at most "
        "5 %); rows that do not differ share ranks."
    )
    return Ranking(ranks, better, frozenset(several), unranked, caption)


def _rank_best(rows: Rows, name: str, evidence: Evidence, kept: Sequence[str], unranked: Mapping[str, str]) -> Ranking:
    """The best of too many rows, ranked among themselves; equal means stay in the order of their configurations."""
    sign = 1.0 if METRICS[name].better == "higher" else -1.0
    several = {row["config"] for row in rows if row.get(f"{name}:n", 0) > 1}
    means = {row["config"]: sign * row[name] for row in rows if row["config"] in set(kept)}
    order = sorted(kept, key=lambda config: (config not in several, -means[config], config))
    best = set(order[:MOST_RANKED_ROWS])
    found = rank_rows([row for row in rows if row["config"] in best], name, evidence)
    why = f"not among the {MOST_RANKED_ROWS} best rows, which are compared pair by pair"
    left = dict.fromkeys(sorted(set(kept) - best), why)
    caption = f"Ranks are among the {MOST_RANKED_ROWS:,} best of {len(kept):,} rows by their mean. {found.caption}"
    return Ranking(found.ranks, found.better, found.compared, {**unranked, **left, **found.unranked}, caption)


def differences(
    rows: Rows, name: str, base: str, evidence: Evidence, runs: Mapping[str, Sequence[Record]]
) -> dict[str, ScoreEffect | ValueEffect]:
    """Every row less the row ``base``, with intervals that are not adjusted for other pairs.

    On the items where there are any (:meth:`reports.data.effects.Family.effect`), else from one value a run. Rows
    without either are left out, and all rows for seconds, bytes and joules, which a seed does not repeat.

    Args:
        name: a quantity, or ``stage.quantity``.
        runs: finished records of each row.
    """
    if METRICS[name.rpartition(".")[2]].family in RATIO_FAMILIES:
        return {}
    others = [config for config in runs if config != base and runs[config]]
    of_values = {config: of_runs(runs[config], runs.get(base, ()), name) for config in others}
    found: dict[str, ScoreEffect | ValueEffect] = {
        config: effect for config, effect in of_values.items() if effect is not None and effect.low is not None
    }
    family = family_of(rows, name, evidence)[0] if name in ARMS else None
    if family is not None and base in family.scores:
        found |= {config: family.effect(config, base) for config in family.configs if config != base}
    return found


def front_caption(axes: Sequence[str], metric: str) -> str:
    """Meaning of the front's mark, as readable text."""
    return _FRONT.format(axes=", ".join(axes), metric=METRICS[metric].label)


def pareto_front(
    rows: Rows, axes: Sequence[str], ranked: str, ranking: Ranking, in_blocks: InBlocks | None = None
) -> set[str]:
    """Configurations on the front: those that no other row beats.

    A row beats another one if it is *clearly* better on one axis and on no axis clearly worse. Clearly: by the
    ranking's tests on the ranked metric; for times, bytes and joules of rows that ran in the same blocks by the ratio
    within blocks; elsewhere by more than one standard deviation over seeds, of the rows or of all rows together.

    Marked rows take no part. Where every row was imported they have a front among themselves: it says what the
    other tool's numbers say, and no row of ours is measured against it.

    Args:
        rows: aggregated rows of one section.
        axes: columns of the frame; the part after a dot is the metric, which knows its direction.
        in_blocks: configurations and an axis to :func:`reports.data.timing.clearly_less`.
    """
    ok = [row for row in rows if row["status"] == "ok"]
    allowed = {"imported"} if all("imported" in row["marks"] for row in ok) else set()
    taking_part = [row for row in ok if set(row["marks"]) <= allowed and not any(_missing(row, a) for a in axes)]
    if not taking_part:
        return set()
    configs = [row["config"] for row in taking_part]
    clearly = []  # one matrix an axis: row i is clearly better than row j
    for axis in axes:
        values = np.array([_sign(axis) * row[axis] for row in taking_part])
        noise = _noise(taking_part, axis)
        # row by row: a table of 10,000 rows in floats would take 800 MB for each axis
        better = np.array([value - values > np.maximum(own, noise) for value, own in zip(values, noise, strict=True)])
        if axis == ranked:
            tested = np.array([config in ranking.compared for config in configs])
            known = np.zeros_like(better)
            at = {config: number for number, config in enumerate(configs)}
            for a, b in ranking.better:
                if a in at and b in at:
                    known[at[a], at[b]] = True
            better = np.where(tested[:, None] & tested[None, :], known, better)
        elif in_blocks is not None and METRICS[axis.rpartition(".")[2]].family in RATIO_FAMILIES:
            less = in_blocks(configs, axis)
            found = less if _sign(axis) < 0 else less.T
            better = np.where(np.isnan(found), better, found == 1)
        clearly.append(better)
    some = np.any(clearly, axis=0)
    beats = some & ~some.T
    return {config for config, beaten in zip(configs, beats.any(axis=0), strict=True) if not beaten}


def _noise(rows: Rows, axis: str) -> NDArray[np.float64]:
    """Uncertainty of each row's mean: half its interval's width or one standard deviation over seeds, the larger one.

    A row's standard deviation is never taken below that of all rows together, relative to the mean for times, bytes and
    joules: two seeds that agree by luck make no row steady. A quantity without any has none.
    """
    means = np.array([abs(row[axis]) for row in rows])
    relative = METRICS[axis.rpartition(".")[2]].family in RATIO_FAMILIES
    scale = means if relative else np.ones(len(rows))
    sds = np.array([row.get(f"{axis}:sd", math.nan) for row in rows], float)
    ends = [(row.get(f"{axis}:high", math.nan), row.get(f"{axis}:low", math.nan)) for row in rows]
    halves = np.array([(high - low) / 2 for high, low in ends], float)
    known = np.isfinite(sds) & (scale > 0)
    pooled = math.sqrt(float(np.mean((sds[known] / scale[known]) ** 2))) if known.any() else 0.0
    return np.asarray(np.maximum(np.maximum(np.nan_to_num(sds), np.nan_to_num(halves)), pooled * scale), np.float64)


def _sign(axis: str) -> float:
    return 1.0 if METRICS[axis.rpartition(".")[2]].better == "higher" else -1.0


def _missing(row: Mapping[str, object], name: str) -> bool:
    value = row.get(name)
    return not isinstance(value, float) or math.isnan(value)

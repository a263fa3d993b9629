"""Ranks as intervals, and the Pareto front: what the data say about who is better than whom, and no more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness import stats
from harness.metrics import METRICS
from reports.data.effects import Evidence, Family, ScoreEffect, members_of

NO_SAMPLES = "no stored samples that cover all its seeds"
ONE_SEED = "one seed: a single run ranks a checkpoint, not a method"
MOST_RANKED_ROWS = 250
"""Rows of one section compared with each other: 31,125 pairs take some ten seconds."""

_FRONT = (
    "◆ Pareto front: no other row is at least as good on every axis ({axes}) and clearly better on one. "
    "Clearly: by the paired test for {metric}, by more than one standard deviation over seeds otherwise."
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
    seed have no rank: one run ranks a checkpoint, not a method.
    """
    family, unranked = family_of(rows, name, evidence)
    kept = [config for config in family.configs if config not in unranked] if family is not None else []
    if len(kept) > MOST_RANKED_ROWS:
        why = f"there are more than {MOST_RANKED_ROWS} rows, too many to compare pair by pair"
        return Ranking(unranked=unranked | dict.fromkeys(kept, why), caption=f"Unranked: {why}.")
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


def differences(rows: Rows, name: str, base: str, evidence: Evidence) -> dict[str, ScoreEffect]:
    """Every row less the row ``base``, where both can be paired; intervals are not adjusted for other pairs."""
    family, _ = family_of(rows, name, evidence)
    if family is None or base not in family.scores:
        return {}
    return {config: family.effect(config, base) for config in family.configs if config != base}


def front_caption(axes: Sequence[str], metric: str) -> str:
    """Meaning of the front's mark, as readable text."""
    return _FRONT.format(axes=", ".join(axes), metric=METRICS[metric].label)


def pareto_front(rows: Rows, axes: Sequence[str], ranked: str, ranking: Ranking) -> set[str]:
    """Configurations on the front.

    A row leaves the front only if another one is at least as good on every axis by its mean and *clearly*
    better on one: by the ranking's tests on the ranked metric, by more than the larger standard deviation over
    seeds elsewhere. So noise alone removes no row, and of two rows that do not differ both may stay.

    Marked rows take no part. Where every row was imported they have a front among themselves: it says what the
    other tool's numbers say, and no row of ours is measured against it.

    Args:
        rows: aggregated rows of one section.
        axes: columns of the frame; the part after a dot is the metric, which knows its direction.
    """
    ok = [row for row in rows if row["status"] == "ok"]
    allowed = {"imported"} if all("imported" in row["marks"] for row in ok) else set()
    taking_part = [row for row in ok if set(row["marks"]) <= allowed and not any(_missing(row, a) for a in axes)]
    if not taking_part:
        return set()
    values = np.array([[_sign(axis) * row[axis] for axis in axes] for row in taking_part])
    noise = np.array([[_noise(row, axis) for axis in axes] for row in taking_part])
    compared = np.array([row["config"] in ranking.compared for row in taking_part])
    tested = [number for number, axis in enumerate(axes) if axis == ranked]
    front = set()
    for number, row in enumerate(taking_part):
        gains = values - values[number]
        clearly = gains > np.maximum(noise, noise[number])
        if tested and compared[number]:
            known = [(other["config"], row["config"]) in ranking.better for other in taking_part]
            clearly[:, tested[0]] = np.where(compared, known, clearly[:, tested[0]])
        if not ((gains >= 0).all(axis=1) & clearly.any(axis=1)).any():
            front.add(row["config"])
    return front


def _noise(row: Mapping[str, Any], axis: str) -> float:
    """Uncertainty of a mean: half its interval's width, or one standard deviation over seeds, if that is more."""
    half = (row.get(f"{axis}:high", math.nan) - row.get(f"{axis}:low", math.nan)) / 2
    return max([0.0, *(float(x) for x in (half, row.get(f"{axis}:sd", math.nan)) if not math.isnan(x))])


def _sign(axis: str) -> float:
    return 1.0 if METRICS[axis.rpartition(".")[2]].better == "higher" else -1.0


def _missing(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    return not isinstance(value, float) or math.isnan(value)

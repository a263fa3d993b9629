"""Ranks as intervals, and the Pareto front: what the data say about who is better than whom, and no more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness import stats
from harness.metrics import METRICS
from reports.data.samples import ARMS, SampleSource, Scores, gather

ALPHA = 0.05
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
        better: pairs (a, b) where a is better than b after Holm's adjustment.
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


def scores_of(rows: Rows, name: str, samples: SampleSource | None) -> tuple[dict[str, Scores], dict[str, str]]:
    """Scores of every row that can be paired with the others, and why each of the rest cannot.

    Args:
        rows: aggregated rows of one section.
        name: a metric of :data:`reports.data.samples.ARMS`.
    """
    found: dict[str, Scores] = {}
    out: dict[str, str] = {}
    for row in rows:
        config = row["config"]
        if row["status"] != "ok" or _missing(row, name):
            out[config] = f"no {METRICS[name].label}"
        elif row["marks"]:
            out[config] = ", ".join(row["marks"])
        else:
            scores = gather([(n, samples(n)) for n in row["ok_records"]], ARMS[name]) if samples else None
            if scores is None:
                out[config] = "no stored samples that cover all its seeds"
            else:
                found[config] = scores
    if found:
        # rows are compared on the same items; the set that most rows share counts
        counts = Counter(scores.items for scores in found.values())
        items = max(counts, key=lambda key: (counts[key], key))
        for config in [c for c, scores in found.items() if scores.items != items]:
            out[config] = "scored on other items than the rest"
            del found[config]
    return found, out


def rank_rows(rows: Rows, name: str, samples: SampleSource | None) -> Ranking:
    """Rank intervals of the rows of a section by paired tests on stored samples, Holm adjusted.

    Exact McNemar for one seed each, a paired test over seeds and items otherwise (:func:`harness.stats.compare`).
    A row's interval runs from 1 + rows significantly better to all rows less those significantly worse.
    """
    found, unranked = scores_of(rows, name, samples)
    label = METRICS[name].label
    if len(found) > MOST_RANKED_ROWS:
        why = f"more than {MOST_RANKED_ROWS} rows: too many for pairwise tests"
        return Ranking(unranked=unranked | dict.fromkeys(found, why), caption=f"Unranked: {why}.")
    configs = sorted(found)
    if len(configs) < 2:
        ranks = dict.fromkeys(configs, (1, 1))
        return Ranking(ranks, compared=frozenset(configs), unranked=unranked, caption="Fewer than two rows to rank.")
    tests = stats.pairwise([_weighted(found[config]) for config in configs])
    sign = 1.0 if METRICS[name].better == "higher" else -1.0
    verdicts = stats.significantly_better(sign * tests.effects, tests.p, ALPHA)
    ranks = {c: (r.low, r.high) for c, r in zip(configs, stats.rank_intervals(verdicts), strict=True)}
    better = frozenset((configs[i], configs[j]) for i, j in zip(*verdicts.nonzero(), strict=True))
    pairs = len(configs) * (len(configs) - 1) // 2
    caption = (
        f"Ranks by {label}: intervals from {pairs:,} paired tests on {len(found[configs[0]].items):,} items, Holm "
        f"adjusted at {100 * ALPHA:g} %; rows that are not significantly different share ranks."
    )
    return Ranking(ranks, better, frozenset(configs), unranked, caption)


def _weighted(scores: Scores) -> Any:
    """Scores whose plain mean is the mean over tasks; left as right and wrong where there is one task."""
    one_task = len({task for task, _ in scores.items}) == 1
    return scores.right if one_task else scores.right * scores.weights * len(scores.items)


def differences(rows: Rows, name: str, base: str, samples: SampleSource | None) -> dict[str, stats.Comparison]:
    """Every row against the row ``base``, where both can be paired; unadjusted intervals."""
    found, _ = scores_of(rows, name, samples)
    if base not in found:
        return {}
    against = _weighted(found[base])
    return {
        config: stats.compare(_weighted(scores), against) for config, scores in sorted(found.items()) if config != base
    }


def front_caption(axes: Sequence[str], metric: str) -> str:
    """Meaning of the front's mark, as readable text."""
    return _FRONT.format(axes=", ".join(axes), metric=METRICS[metric].label)


def pareto_front(rows: Rows, axes: Sequence[str], ranked: str, ranking: Ranking) -> set[str]:
    """Configurations on the front.

    A row leaves the front only if another one is at least as good on every axis by its mean and *clearly*
    better on one: by the ranking's tests on the ranked metric, by more than the larger standard deviation over
    seeds elsewhere. So noise alone removes no row, and of two rows that are not significantly different both may stay.

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

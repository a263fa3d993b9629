"""Paired effects: the one place that boards, ``compare``, ``reproduce`` and ``regressions`` get "A less B" from.

Scores are compared with the model of :mod:`harness.stats.rows`, fitted to all configurations that may be compared with
each other (the *family*: same conditions, model, task and items), so that the same question has the same interval
everywhere. Where neither side has a second seed, the effect is that of two checkpoints, and says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.comparability import comparable, configuration
from harness.metrics import METRICS
from harness.record import Record, Scalar
from reports.data.samples import ARMS, SampleSource, Scores, gather
from reports.data.timing import value_of

Kind = Literal["replicated", "checkpoint"]
Members = Mapping[str, Sequence[tuple[Scalar, str]]]
"""Configuration to the seed and record id of its finished runs."""


@dataclass(frozen=True)
class ScoreEffect:
    """Row A less row B on the items both were scored on.

    Attributes:
        kind: ``replicated``: holds for further seeds; ``checkpoint``: holds for these two trained models only.
        p: two-sided, not adjusted for other pairs.
        mde: smallest effect found 8 times in 10; None where nothing varies.
        se: standard error, on ``df`` degrees of freedom.
        items: items behind it.
        seeds: seeds of A and of B.
    """

    effect: float
    low: float
    high: float
    p: float
    mde: float | None
    items: int
    seeds: tuple[int, int]
    method: str
    kind: Kind
    se: float
    df: float


@dataclass(frozen=True)
class Family:
    """Configurations that may be compared on one arm of their samples.

    Attributes:
        configs: in the order of the model's rows.
        scores: of each.
        rows: the fitted model.
        ids: record ids of each.
    """

    configs: tuple[str, ...]
    scores: Mapping[str, Scores]
    rows: stats.FittedRows
    ids: Mapping[str, tuple[str, ...]]

    def interval(self, config: str) -> stats.Interval:
        """Interval of one configuration's mean over tasks; Wilson's for the items alone where no row has two seeds."""
        found = self.scores[config]
        if not (self.rows.counts > 1).any():
            return _of_checkpoint(found)
        return self.rows.interval(self.configs.index(config))

    def effect(self, a: str, b: str) -> ScoreEffect:
        """Configuration ``a`` less ``b``."""
        first, second = self.scores[a], self.scores[b]
        seeds = (len(first.seeds), len(second.seeds))
        if max(seeds) == 1:
            found = stats.compare(weighted(first), weighted(second))
            se = stats.standard_error((weighted(first) - weighted(second))[0])
            return ScoreEffect(
                *(found.effect, found.low, found.high, found.p, found.mde, len(first.items), seeds),
                f"{found.method}; these two checkpoints only",
                *("checkpoint", se, len(first.items) - 1.0),
            )
        one = self.rows.effect(self.configs.index(a), self.configs.index(b))
        return ScoreEffect(
            *(one.effect, one.low, one.high, one.p, one.mde, len(first.items), seeds, one.method),
            *("replicated", one.se, one.df),
        )

    def log_ratio(self, a: str, b: str) -> ScoreEffect | None:
        """Logarithm of configuration ``a`` over ``b``; None where one of them has no right answer."""
        first, second = self.scores[a], self.scores[b]
        seeds, items = (len(first.seeds), len(second.seeds)), len(first.items)
        if max(seeds) == 1:
            logs = _log_ratios(weighted(first)[0], weighted(second)[0])
            if logs is None:
                return None
            found, se = stats.mean_interval(logs), stats.standard_error(logs)
            p, mde = stats.paired_t(logs, np.zeros(items)).p, stats.mde_from_error(se, items - 1) if se > 0 else None
            ends = (found.estimate, found.low, found.high, p, mde, items, seeds)
            return ScoreEffect(*ends, "ratio; these two checkpoints only", "checkpoint", se, items - 1.0)
        one = self.rows.log_ratio(self.configs.index(a), self.configs.index(b))
        if one is None:
            return None
        return ScoreEffect(
            *(one.effect, one.low, one.high, one.p, one.mde, items, seeds, one.method), "replicated", one.se, one.df
        )


def _log_ratios(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Values whose mean is log(mean a / mean b), with its spread over items to first order (delta method)."""
    if min(a.mean(), b.mean()) <= 0:
        return None
    return np.asarray(math.log(a.mean() / b.mean()) + a / a.mean() - b / b.mean())


@dataclass(frozen=True)
class ValueEffect:
    """A less B where no items can be paired: from one value a run.

    Attributes:
        effect: difference of the means over the seeds; of the logarithms where it is one of those.
        low: lower end of its 95 % interval; None where neither seeds nor numbers of items give one.
        high: upper end.
        p: two-sided.
        mde: smallest effect found 8 times in 10.
        se: standard error, on ``df`` degrees of freedom.
        n: what is behind it, in words.
    """

    effect: float
    low: float | None
    high: float | None
    p: float | None
    mde: float | None
    se: float
    df: float
    n: str
    method: str
    items: None = None  # none are paired


TestedEffect = ScoreEffect | ValueEffect


def of_values(
    a: Mapping[Scalar, float],
    b: Mapping[Scalar, float],
    counts: tuple[int | None, int | None] = (None, None),
    *,
    log: bool,
) -> ValueEffect:
    """A less B from one value a seed.

    Two shared seeds or more: paired over them (t). One run each and rates whose numbers of items are known: two rates.
    Several runs are never put together as if they were items, because their seeds differ by more than their items do.

    Args:
        a: seed to value; not empty.
        b: likewise.
        counts: items behind the value of a side with one run; None where the metric is no rate.
        log: compare logarithms, for ratios; values must be positive.
    """
    first, second = ({s: float(np.log(x)) if log else x for s, x in side.items()} for side in (a, b))
    shared = sorted(first.keys() & second.keys(), key=str)
    if len(shared) > 1:
        differences = np.array([first[seed] - second[seed] for seed in shared])
        found, test = stats.mean_interval(differences), stats.paired_t(differences, np.zeros(len(shared)))
        se, df = stats.standard_error(differences), len(shared) - 1.0
        mde = stats.mde_from_error(se, df) if se > 0 else None
        told = f"{len(shared)} paired seeds"
        return ValueEffect(found.estimate, found.low, found.high, test.p, mde, se, df, told, "paired t over seeds")
    effect = float(np.mean(list(first.values())) - np.mean(list(second.values())))
    n, m = counts
    if len(first) == len(second) == 1 and n and m and not log:
        (one,), (other,) = first.values(), second.values()
        rates = stats.compare_rates(round(one * n), n, round(other * m), m)
        told = f"{n:,} and {m:,} items, one run each"
        ends = (rates.low, rates.high, rates.p, rates.mde)
        return ValueEffect(rates.effect, *ends, 0.0, math.inf, told, rates.method)
    return ValueEffect(effect, None, None, None, None, 0.0, math.inf, "one seed", "none")


def of_runs(a: Sequence[Record], b: Sequence[Record], metric: str) -> ValueEffect | None:
    """A less B from the runs of each (:func:`of_values`); None where a side has no value."""
    sides = [{r.cell_view.seed: x for r in side if (x := value_of(r, metric)) is not None} for side in (a, b)]
    counts = (items_behind(a, metric), items_behind(b, metric))
    return of_values(sides[0], sides[1], counts, log=False) if all(sides) else None


def items_behind(records: Sequence[Record], metric: str) -> int | None:
    """Items behind a rate of a side with one run, where its record counts them; None for everything else."""
    if len(records) != 1 or METRICS[metric.rpartition(".")[2]].unit != "fraction":
        return None
    return records[0].items(metric)


def weighted(scores: Scores) -> NDArray[np.float64]:
    """Scores whose plain mean is the mean over tasks; left as right and wrong where there is one task."""
    return scores.right if scores.items.one_task else scores.right * scores.items.weights * len(scores.items)


def _of_checkpoint(scores: Scores) -> stats.Interval:
    first = weighted(scores)[0]
    if scores.items.one_task or np.ptp(first) == 0:
        return stats.wilson(int(scores.correct[0].sum()), len(scores.items))
    return stats.mean_interval(first)


class Evidence:
    """Scores and fitted families of one pass over the records; each sample file is read once.

    Args:
        samples: record id to its table of scored items; None: no samples at hand.
    """

    def __init__(self, samples: SampleSource | None) -> None:
        self._samples = samples
        self._scores: dict[tuple[tuple[str, ...], str], Scores | None] = {}
        self._families: dict[tuple[tuple[tuple[str, ...], ...], str], tuple[Family, ...]] = {}
        self._latest: tuple[Members, str, tuple[Family, ...]] | None = None

    def scores(self, runs: Sequence[tuple[Scalar, str]], arm: str) -> Scores | None:
        """Scores of one arm over the runs (seed, record id) of a configuration; None where they cannot be lined up."""
        if self._samples is None or not runs:
            return None
        key = (tuple(identity for _, identity in runs), arm)
        if key not in self._scores:
            self._scores[key] = gather([(seed, self._samples(identity)) for seed, identity in runs], arm)
        return self._scores[key]

    def families(self, members: Members, metric: str) -> tuple[Family, ...]:
        """The families among configurations of one model, task and set of conditions: one for each set of items.

        The largest comes first. Configurations without usable samples are in none.

        Args:
            metric: one of :data:`reports.data.samples.ARMS`.
        """
        if self._latest is not None and self._latest[0] is members and self._latest[1] == metric:
            return self._latest[2]  # asked for each row of a section: building the key alone takes time for all rows
        ids = tuple(tuple(identity for _, identity in members[config]) for config in sorted(members))
        if (ids, metric) not in self._families:
            found = {c: s for c in sorted(members) if (s := self.scores(members[c], ARMS[metric])) is not None}
            found = {c: s for c, s in found.items() if len(s.items) > 1}  # one item has no spread
            counts = Counter(scores.items for scores in found.values())
            order = sorted(counts, key=lambda items: (-counts[items], items))
            self._families[ids, metric] = tuple(
                _fit({c: s for c, s in found.items() if s.items == items}, members) for items in order
            )
        self._latest = members, metric, self._families[ids, metric]
        return self._latest[2]

    def across(self, members: Members, metric: str, other: str, config: str) -> Family | None:
        """The family of two arms of every configuration, such as its scores before and after merging.

        Its configurations are called ``CONFIG METRIC``; those scored on the items of ``config`` in ``metric`` are in.
        """
        arms = {f"{c} {m}": (c, m) for c in sorted(members) for m in (metric, other)}
        found = {name: s for name, (c, m) in arms.items() if (s := self.scores(members[c], ARMS[m])) is not None}
        first = found.get(f"{config} {metric}")
        if first is None or len(first.items) < 2:
            return None
        alike = {name: scores for name, scores in found.items() if scores.items == first.items}
        return _fit(alike, {name: members[c] for name, (c, _) in arms.items()})

    def family_of(self, members: Members, metric: str, config: str) -> Family | None:
        """The family that holds a configuration, or None."""
        return next((f for f in self.families(members, metric) if config in f.scores), None)


def _fit(scores: Mapping[str, Scores], members: Members) -> Family:
    configs = tuple(scores)
    fixed = [_unmoved(scores[c]) for c in configs]
    rows = stats.fit_rows([weighted(scores[c]) for c in configs], [scores[c].seeds for c in configs], fixed=fixed)
    return Family(configs, scores, rows, {c: tuple(identity for _, identity in members[c]) for c in configs})


def _unmoved(scores: Scores) -> bool:
    """Whether no seed changes any item, as where nothing is trained; an all-right row says nothing about that."""
    same = len(scores.seeds) > 1 and bool((scores.correct == scores.correct[0]).all())
    return same and 0 < scores.correct.mean() < 1


def members_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[Scalar, str]]]:
    """Members from aggregated rows of one section (:func:`reports.data.frame.aggregate`)."""
    return {row["config"]: list(zip(row["seeds"], row["ok_records"], strict=True)) for row in rows if row["ok_records"]}


def peers(records: Iterable[tuple[str, Record]], like: Sequence[Record]) -> dict[str, list[tuple[Scalar, str]]]:
    """Finished results that may be compared with the records ``like``: of their sweeps, model, task and conditions.

    Args:
        records: (id, record) of the records that count for their cells, without tuning trials.
    """
    sweeps = {record.sweep for record in like}
    places = {(r.cell_view.label("model"), r.cell_view.label("task"), str(comparable(r))) for r in like}
    found: dict[str, list[tuple[Scalar, str]]] = {}
    for identity, record in records:
        if record.outcome.status != "ok" or record.sweep not in sweeps:
            continue
        if (record.cell_view.label("model"), record.cell_view.label("task"), str(comparable(record))) in places:
            found.setdefault(configuration(record), []).append((record.cell_view.seed, identity))
    return {config: sorted(runs, key=lambda run: (str(run[0]), run[1])) for config, runs in found.items()}

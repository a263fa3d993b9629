"""Two configurations against each other: effect, interval, p, smallest detectable effect, and a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from harness import stats
from harness.errors import UserError, did_you_mean
from harness.metrics import METRICS
from harness.record import Record
from reports.data.frame import comparable, configuration, current, is_trial, machine, marks
from reports.data.samples import ARMS, SampleSource, gather

RATIO_FAMILIES = frozenset({"time", "energy", "memory"})


@dataclass(frozen=True)
class Side:
    """One configuration: its name, its finished records by seed."""

    name: str
    records: Mapping[Any, tuple[str, Record]]


@dataclass(frozen=True)
class Compared:
    """Result of the comparison of A with B on one metric.

    Attributes:
        effect: A less B; for seconds, bytes and joules A over B less 1.
        warnings: what weakens the comparison: one seed, unpaired, disturbed, imported, another machine.
    """

    metric: str
    a: str
    b: str
    effect: float
    low: float | None
    high: float | None
    p: float | None
    mde: float | None
    n: str
    method: str
    sentence: str
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def select(records: Iterable[Record], text: str) -> Side:
    """The configuration whose cells' labels match ``text``: the beginning of a label or key, or a pattern.

    Raises:
        UserError: nothing matches, or several configurations do.
    """
    by_config: dict[str, dict[Any, tuple[str, Record]]] = {}
    for identity, record in current(records):
        named = record.label.startswith(text) or record.key.startswith(text) or fnmatchcase(record.label, text)
        if named and record.outcome.status == "ok" and not is_trial(record):
            by_config.setdefault(configuration(record), {})[record.cell.get("seed")] = (identity, record)
    if not by_config:
        raise UserError(f"no finished cell matches {text!r}", fix="See: peft-matrix status SWEEP.")
    names = {config: _name(found) for config, found in by_config.items()}
    exact = [config for config, name in names.items() if name == text]
    if len(by_config) > 1 and len(exact) != 1:
        some = ", ".join(sorted(names.values())[:6])
        raise UserError(f"{len(by_config)} configurations match {text!r}: {some}", fix="Give more of the name.")
    config = exact[0] if exact else next(iter(by_config))
    return Side(names[config], by_config[config])


def _name(found: Mapping[Any, tuple[str, Record]]) -> str:
    """The label without its seed."""
    label = next(iter(found.values()))[1].label
    return label.rpartition(".s")[0] or label


def compare(a: Side, b: Side, metric: str, samples: SampleSource) -> Compared:
    """A against B: on stored items where both have them, else on one value a seed, else as two rates.

    Raises:
        UserError: unknown metric, or a side that has no value of it.
    """
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}", where="--metric", fix=did_you_mean(metric, METRICS))
    warnings = _warnings(a, b)
    if metric in ARMS:
        tables = [gather([(s, samples(i)) for s, (i, _) in sorted(x.records.items())], ARMS[metric]) for x in (a, b)]
        first, second = tables
        if first is not None and second is not None and first.items == second.items:
            scale = len(first.items)
            one = first.right * first.weights * scale
            two = second.right * second.weights * scale
            varied = len(first.seeds) > 1 or len(second.seeds) > 1
            differ = bool(np.ptp(one.mean(axis=0) - two.mean(axis=0)) > 0)
            how: Any = "bootstrap" if varied and differ else "auto"  # seeds and items resampled together
            found = stats.compare(one, two, names=(a.name, b.name), method=how)
            return _of_comparison(metric, a, b, found, warnings)
        warnings.append("unpaired: not the same items")
    return _by_seeds(metric, a, b, warnings)


def _of_comparison(metric: str, a: Side, b: Side, found: stats.Comparison, warnings: list[str]) -> Compared:
    n = f"{found.n_pairs} shared items" if found.n_pairs else "two rates"
    return Compared(
        metric,
        a.name,
        b.name,
        found.effect,
        found.low,
        found.high,
        found.p,
        found.mde,
        f"{n}, {found.n_seeds[0]} and {found.n_seeds[1]} seeds",
        found.method,
        found.sentence,
        tuple(warnings),
    )


def _by_seeds(metric: str, a: Side, b: Side, warnings: list[str]) -> Compared:
    one, two = _values(a, metric), _values(b, metric)
    rates = [_rate(side, metric) for side in (a, b)]
    if METRICS[metric].unit == "fraction" and rates[0] is not None and rates[1] is not None:
        found = stats.compare_rates(*rates[0], *rates[1], names=(a.name, b.name))
        return _of_comparison(metric, a, b, found, warnings)
    shared = sorted(set(one) & set(two), key=str)
    ratio = METRICS[metric].family in RATIO_FAMILIES and min(*one.values(), *two.values()) > 0
    if len(shared) < 2:
        x, y = (math.fsum(v.values()) / len(v) for v in (one, two))
        effect = x / y - 1 if ratio else x - y
        sentence = f"{a.name} less {b.name}: {_shown(effect, metric, ratio)}; one shared seed, so no interval."
        return Compared(
            metric, a.name, b.name, effect, None, None, None, None, "1 seed", "none", sentence, (*warnings,)
        )
    pairs = np.array([[one[s], two[s]] for s in shared])
    differences = np.log(pairs[:, 0] / pairs[:, 1]) if ratio else pairs[:, 0] - pairs[:, 1]
    interval = stats.mean_interval(differences)
    test = stats.paired_t(differences, np.zeros(len(shared)))
    mde = stats.mde_from_error(stats.standard_error(differences), len(shared) - 1) if np.ptp(differences) else None
    effect, low, high = (math.expm1(v) if ratio else v for v in (interval.estimate, interval.low, interval.high))
    shown = f"{_shown(effect, metric, ratio)} [{_shown(low, metric, ratio)}, {_shown(high, metric, ratio)}]"
    verdict = "significantly different" if test.p < 0.05 else "not significantly different"
    sentence = (
        f"{a.name} against {b.name} in {metric}: {shown}, p = {test.p:.2g}, {len(shared)} paired seeds: {verdict}."
    )
    smallest = None if mde is None else (math.expm1(mde) if ratio else mde)
    return Compared(
        metric,
        a.name,
        b.name,
        effect,
        low,
        high,
        test.p,
        smallest,
        f"{len(shared)} paired seeds",
        "paired t",
        sentence,
        tuple(warnings),
    )


def _shown(value: float, metric: str, ratio: bool) -> str:
    return f"{100 * value:+.1f} %" if ratio else f"{value:+.4g} {METRICS[metric].unit}".rstrip(" 1")


def _values(side: Side, metric: str) -> dict[Any, float]:
    found = {s: r.metrics[metric].value for s, (_, r) in side.records.items() if metric in r.metrics}
    values = {seed: value for seed, value in found.items() if value is not None}
    if not values:
        reasons = {r.metrics[metric].why_missing for _, r in side.records.values() if metric in r.metrics}
        why = ", ".join(sorted(str(w) for w in reasons)) or "not recorded"
        raise UserError(f"{side.name} has no {metric} ({why})", where="--metric")
    return values


def _rate(side: Side, metric: str) -> tuple[int, int] | None:
    """Right answers and items over all seeds, where the records count their items."""
    readings = [r.metrics[metric] for _, r in side.records.values() if metric in r.metrics]
    if not readings or any(x.value is None or not x.n for x in readings):
        return None
    items = sum(int(x.n or 0) for x in readings)
    return round(math.fsum(float(x.value or 0) * int(x.n or 0) for x in readings)), items


def _warnings(a: Side, b: Side) -> list[str]:
    out = []
    if min(len(a.records), len(b.records)) < 2:
        out.append("one seed: the interval holds the items' sampling error only")
    for side in (a, b):
        found = sorted({m for _, r in side.records.values() for m in marks(r)})
        if found:
            out.append(f"{side.name} is marked {', '.join(found)}")
    first, second = (next(iter(side.records.values()))[1] for side in (a, b))
    if machine(first) != machine(second):
        out.append("other machines: times and energies are not comparable")
    if comparable(first) != comparable(second):
        out.append("other conditions: budget, task or protocol differ")
    return out

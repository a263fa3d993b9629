"""Two configurations against each other: effect, interval, p, smallest detectable effect, and a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase

from harness.comparability import differences
from harness.errors import UserError, did_you_mean
from harness.metrics import METRICS
from harness.record import Record, Scalar
from reports.data.effects import Evidence, ScoreEffect, of_runs, peers
from reports.data.frame import comparable, configuration, current, is_trial, machine, marks
from reports.data.samples import ARMS, SampleSource
from reports.data.timing import RATIO_FAMILIES, TimedRuns, ratio, value_of

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Side:
    """One configuration: its name, its finished records by seed."""

    name: str
    records: Mapping[Scalar, tuple[str, Record]]


@dataclass(frozen=True)
class Compared:
    """Result of the comparison of A with B on one metric.

    Attributes:
        effect: A less B; for seconds, bytes and joules A over B less 1.
        warnings: what weakens the comparison: one seed, unpaired, disturbed, imported, another machine.
        differ: settings in which the two differ, as ``steps 8 against 16``; of two methods budget and rate
            alone. The sentence names a different budget.
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
    differ: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def select(records: Iterable[Record], text: str) -> Side:
    """The configuration, with all its seeds, that ``text`` names: the beginning of a label or key, or a pattern.

    Raises:
        UserError: nothing matches, or several configurations do.
    """
    by_config: dict[str, dict[Scalar, tuple[str, Record]]] = {}
    named = set[str]()
    for identity, record in current(records):
        if record.outcome.status != "ok" or is_trial(record):
            continue
        config = configuration(record)
        by_config.setdefault(config, {})[record.cell_view.seed] = (identity, record)
        if record.label.startswith(text) or record.key.startswith(text) or fnmatchcase(record.label, text):
            named.add(config)
    if not named:
        raise UserError(f"no finished cell matches {text!r}", fix="See: peft-matrix status SWEEP.")
    names = {config: _name(by_config[config]) for config in sorted(named)}
    exact = [config for config, name in names.items() if name == text]
    if len(exact) > 1 or (len(set(names.values())) == 1 < len(names)):
        raise _same_name([by_config[config] for config in exact or names], text)
    if len(names) > 1 and not exact:
        some = ", ".join(sorted(set(names.values()))[:6])
        raise UserError(f"{len(names)} configurations match {text!r}: {some}", fix="Give more of the name.")
    config = exact[0] if exact else next(iter(names))
    return Side(names[config], by_config[config])


def _same_name(found: Sequence[Mapping[Scalar, tuple[str, Record]]], text: str) -> UserError:
    """Several configurations of one name, as an edited sweep leaves them: their keys, and the settings that differ."""
    firsts = sorted((next(iter(side.values()))[1] for side in found), key=lambda r: r.finished, reverse=True)
    told = [f"{firsts[0].key} (the newest, {firsts[0].finished[:10]})"]
    for record in firsts[1:]:
        differ = ", ".join(d.words(" instead of ") for d in differences(record.cell, firsts[0].cell))
        told.append(f"{record.key} ({differ})")
    return UserError(
        f"{len(firsts)} configurations of different settings are called {text!r}: {'; '.join(told)}",
        fix="Name one by its key; 'peft-matrix show KEY' prints its settings.",
    )


def _name(found: Mapping[Scalar, tuple[str, Record]]) -> str:
    """The label without its seed."""
    label = next(iter(found.values()))[1].label
    return label.rpartition(".s")[0] or label


def compare(a: Side, b: Side, metric: str, samples: SampleSource, *, records: Iterable[Record] = ()) -> Compared:
    """A against B: on stored items where both have them; seconds, bytes and joules within blocks; else as two rates.

    Args:
        metric: of the whole cell, or ``stage.metric`` (``train.rss_growth_bytes``).
        records: everything in the store. The variance over seeds is estimated over all configurations that may be
            compared with A and B, as a board of the same sweep does; without them, over A and B alone. Runs repeated
            for their time and A/A arms are taken from them.

    Raises:
        UserError: unknown metric, or a side that has no value of it.
    """
    name = metric.rpartition(".")[2]
    if name not in METRICS:
        raise UserError(f"unknown metric {name!r}", where="--metric", fix=did_you_mean(name, METRICS))
    if a.name == b.name:
        a, b = (Side(f"{side.name} ({_first(side).key})", side.records) for side in (a, b))
    differ = differences(_first(a).cell, _first(b).cell)
    budget = "; ".join(d.words() for d in differ if d.of_budget)
    found = _compared(a, b, metric, samples, records, _warnings(a, b))
    more = f" Different budgets: {budget}." if budget else ""
    return replace(found, sentence=found.sentence + more, differ=tuple(d.words() for d in differ))


def _compared(
    a: Side, b: Side, metric: str, samples: SampleSource, records: Iterable[Record], warnings: list[str]
) -> Compared:
    if metric in ARMS:
        found = _on_items(a, b, metric, samples, records)
        if found is not None:
            return _of_effect(metric, a, b, found, warnings)
        warnings.append("unpaired: not the same items")
    if METRICS[metric.rpartition(".")[2]].family in RATIO_FAMILIES:
        return _of_ratio(metric, a, b, warnings, TimedRuns(record for _, record in current(records)))
    return _by_seeds(metric, a, b, warnings)


def _on_items(a: Side, b: Side, metric: str, samples: SampleSource, records: Iterable[Record]) -> ScoreEffect | None:
    """The effect on shared items; None where a side has no samples, or the items differ."""
    sides = [next(iter(side.records.values()))[1] for side in (a, b)]
    names = [configuration(record) for record in sides]
    members = dict(peers([p for p in current(records) if not is_trial(p[1])], sides)) if alike(*sides) else {}
    for name, side in zip(names, (a, b), strict=True):
        members[name] = [(seed, identity) for seed, (identity, _) in sorted(side.records.items(), key=str)]
    family = Evidence(samples).family_of(members, metric, names[0])
    return family.effect(*names) if family is not None and names[1] in family.scores else None


def alike(a: Record, b: Record) -> bool:
    """True if two records may be in one section of a board."""
    return comparable(a) == comparable(b) and a.cell.get("model") == b.cell.get("model")


def _of_effect(metric: str, a: Side, b: Side, found: ScoreEffect, warnings: list[str]) -> Compared:
    unit = METRICS[metric].unit
    scale, name = (100.0, " points") if unit == "fraction" else (1.0, f" {unit}")
    ends = f"{scale * found.effect:+.1f} [{scale * found.low:+.1f}, {scale * found.high:+.1f}]{name}"
    seeds = f"{found.seeds[0]} and {found.seeds[1]} seeds"
    verdict = "significantly different" if found.p < SIGNIFICANT else "not significantly different"
    sentence = f"{a.name} against {b.name}: {ends}, p = {found.p:.2g}, {found.items} shared items, {seeds}: {verdict}."
    if found.mde is not None:
        sentence += f" Smallest effect found 8 times in 10: {scale * found.mde:.1f}{name}."
    return Compared(
        *(metric, a.name, b.name, found.effect, found.low, found.high, found.p, found.mde),
        f"{found.items} shared items, {seeds}",
        found.method,
        sentence,
        tuple(warnings),
    )


def _of_ratio(metric: str, a: Side, b: Side, warnings: list[str], timed: TimedRuns) -> Compared:
    def value(record: Record) -> float | None:
        return value_of(record, metric)

    _values(a, metric)
    _values(b, metric)  # both raise where there is no value
    found = ratio(_runs(a, timed), _runs(b, timed), value, identical=timed.identical(_first(a)))
    if found is None:
        raise UserError(f"{metric} is not above zero on both sides, so it has no ratio", where="--metric")
    effect, low, high = (None if x is None else x - 1 for x in (found.ratio, found.low, found.high))
    assert effect is not None
    shown = f"{100 * effect:+.1f} %"
    if low is None or high is None:
        sentence = f"{a.name} against {b.name} in {metric}: {shown}; no interval: {found.method}."
        return Compared(
            *(metric, a.name, b.name, effect, None, None, None, None, f"{found.blocks} shared blocks"),
            found.method,
            sentence,
            tuple(warnings),
        )
    mde = found.mde
    verdict = "significantly different" if found.differs else "not significantly different"
    sentence = (
        f"{a.name} against {b.name} in {metric}: {shown} [{100 * low:+.1f} %, {100 * high:+.1f} %], "
        f"p = {found.p:.2g}, {found.blocks} shared blocks: {verdict}."
    )
    if found.floor is not None:
        sentence += f" Two identical arms differ by up to {100 * (found.floor - 1):.1f} %."
    else:
        warnings.append(
            "no identical arms (A/A) ran in this sweep, so the smallest difference that counts is not known"
        )
    return Compared(
        *(metric, a.name, b.name, effect, low, high, found.p, mde, f"{found.blocks} shared blocks"),
        found.method,
        sentence,
        tuple(warnings),
    )


def _first(side: Side) -> Record:
    return next(iter(side.records.values()))[1]


def _records(side: Side) -> list[Record]:
    return [record for _, record in side.records.values()]


def _runs(side: Side, timed: TimedRuns) -> list[Record]:
    """The side's records, and the runs that repeat them for their time."""
    found = {record.id: record for _, record in side.records.values()}
    return list((found | {record.id: record for record in timed.of(_first(side))}).values())


def _by_seeds(metric: str, a: Side, b: Side, warnings: list[str]) -> Compared:
    """Values without items that can be paired, by seed."""
    _values(a, metric)
    _values(b, metric)  # both raise where there is no value
    found = of_runs(_records(a), _records(b), metric)
    assert found is not None
    base = (metric, a.name, b.name, found.effect, found.low, found.high, found.p, found.mde, found.n, found.method)
    if found.low is None or found.high is None or found.p is None:
        sentence = f"{a.name} less {b.name}: {_shown(found.effect, metric)}; one shared seed, so no interval."
        return Compared(*base, sentence, tuple(warnings))
    shown = f"{_shown(found.effect, metric)} [{_shown(found.low, metric)}, {_shown(found.high, metric)}]"
    verdict = "significantly different" if found.p < SIGNIFICANT else "not significantly different"
    sentence = f"{a.name} against {b.name} in {metric}: {shown}, p = {found.p:.2g}, {found.n}: {verdict}."
    return Compared(*base, sentence, tuple(warnings))


def _shown(value: float, metric: str) -> str:
    return f"{value:+.4g} {METRICS[metric.rpartition('.')[2]].unit}".rstrip(" 1")


def _values(side: Side, metric: str) -> dict[Scalar, float]:
    found = {s: value_of(r, metric) for s, (_, r) in side.records.items()}
    values = {seed: value for seed, value in found.items() if value is not None}
    if not values:
        reasons = {r.metrics[metric].why_missing for _, r in side.records.values() if metric in r.metrics}
        why = ", ".join(sorted(str(w) for w in reasons)) or "not recorded"
        raise UserError(f"{side.name} has no {metric} ({why})", where="--metric")
    return values


def _warnings(a: Side, b: Side) -> list[str]:
    out = []
    if min(len(a.records), len(b.records)) < 2:
        out.append("one seed: the effect is that of these checkpoints, not of the methods")
    for side in (a, b):
        found = sorted({m for _, r in side.records.values() for m in marks(r)})
        if found:
            out.append(f"{side.name} is marked {', '.join(found)}")
    first, second = (next(iter(side.records.values()))[1] for side in (a, b))
    if machine(first) != machine(second):
        out.append("other machines: times and energies are not comparable")
    if comparable(first) != comparable(second):
        names = sorted(name for name, value in comparable(first).items() if value != comparable(second)[name])
        out.append(f"other conditions: {', '.join(names)} differ")
    return out

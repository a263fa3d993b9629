"""From records to an effect with its interval, in the unit of the claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats as distributions

from harness import stats
from harness.errors import UserError
from harness.metrics import METRICS
from harness.record import Record, Scalar
from reports.apps.reproduction.claims import Arm, Count, Criterion, Pair
from reports.apps.reproduction.record_lookup import ArmRecords, Library
from reports.data.effects import items_behind, of_values
from reports.data.learned import beats_constant, trains
from reports.data.samples import ARMS
from reports.data.timing import NO_BLOCKS, ratio

EXACT_FAMILIES = frozenset({"size"})
"""Families of quantities that follow from shapes: two runs cannot differ, so one record is enough."""
SAMPLED_FAMILIES = frozenset({"accuracy", "retention"})
NOTHING_LEARNED = "nothing-learned"
ONE_SEED = "one-seed"
RELATIVE_UNITS = frozenset({"ratio", "relative"})


@dataclass(frozen=True)
class Measured:
    """An effect in the unit of its claim.

    Attributes:
        low: lower end of the 95 % interval; None where one record cannot give one.
        se: standard error on the scale of the test (the logarithm for ratios), for equivalence.
        df: its degrees of freedom.
        mde: smallest effect that would be found 8 times in 10, in the claim's unit.
        exact: it follows from shapes or printed numbers and has no spread.
        complete: every member of the stated set was measured.
        records: ids of the records behind it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    se: float = 0.0
    df: float = math.inf
    mde: float | None = None
    n: str = ""
    exact: bool = False
    complete: bool = True
    records: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Absent:
    """Reason why there is no effect to judge."""

    reason: str
    flags: frozenset[str] = frozenset()
    not_comparable: bool = False


def is_timed(test: Criterion) -> bool:
    """True if a disturbed device spoils the metric."""
    return test.metric in METRICS and METRICS[test.metric].family in ("time", "energy", "memory")


def measure(test: Criterion, library: Library) -> Measured | Absent:
    """The effect that a test's evidence shows."""
    evidence = test.evidence
    if evidence is None:
        return Absent("no record can answer it yet")
    if evidence.compute is not None:
        return Measured(
            compute(evidence.compute), exact=True, n="arithmetic on printed numbers", complete=evidence.complete
        )
    if evidence.count is not None:
        return _counted(test, library, evidence.count, evidence.count_baseline)
    sweep = evidence.sweep or ""
    if not library.has(sweep):
        return Absent(f"no records of the sweep {sweep!r}")
    if evidence.levels:
        return _interaction(test, library, sweep, evidence.levels)
    if evidence.pairs:
        return _largest(test, library, sweep, evidence.pairs)
    assert evidence.arm is not None  # Evidence checks it
    if evidence.baseline is None:
        return _single(test, library, sweep, evidence.arm)
    return _paired(test, library, sweep, Pair(arm=evidence.arm, baseline=evidence.baseline))


OPERATIONS: dict[str, Callable[[list[float]], float]] = {
    "sum": math.fsum,
    "difference": lambda numbers: numbers[0] - math.fsum(numbers[1:]),
    "product": math.prod,
    "ratio": lambda numbers: numbers[0] / math.prod(numbers[1:]),
    "mean": lambda numbers: math.fsum(numbers) / len(numbers),
    "max": max,
    "min": min,
}


def compute(tree: Mapping[str, object]) -> float:
    """Value of an arithmetic tree such as ``{ratio: [{product: [4, 0.4361]}, 0.4719]}``.

    Raises:
        UserError: an unknown operation, or operands that are not numbers.
    """
    if len(tree) != 1:
        raise UserError(
            "a computation is one operation with its list of numbers", fix=f"Known: {', '.join(OPERATIONS)}"
        )
    (name, operands), *_ = tree.items()
    if name not in OPERATIONS or not isinstance(operands, Sequence) or isinstance(operands, str) or not operands:
        raise UserError(f"unknown computation {name!r}", fix=f"Known, each with a list: {', '.join(OPERATIONS)}")
    numbers = []
    for operand in operands:
        if isinstance(operand, Mapping):
            numbers.append(compute(operand))
        elif isinstance(operand, int | float) and not isinstance(operand, bool):
            numbers.append(float(operand))
        else:
            raise UserError(f"{operand!r} in a computation is not a number")
    return float(OPERATIONS[name](numbers))


def reading_of(record: Record, test: Criterion) -> float | None:
    """The metric's value in a record, from its stage where the test names one."""
    if test.stage is None:
        found = record.metrics.get(test.metric)
        return None if found is None else found.value
    span = next((s for s in record.spans if s.stage == test.stage), None)
    if span is not None and test.metric == "stage_s":
        return span.seconds
    reading = span.get(test.metric) if span is not None else None
    return None if reading is None else reading.value


def _values(found: ArmRecords, test: Criterion) -> dict[Scalar, float]:
    values = {seed: reading_of(record, test) for seed, (_, record) in found.records.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _counted(test: Criterion, library: Library, count: Count, baseline: Count | None) -> Measured | Absent:
    values: list[float] = []
    ids: list[str] = []
    for one in (count, *((baseline,) if baseline else ())):
        found = library.count(one)
        if found is None:
            return Absent(f"not counted yet: {one.method} on {one.architecture}")
        if found[1].outcome.status != "ok":
            return Absent(f"{one.method} on {one.architecture}: {found[1].outcome.reason}")
        value = reading_of(found[1], test)
        if value is None:
            return Absent(f"the count of {one.method} on {one.architecture} has no {test.metric}")
        values.append(value)
        ids.append(found[0])
    effect = values[0] if baseline is None else _effect(values[0], values[1], test.unit)
    return Measured(effect, exact=True, n="counted from shapes", records=tuple(sorted(ids)))


def _effect(a: float, b: float, unit: str) -> float:
    if unit == "ratio":
        return a / b
    if unit == "relative":
        return a / b - 1
    return (a - b) * (100 if unit == "points" else 1)


def _gather(library: Library, sweep: str, arm: Arm, test: Criterion) -> ArmRecords | Absent:
    found = library.arm(sweep, arm, timed=is_timed(test))
    if found.records:
        return found
    named = " ".join(v for v in (arm.method, arm.quantization, arm.model, arm.task) if v != "*")
    if found.flags:
        return Absent(f"every record of {named} was refused", frozenset(found.flags))
    if found.failed:
        return Absent(f"no run of {named} ended ok ({'; '.join(found.failed)})")
    return Absent(f"no record of {named} in the sweep {sweep!r}")


def _single(test: Criterion, library: Library, sweep: str, arm: Arm) -> Measured | Absent:
    found = _gather(library, sweep, arm, test)
    if isinstance(found, Absent):
        return found
    values = list(_values(found, test).values())
    if not values:
        return Absent(f"the records have no {test.metric}")
    scale = 100.0 if test.unit == "points" else 1.0
    common: dict[str, Any] = {"records": found.ids, "flags": frozenset(found.flags), "n": f"{len(values)} seeds"}
    if _exact(test, values):
        return Measured(values[0] * scale, exact=True, **common)
    of_items = _untrained_items(found, test)
    shown = _row_interval(test, library, found) if of_items or len(values) > 1 else None
    if shown is None and of_items is not None:
        shown = stats.wilson(round(values[0] * of_items), of_items)  # nothing varies over seeds
    if shown is not None:
        n = f"{shown.n} items, {len(values)} seeds" if len(values) > 1 else f"{shown.n} items"
        return Measured(shown.estimate * scale, shown.low * scale, shown.high * scale, **{**common, "n": n})
    if len(values) < 2:
        return Measured(values[0] * scale, **{**common, "flags": common["flags"] | {ONE_SEED}})
    interval = stats.mean_interval(values)
    return Measured(interval.estimate * scale, interval.low * scale, interval.high * scale, **common)


def _row_interval(test: Criterion, library: Library, found: ArmRecords) -> stats.Interval | None:
    """The interval that a board prints for the row; None where it has no items."""
    if test.metric not in ARMS or test.stage is not None:
        return None
    (name,), members = library.members(found)
    family = library.evidence.family_of(members, test.metric, name)
    return None if family is None else family.interval(name)


def _untrained_items(found: ArmRecords, test: Criterion) -> int | None:
    """Scored items of an accuracy of a model that nothing trained; None for everything else."""
    records = [record for _, record in found.records.values()]
    if METRICS[test.metric].family != "accuracy" or test.stage is not None or any(map(trains, records)):
        return None
    counts = {reading.n for record in records if (reading := record.metrics.get(test.metric)) is not None}
    return counts.pop() if len(counts) == 1 else None


def _exact(test: Criterion, values: Sequence[float]) -> bool:
    return METRICS[test.metric].family in EXACT_FAMILIES and len(set(values)) == 1


def _paired(test: Criterion, library: Library, sweep: str, pair: Pair) -> Measured | Absent:
    arms = []
    for arm in (pair.arm, pair.baseline):
        found = _gather(library, sweep, arm, test)
        if isinstance(found, Absent):
            return found
        arms.append(found)
    first, second = arms
    common: dict[str, Any] = {
        "records": tuple(sorted({*first.ids, *second.ids})),
        "flags": frozenset(first.flags | second.flags),
    }
    sampled = _by_samples(test, library, first, second, common)
    return sampled if sampled is not None else _by_values(test, library, first, second, common)


def _by_samples(
    test: Criterion, library: Library, first: ArmRecords, second: ArmRecords, common: dict[str, Any]
) -> Measured | None:
    """Differences and ratios of accuracies on the same items (:mod:`reports.data.effects`); None without them."""
    other = test.baseline_metric or test.metric
    if test.metric not in ARMS or other not in ARMS:
        return None
    relative = test.unit in RELATIVE_UNITS
    names, members = library.members(first, second)
    if other == test.metric:
        family = library.evidence.family_of(members, test.metric, names[0])
    else:
        family = library.evidence.across(members, test.metric, other, names[0])
        names = [f"{names[0]} {test.metric}", f"{names[1]} {other}"]
    if family is None or names[1] not in family.scores:
        return None
    found = family.log_ratio(*names) if relative else family.effect(*names)
    if found is None:
        return None
    trained = any(trains(record) for side in (first, second) for _, record in side.records.values())
    flags = common["flags"] | ({ONE_SEED} if min(found.seeds) < 2 and trained else set())
    if test.metric == "accuracy" and not beats_constant(names[0], family, library.samples):
        flags |= {NOTHING_LEARNED}
    shown = Measured(
        *(found.effect, found.low, found.high, found.se, found.df, found.mde),
        n=f"{found.items} shared items, {found.seeds[0]} and {found.seeds[1]} seeds",
        **{**common, "flags": flags},
    )
    return _from_logs(shown, test.unit) if relative else _scaled(shown, 100.0 if test.unit == "points" else 1.0)


def _by_values(
    test: Criterion, library: Library, first: ArmRecords, second: ArmRecords, common: dict[str, Any]
) -> Measured | Absent:
    """Effects on one value a run: seconds, bytes and joules within blocks, other quantities paired on shared seeds."""
    of_baseline = test.model_copy(update={"metric": test.baseline_metric or test.metric})
    a, b = _values(first, test), _values(second, of_baseline)
    if not a or not b:
        return Absent(f"the records have no {test.metric if not a else of_baseline.metric}", common["flags"])
    relative = test.unit in RELATIVE_UNITS
    if relative and min(*a.values(), *b.values()) <= 0:
        return Absent(f"a ratio of {test.metric} needs values above zero", common["flags"])
    if _exact(test, list(a.values())) and _exact(test, list(b.values())):
        return Measured(
            _effect(next(iter(a.values())), next(iter(b.values())), test.unit), exact=True, n="exact", **common
        )
    if relative and is_timed(test):
        return _within_blocks(test, of_baseline, library, first, second, common)
    if is_timed(test):  # a seed repeats no time, and blocks give ratios
        value = _effect(statistics.fmean(a.values()), statistics.fmean(b.values()), test.unit)
        if len(set(a.values())) == len(set(b.values())) == 1:
            return Measured(value, exact=True, n="equal in all runs", **common)
        return Measured(value, n=NO_BLOCKS, **{**common, "flags": common["flags"] | {"no-blocks"}})
    return _by_seeds(test, (first, a), (second, b), common)


def _within_blocks(
    test: Criterion,
    of_baseline: Criterion,
    library: Library,
    first: ArmRecords,
    second: ArmRecords,
    common: dict[str, Any],
) -> Measured | Absent:
    """A ratio of seconds, bytes or joules, paired within randomised blocks (:mod:`reports.data.timing`)."""
    found = ratio(
        library.runs(first),
        library.runs(second),
        lambda record: reading_of(record, test),
        value_b=lambda record: reading_of(record, of_baseline),
        identical=library.identical(first),
    )
    if found is None:
        return Absent(f"a ratio of {test.metric} needs values above zero", common["flags"])
    shift = 1.0 if test.unit == "relative" else 0.0
    if found.low is None or found.high is None:
        return Measured(found.ratio - shift, n=found.method, **{**common, "flags": common["flags"] | {"no-blocks"}})
    if found.floor is None:
        common = {**common, "flags": common["flags"] | {"no-identical-arms"}}
    return Measured(
        *(found.ratio - shift, found.low - shift, found.high - shift),
        se=found.se,
        df=found.df,
        mde=found.mde,
        n=f"{found.blocks} shared blocks",
        **common,
    )


def _by_seeds(
    test: Criterion,
    a: tuple[ArmRecords, dict[Scalar, float]],
    b: tuple[ArmRecords, dict[Scalar, float]],
    common: dict[str, Any],
) -> Measured:
    """Effects on one value a run (:func:`reports.data.effects.of_values`), on the logarithm for ratios."""
    relative = test.unit in RELATIVE_UNITS
    sides = [[record for _, record in one.records.values()] for one, _ in (a, b)]
    counts = (items_behind(sides[0], test.metric), items_behind(sides[1], test.baseline_metric or test.metric))
    found = of_values(a[1], b[1], counts, log=relative)
    flags = common["flags"] | (set() if "paired" in found.n else {ONE_SEED})
    common = {**common, "flags": flags, "n": found.n}
    if found.low is None or found.high is None:
        value = _effect(statistics.fmean(a[1].values()), statistics.fmean(b[1].values()), test.unit)
        return Measured(value, **common)
    mde = 0.0 if found.mde is None else found.mde
    shown = Measured(found.effect, found.low, found.high, se=found.se, df=found.df, mde=mde, **common)
    return _from_logs(shown, test.unit) if relative else _scaled(shown, 100.0 if test.unit == "points" else 1.0)


def _scaled(found: Measured, by: float) -> Measured:
    """The same in another unit."""
    low, high, mde = (None if x is None else by * x for x in (found.low, found.high, found.mde))
    return replace(found, value=by * found.value, low=low, high=high, se=by * found.se, mde=mde)


def _from_logs(found: Measured, unit: str) -> Measured:
    shift = 1.0 if unit == "relative" else 0.0

    def back(x: float | None) -> float | None:
        return None if x is None else math.exp(x) - shift

    mde = None if found.mde is None else math.exp(found.mde) - 1
    return replace(found, value=math.exp(found.value) - shift, low=back(found.low), high=back(found.high), mde=mde)


def _largest(test: Criterion, library: Library, sweep: str, pairs: Sequence[Pair]) -> Measured | Absent:
    """The largest effect over the stated set, never a mean (protocol 7)."""
    done: list[Measured] = []
    missing: list[str] = []
    for pair in pairs:
        found = _paired(test, library, sweep, pair)
        if isinstance(found, Absent):
            missing.append(found.reason)
        else:
            done.append(found)
    if not done:
        return Absent("; ".join(missing))
    sign = 1 if test.expect == "greater" else -1
    best = max(done, key=lambda m: sign * m.value)
    return replace(
        best,
        complete=not missing,
        records=tuple(sorted({i for m in done for i in m.records})),
        flags=frozenset().union(*(m.flags for m in done)),
        note=f"largest of {len(done)} of {len(pairs)} stated pairs",
    )


def _interaction(test: Criterion, library: Library, sweep: str, levels: Sequence[Pair]) -> Measured | Absent:
    """Difference of the effects at the second and the first level."""
    effects = []
    for pair in levels:
        found = _paired(test, library, sweep, pair)
        if isinstance(found, Absent):
            return found
        effects.append(found)
    first, second = effects
    common: dict[str, Any] = {
        "records": tuple(sorted({*first.records, *second.records})),
        "flags": first.flags | second.flags,
        "n": f"{first.n}; {second.n}",
    }
    value = second.value - first.value
    if first.low is None or second.low is None:
        return Measured(value, **common)
    se = math.hypot(first.se, second.se)
    df = min(first.df, second.df)
    half = float(distributions.t.isf(0.025, df)) * se if math.isfinite(df) else 1.96 * se
    mde = stats.mde_from_error(se, df) if se > 0 else 0.0
    return Measured(value, value - half, value + half, se=se, df=df, mde=mde, **common)

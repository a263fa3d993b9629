"""Every quantity this project may print: its unit, direction, version, definition and source.

There is no number without a :class:`MetricDef`. Readings are made by :func:`reading` and
:func:`missing`, so a quantity that is not defined here cannot enter a record.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import did_you_mean
from harness.metrics import cost, memory, scores
from harness.metrics.definition import Better, Family, MetricDef
from harness.record import Reading, WhyMissing

__all__ = ["METRICS", "Better", "Family", "MetricDef", "define", "metric", "missing", "reading", "to_markdown"]

METRICS: dict[str, MetricDef] = {}


def define(*definitions: MetricDef) -> None:
    """Add definitions. A name defined twice is an error."""
    for definition in definitions:
        if definition.name in METRICS:
            raise ValueError(f"metric {definition.name!r} is defined twice")
        METRICS[definition.name] = definition


def metric(name: str) -> MetricDef:
    """The definition of ``name``.

    Raises:
        KeyError: no such metric; the message lists close matches.
    """
    try:
        return METRICS[name]
    except KeyError:
        raise KeyError(f"no metric {name!r}. {did_you_mean(name, METRICS)}") from None


def reading(
    name: str,
    value: float | None,
    *,
    source: str,
    why_missing: WhyMissing | None = None,
    resolution: float | None = None,
    n: int | None = None,
    spread: float | None = None,
    details: Mapping[str, object] | None = None,
) -> Reading:
    """A reading of a defined quantity; the unit comes from the definition.

    Args:
        name: a metric name.
        value: the number, or None together with ``why_missing``.
        source: the instrument or the computation behind the number.
        resolution: smallest step the instrument can show, in the metric's unit.
        n: number of samples behind the value.
        spread: standard deviation of those samples, in the metric's unit.
    """
    return Reading(
        quantity=name,
        value=None if value is None else float(value),
        unit=metric(name).unit,
        source=source,
        resolution=resolution,
        why_missing=why_missing,
        n=n,
        spread=spread,
        details=dict(details or {}),
    )


def missing(name: str, why: WhyMissing, *, source: str, details: Mapping[str, object] | None = None) -> Reading:
    """A reading without a value, with its typed reason."""
    return reading(name, None, source=source, why_missing=why, details=details)


def to_markdown() -> str:
    """The page ``docs/metrics.md``: every quantity by family, with unit, direction and definition."""
    lines = [
        "# Quantities",
        "",
        "Every number on a board or in a record is one of these. Generated from `harness/metrics/`.",
    ]
    for family in dict.fromkeys(m.family for m in METRICS.values()):
        lines += [
            "",
            f"## {family.capitalize()}",
            "",
            "| name | label | unit | better | definition |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| `{m.name}` | {m.label} | {m.unit} | {m.better} | {m.definition} |"
            for m in METRICS.values()
            if m.family == family
        ]
    return "\n".join(lines) + "\n"


define(*scores.QUANTITIES, *cost.QUANTITIES, *memory.QUANTITIES, *cost.IMPORTED)

"""The quantities themselves: one :class:`MetricDef` each. :mod:`harness.metrics` says how they are used."""

from __future__ import annotations

from harness.quantities import cost, imported, memory, scores
from harness.quantities.definition import Better, Family, MetricDef

__all__ = ["QUANTITIES", "Better", "Family", "MetricDef"]

QUANTITIES: tuple[MetricDef, ...] = (
    *scores.QUANTITIES,
    *cost.QUANTITIES,
    *memory.QUANTITIES,
    *imported.QUANTITIES,
)

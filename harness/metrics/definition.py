"""``MetricDef``: metadata of one recorded metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "neither"]
Family = Literal["accuracy", "retention", "memory", "time", "energy", "size", "compute", "check", "judged"]


@dataclass(frozen=True)
class MetricDef:
    """One quantity.

    Attributes:
        name: field name in records, boards and CSV headers; carries the unit.
        label: column header for people.
        unit: SI or field unit; ``"1"`` for a pure number, ``"fraction"`` for a rate in [0, 1].
        better: which direction is good.
        definition: one sentence a reader of the board understands.
        source: where the definition comes from.
        family: group on the board.
        digits: significant digits shown.
        version: raised whenever the way the value is computed changes.
    """

    name: str
    label: str
    unit: str
    better: Better
    definition: str
    family: Family
    source: str = "peft-matrix protocol 1"
    digits: int = 3
    version: int = 1

"""Interface of a meter. Meters enclose every stage; one that raises never harms the cell or its other readings."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from harness.record import Reading, WhyMissing


@runtime_checkable
class Meter(Protocol):
    """An instrument.

    ``available`` says why it cannot work on this machine, or None. ``begin`` and ``end`` enclose a stage;
    ``end`` returns one :class:`~harness.record.Reading` per quantity, with a typed reason where there is no
    value. ``facts`` describes the instrument for the record (back end, sample period, device, limits).
    """

    name: str

    def available(self) -> str | None:
        """Reason why the meter cannot work here, or None."""
        ...

    def begin(self, stage: str) -> None:
        """Start a window."""
        ...

    def end(self, stage: str) -> list[Reading]:
        """Close the window and give its readings."""
        ...

    def facts(self) -> dict[str, Any]:
        """Description of the instrument and its settings."""
        ...


class MeterHooks(Protocol):
    """Further members that a meter may have. :class:`~harness.meters.panel.Panel` asks each meter for them by name.

    Attributes:
        quantities: metrics it reads in a stage; where it fails or cannot work, each has a reading with the reason.
        cell_quantities: metrics that :meth:`finish` reads.
        why_unavailable: typed reason of its quantities where it cannot work; ``not_supported`` without one.
        minimum_window_s: shortest window whose value meets the protocol, seconds.
    """

    quantities: tuple[str, ...]
    cell_quantities: tuple[str, ...]
    why_unavailable: WhyMissing
    minimum_window_s: float

    def baseline(self, when: str) -> None:
        """Read the idle device; called with ``before`` and with ``after`` all stages."""
        ...

    def finish(self) -> list[Reading]:
        """Readings for the whole cell."""
        ...

    def series(self) -> dict[str, tuple[float, ...]]:
        """Time series over the whole cell, by name."""
        ...

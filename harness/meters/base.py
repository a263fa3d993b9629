"""Interface of a meter. Meters enclose every stage; one that raises never harms the cell or its other readings."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from harness.record import Reading


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

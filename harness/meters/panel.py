"""The panel of meters around a stage. No instrument can harm a cell: one that raises costs its own readings only."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Any

from harness.meters.base import Meter
from harness.metrics import METRICS, missing
from harness.record import Reading, WhyMissing


class Panel:
    """Meters in order from the outermost to the innermost.

    A stage begins with the first meter and ends with the last one, so that an outer meter's work is outside the windows
    of the inner ones. Meters that are not available are left out of the stages; they say so
    once, in :meth:`absent` and :meth:`facts`.

    A meter that raises in ``begin`` or ``end`` gives, for this stage, a reading with ``why_missing='failed'``
    and the error's text for each quantity it lists in an attribute ``quantities``.

    Args:
        meters: outermost first (:func:`harness.meters.catalog.build` gives them in this order).
    """

    def __init__(self, meters: Iterable[Meter]) -> None:
        self._unavailable: dict[str, tuple[Meter, str]] = {}
        self.meters: list[Meter] = []
        self._failed: dict[str, Exception] = {}
        self._baseline_errors: dict[str, str] = {}
        self._stage: str | None = None
        for meter in meters:
            try:
                reason = meter.available()
            except Exception as error:  # a plug-in's mistake, kept inside it
                reason = f"failed while searching for its device: {_text(error)}"
            if reason is None:
                self.meters.append(meter)
            else:
                self._unavailable[meter.name] = (meter, reason)

    def get(self, name: str) -> Meter | None:
        """The available meter of that name, or None."""
        return next((meter for meter in self.meters if meter.name == name), None)

    def begin(self, stage: str) -> None:
        """Start every meter's window, outermost first.

        Raises:
            RuntimeError: a stage is already open.
        """
        if self._stage is not None:
            raise RuntimeError(f"stage {stage!r} begins while {self._stage!r} is open")
        self._stage = stage
        self._failed = {}
        for meter in self.meters:
            try:
                meter.begin(stage)
            except Exception as error:
                self._failed[meter.name] = error

    def end(self, stage: str) -> tuple[Reading, ...]:
        """Close every window, innermost first, and give all readings.

        Raises:
            RuntimeError: this stage is not open.
        """
        if self._stage != stage:
            raise RuntimeError(f"stage {stage!r} ends while {self._stage!r} is open")
        self._stage = None
        readings: list[Reading] = []
        for meter in reversed(self.meters):
            error = self._failed.get(meter.name)
            if error is None:
                try:
                    readings += meter.end(stage)
                    continue
                except Exception as raised:
                    error = raised
            readings += _missing(meter, "failed", {"error": _text(error), "where": _where(error)})
        return tuple(readings)

    @property
    def minimum_window_s(self) -> float:
        """Minimum duration of a probe so that every meter's value meets the protocol, seconds."""
        return max((float(getattr(meter, "minimum_window_s", 0.0)) for meter in self.meters), default=0.0)

    def baseline(self, when: str) -> None:
        """Let meters with a ``baseline`` take it: call once with ``before`` and once with ``after`` all stages.

        The device must be idle, and hold the context the cell works in.
        """
        for meter in self.meters:
            take = getattr(meter, "baseline", None)
            if take is not None:
                try:
                    take(when)
                except Exception as error:
                    self._baseline_errors[meter.name] = f"{when}: {_text(error)}"

    def finish(self) -> tuple[Reading, ...]:
        """Readings for the whole cell: those of meters with a ``finish``, and one for each absent quantity."""
        readings: list[Reading] = []
        for meter in self.meters:
            finish = getattr(meter, "finish", None)
            if finish is not None:
                try:
                    readings += finish()
                except Exception as error:
                    details = {"error": _text(error), "where": _where(error)}
                    names = getattr(meter, "cell_quantities", ())
                    readings += [missing(name, "failed", source=meter.name, details=details) for name in names]
        return (*readings, *self.absent())

    def absent(self) -> tuple[Reading, ...]:
        """A reading with its typed reason for every quantity of the meters that are not available."""
        readings: list[Reading] = []
        for meter, reason in self._unavailable.values():
            readings += _missing(meter, getattr(meter, "why_unavailable", "not_supported"), {"why": reason})
        return tuple(readings)

    def series(self) -> dict[str, tuple[float, ...]]:
        """Time series of the meters over the whole cell, by name; a meter that fails says so in its facts."""
        found: dict[str, tuple[float, ...]] = {}
        for meter in self.meters:
            take = getattr(meter, "series", None)
            if take is not None:
                try:
                    found.update(take())
                except Exception as error:
                    self._baseline_errors[meter.name] = f"series: {_text(error)}"
        return found

    def facts(self) -> dict[str, Any]:
        """Every meter's facts by its name; ``{"unavailable": reason}`` for the others."""
        facts: dict[str, Any] = {name: {"unavailable": reason} for name, (_, reason) in self._unavailable.items()}
        for meter in self.meters:
            try:
                facts[meter.name] = meter.facts()
            except Exception as error:
                facts[meter.name] = {"error": _text(error)}
            if meter.name in self._baseline_errors:
                facts[meter.name]["baseline_error"] = self._baseline_errors[meter.name]
        return facts


def _missing(meter: Meter, why: WhyMissing, details: dict[str, object]) -> list[Reading]:
    names = [name for name in getattr(meter, "quantities", ()) if name in METRICS]
    return [missing(name, why, source=meter.name, details=details) for name in names]


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _where(error: Exception) -> str:
    """Function and line that raised; no path, which would differ from machine to machine."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{last[0].name}, line {last[0].lineno}" if last else ""

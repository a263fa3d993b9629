"""Wall time of a stage on a monotonic clock, the device synchronised at both ends."""

from __future__ import annotations

import time
from typing import Any

from harness.meters.instrument import Clock, MeterSetting, synchronize
from harness.metrics import missing, reading
from harness.record import Reading


class Timer:
    """``stage_s``. Stands innermost, so that no other meter's work is timed.

    Args:
        setting: gives the device to synchronise.
        clock: seconds, monotonic.
    """

    name = "time"
    quantities = ("stage_s",)

    def __init__(self, setting: MeterSetting, *, clock: Clock = time.monotonic) -> None:
        self.device = setting.device
        self.clock = clock
        self._begun = 0.0

    def available(self) -> str | None:
        """Always."""
        return None

    def begin(self, stage: str) -> None:
        """Wait for queued work, then start."""
        synchronize(self.device)
        self._begun = self.clock()

    def end(self, stage: str) -> list[Reading]:
        """Wait for the stage's work; seconds since :meth:`begin`."""
        synchronize(self.device)
        seconds = self.clock() - self._begun
        if seconds < 0:
            return [missing("stage_s", "failed", source="monotonic clock", details={"error": "the clock went back"})]
        return [reading("stage_s", seconds, source="monotonic clock", resolution=1e-9)]

    def facts(self) -> dict[str, Any]:
        """The clock and its resolution."""
        return {"clock": "CLOCK_MONOTONIC", "resolution_s": time.get_clock_info("monotonic").resolution}

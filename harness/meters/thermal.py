"""Bringing a device to a known heat: cool down between cells, warm up before a measurement.

Both stop at a cap and say so, so that a record shows whether the state was reached (protocol 3.3).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.meters.instrument import Clock
from harness.meters.nvml import BoardError, open_boards

DRIFT_C = 1.0
DRIFT_WINDOW_S = 10.0
SLOPE = 0.01
"""Largest change of the step time, first half against second half of a window, that counts as steady."""


@dataclass(frozen=True)
class Settled:
    """State of a device before a cell, and whether it was reached.

    Attributes:
        reached: False if the cap ended it first; the record then carries the flag.
        seconds: how long it took.
        start_c: temperature before, None if the device does not report it.
        end_c: temperature after.
        steps: steps run meanwhile.
    """

    reached: bool
    seconds: float
    start_c: float | None
    end_c: float | None
    steps: int = 0

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)


def thermometer(uuids: Sequence[str]) -> Callable[[], float | None]:
    """Reads the temperature of the hottest of these GPUs; None if none of them reports it, or one fails."""

    def read_c() -> float | None:
        try:
            known = [celsius for board in open_boards(uuids) if (celsius := board.temperature_c()) is not None]
        except BoardError:
            return None
        return max(known, default=None)

    return read_c


def cool_down(
    read_c: Callable[[], float | None],
    *,
    below_c: float,
    cap_s: float,
    period_s: float = 1.0,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Settled:
    """Sleep until the device is no warmer than ``below_c``, at most ``cap_s`` seconds.

    A device that does not report its temperature is not waited for, and is reported as not reached.
    """
    begun = clock()
    start_c = now_c = read_c()
    while now_c is not None and now_c > below_c and clock() - begun < cap_s:
        sleep(min(period_s, cap_s))
        now_c = read_c()
    return Settled(now_c is not None and now_c <= below_c, clock() - begun, start_c, now_c)


def warm_up(
    step: Callable[[], object],
    read_c: Callable[[], float | None],
    *,
    cap_s: float,
    window_s: float = DRIFT_WINDOW_S,
    clock: Clock = time.monotonic,
) -> Settled:
    """Repeat ``step`` (synchronised, of the shape to be measured) until its time and the heat are steady.

    Steady: over the last ``window_s`` seconds the mean step time of the second half differs by at most 1 % from
    the first half's, and the temperature moved by less than 1 degC. For a device without a temperature sensor only the
    step time is used.
    """
    begun = clock()
    start_c = read_c()
    history: list[tuple[float, float, float | None]] = []  # end of step, its seconds, temperature
    while True:
        before = clock()
        step()
        now = clock()
        history.append((now, now - before, read_c()))
        reached = _steady([entry for entry in history if entry[0] > now - window_s]) and now - begun >= window_s
        if reached or now - begun >= cap_s:
            return Settled(reached, now - begun, start_c, history[-1][2], len(history))


def _steady(recent: list[tuple[float, float, float | None]]) -> bool:
    half = len(recent) // 2
    if half < 1:
        return False
    first = sum(seconds for _, seconds, _ in recent[:half]) / half
    second = sum(seconds for _, seconds, _ in recent[-half:]) / half
    temperatures = [celsius for _, _, celsius in recent if celsius is not None]
    drift_c = max(temperatures) - min(temperatures) if temperatures else 0.0
    return abs(second - first) <= SLOPE * first and drift_c < DRIFT_C

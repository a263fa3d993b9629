"""State of the assigned GPUs during a stage: temperature, clocks, limits, throttling, foreign processes, memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from harness.meters.instrument import MeterSetting, Sampler
from harness.meters.nvml import (
    THROTTLE_REASONS,
    THROTTLED,
    BoardError,
    GpuBoard,
    foreign_pids,
    holds_context,
    open_boards,
    own_pids,
)
from harness.metrics import missing, reading
from harness.record import Reading, WhyMissing

SOURCE = "NVML"


@dataclass(frozen=True)
class State:
    """The assigned GPUs at one moment; None for values that a GPU does not report.

    Attributes:
        temperature_c: of the hottest board.
        sm_clock_mhz: mean over the boards.
        throttle_bits: all boards' reasons together.
        foreign: compute processes of others.
        power_w: instantaneous power, summed over the boards; for the trace, never for energy.
    """

    temperature_c: float | None
    sm_clock_mhz: float | None
    throttle_bits: int | None
    foreign: frozenset[int] | None
    power_w: float | None = None


class DeviceState:
    """Temperatures, clocks, power limit, throttling, foreign processes and memory in use, per stage.

    Args:
        setting: gives the UUIDs of the assigned boards.
        period_s: sampling period of the state.
        memory_period_s: sampling period of the memory in use.
    """

    name = "device-state"
    quantities = (
        "gpu_temperature_start_c",
        "gpu_temperature_end_c",
        "sm_clock_mhz",
        "power_limit_w",
        "throttled_fraction",
        "foreign_processes",
        "device_used_peak_bytes",
    )

    def __init__(self, setting: MeterSetting, *, period_s: float = 1.0, memory_period_s: float = 0.05) -> None:
        self.setting = setting
        self.why_unavailable: WhyMissing = "no_device"
        self._boards: list[GpuBoard] = []
        self._facts: list[dict[str, object]] = []
        self._state = Sampler(self._look, period_s, name="device-state")
        self._memory = Sampler(self._used_bytes, memory_period_s, name="device-memory")
        self._begun_s = 0.0
        self._first_s: float | None = None
        self._trace: list[tuple[float, float]] = []

    def available(self) -> str | None:
        """Open the assigned boards."""
        try:
            self._boards = open_boards(self.setting.uuids)
            self._facts = [board.facts() for board in self._boards]
        except BoardError as error:
            self.why_unavailable = error.absence.why
            return error.absence.text
        return None

    def begin(self, stage: str) -> None:
        """Start sampling."""
        self._begun_s = time.monotonic()
        self._first_s = self._begun_s if self._first_s is None else self._first_s
        self._state.start()
        self._memory.start()

    def end(self, stage: str) -> list[Reading]:
        """The state over the stage."""
        memory = self._memory.stop()
        looks = self._state.stop()
        states = [state for _, state in looks]
        self._trace += [(at, state.power_w) for at, state in looks if state.power_w is not None]
        if self._state.error is not None:
            first = [name for name in self.quantities if name != "device_used_peak_bytes"]
            return [*_failed(tuple(first), self._state.error), self._memory_reading(memory)]
        return [*self._temperatures(states), *self._counts(states), self._memory_reading(memory)]

    def facts(self) -> dict[str, Any]:
        """Each board as it was opened: name, UUID, driver, limits, clocks, memory; and the sampling periods."""
        return {
            "boards": self._facts,
            "period_s": self._state.period_s,
            "memory_period_s": self._memory.period_s,
        }

    def series(self) -> dict[str, tuple[float, ...]]:
        """Power over the cell as it was seen, and the seconds since the first stage began; empty without a sensor."""
        if not self._trace or self._first_s is None:
            return {}
        seconds = tuple(max(0.0, at - self._first_s) for at, _ in self._trace)
        return {"power_s": seconds, "power_w": tuple(watts for _, watts in self._trace)}

    def _look(self) -> State:
        temperatures = _known(board.temperature_c() for board in self._boards)
        clocks = _known(board.clock_mhz("SM") for board in self._boards)
        bits = _known(board.throttle_bits() for board in self._boards)
        lists = _known(board.compute_pids() for board in self._boards)
        foreign: frozenset[int] | None = None
        if lists:
            own, context = own_pids(), holds_context()
            foreign = frozenset().union(*(foreign_pids(pids, own, own_context=context) for pids in lists))
        mask = 0
        for value in bits:
            mask |= value
        return State(
            temperature_c=max(temperatures) if temperatures else None,
            sm_clock_mhz=sum(clocks) / len(clocks) if clocks else None,
            throttle_bits=mask if bits else None,
            foreign=foreign,
            power_w=self._power_w(),
        )

    def _power_w(self) -> float | None:
        try:
            return sum(board.instant_w() for board in self._boards)
        except BoardError as error:
            if error.absence.why == "not_supported":
                return None
            raise

    def _used_bytes(self) -> int:
        return sum(board.used_bytes() for board in self._boards)

    def _temperatures(self, states: list[State]) -> list[Reading]:
        limits = _known(board.power_limit_w() for board in self._boards)
        clocks = _known(state.sm_clock_mhz for state in states)
        return [
            _reading("gpu_temperature_start_c", states[0].temperature_c, n=1),
            _reading("gpu_temperature_end_c", states[-1].temperature_c, n=1),
            _reading("sm_clock_mhz", sum(clocks) / len(clocks) if clocks else None, n=len(clocks)),
            _reading("power_limit_w", sum(limits) if len(limits) == len(self._boards) else None, n=1),
        ]

    def _counts(self, states: list[State]) -> list[Reading]:
        bits = _known(state.throttle_bits for state in states)
        throttled = sum(bool(value & THROTTLED) for value in bits)
        seen = {name: sum(bool(value & bit) for value in bits) for bit, name in THROTTLE_REASONS.items()}
        strangers = _known(state.foreign for state in states)
        pids = sorted(frozenset().union(*strangers)) if strangers else []
        return [
            _reading(
                "throttled_fraction",
                throttled / len(bits) if bits else None,
                n=len(bits),
                details={"samples_with": {name: count for name, count in seen.items() if count}},
            ),
            _reading(
                "foreign_processes",
                max(map(len, strangers)) if strangers else None,
                n=len(strangers),
                details={"pids": pids},
            ),
        ]

    def _memory_reading(self, samples: list[tuple[float, int]]) -> Reading:
        if self._memory.error is not None:
            return _failed(("device_used_peak_bytes",), self._memory.error)[0]
        seconds = max(time.monotonic() - self._begun_s, 1e-9)
        return reading(
            "device_used_peak_bytes",
            max(value for _, value in samples),
            source=SOURCE + " memory info v2, sampled",
            n=len(samples),
            details={
                "mean_period_s": seconds / max(len(samples) - 1, 1),
                "sampler_cpu_share": self._memory.cpu_s / seconds,
            },
        )


def _known(values: Any) -> list[Any]:
    return [value for value in values if value is not None]


def _reading(name: str, value: float | None, *, n: int, details: dict[str, object] | None = None) -> Reading:
    if value is None:
        return missing(name, "not_supported", source=SOURCE, details={"why": "the GPU does not report it"})
    return reading(name, value, source=SOURCE, n=n, details=details)


def _failed(names: tuple[str, ...], error: Exception) -> list[Reading]:
    if isinstance(error, BoardError):
        return error.absence.readings(names, SOURCE)
    return [missing(name, "failed", source=SOURCE, details={"error": repr(error)}) for name in names]

"""Energy of the assigned GPUs over a stage (protocol 3).

Back ends, per board, the first that works: the total-energy counter, aligned to its own steps at both ends;
instantaneous power, sampled and integrated as the held signal it is; power averaged over 1 s, on a steady load
only. Else there is no value, and its typed reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.meters.gauges import (
    GAIN_BOUND,
    BoardEnergy,
    CounterGauge,
    Gauge,
    choose_gauge,
    take_edges,
)
from harness.meters.instrument import Absence, Clock, MeterSetting, Sampler, synchronize
from harness.meters.nvml import BoardError, foreign_pids, holds_context, open_boards, own_pids
from harness.metrics import reading
from harness.record import Reading, WhyMissing

SOURCE = "NVML"
GUARD_PERIOD_S = 1.0
PROTOCOL_FLOOR_S = 5.0
"""Shortest window the protocol accepts; a profile cannot lower it."""
COARSEST = 0.05
"""A window whose quantization bound exceeds the sensor's gain bound is too short to report."""


@dataclass(frozen=True)
class Lap:
    """The assigned boards' counters at one moment: seconds, joules of all, seconds between two steps of a counter."""

    time_s: float
    joules: float
    update_s: float


class Energy:
    """``energy_gross_j``, ``energy_net_j``, ``power_mean_w`` per stage; ``energy_idle_w`` per cell.

    Args:
        setting: gives the device and the UUIDs of the assigned boards. Their energies are added up.
        floor_s: shortest window that gives a value. A window whose quantization bound exceeds 5 % gives none either.
        epsilon: quantization bound a probe must reach (:attr:`minimum_window_s`).
        steady_s: shortest window of the 1 s average back end.
        sample_period_s: sampling period of power, shorter where the sensor is faster.
        idle_s: length of an idle baseline.
        cross_check: compare the counter with sampled power on the first steady window.
        clock: seconds, monotonic.
    """

    name = "energy"
    quantities = ("energy_gross_j", "energy_net_j", "power_mean_w")
    cell_quantities = ("energy_idle_w",)

    def __init__(
        self,
        setting: MeterSetting,
        *,
        floor_s: float = 5.0,
        epsilon: float = 0.01,
        steady_s: float = 30.0,
        sample_period_s: float = 0.02,
        idle_s: float = 20.0,
        cross_check: bool = True,
        clock: Clock = time.monotonic,
    ) -> None:
        self.setting = setting
        self.floor_s = floor_s
        self.epsilon = epsilon
        self.steady_s = steady_s
        self.sample_period_s = sample_period_s
        self.idle_s = idle_s
        self.cross_check = cross_check
        self.clock = clock
        self.why_unavailable: WhyMissing = "not_supported"
        self._gauges: list[Gauge] = []
        self._window: _Window | None = None
        self._refused: Absence | None = None
        self._idle_w: dict[str, float] = {}
        self._idle_absences: dict[str, Absence] = {}

    def available(self) -> str | None:
        """Open the assigned boards and find the best back end of each; the reason if one of them has none."""
        try:
            boards = open_boards(self.setting.uuids)
            self._gauges = [
                choose_gauge(
                    board,
                    sample_period_s=self.sample_period_s,
                    steady_s=self.steady_s,
                    cross_check=self.cross_check,
                    clock=self.clock,
                )
                for board in boards
            ]
        except BoardError as error:
            self.why_unavailable = error.absence.why
            return error.absence.text
        return None

    @property
    def minimum_window_s(self) -> float:
        """Minimum duration of a probe so that the value meets the protocol, seconds."""
        return max(self.floor_s, *(gauge.minimum_s(self.epsilon) for gauge in self._gauges))

    @property
    def shortest_window_s(self) -> float:
        """Shortest window that gives a value at all, seconds."""
        return max(self.floor_s, *(gauge.minimum_s(COARSEST) for gauge in self._gauges))

    def lap(self) -> Lap:
        """The counters now, without alignment: differences of laps divide a window among its parts.

        Raises:
            BoardError: a board is read by sampling, which gives no running total, or it failed.
        """
        synchronize(self.setting.device)
        if not all(isinstance(gauge, CounterGauge) for gauge in self._gauges):
            raise BoardError("not_supported", "sampled power has no running total")
        joules = sum(gauge.board.energy_j() for gauge in self._gauges)
        return Lap(self.clock(), joules, max(gauge.update_s for gauge in self._gauges))

    def begin(self, stage: str) -> None:
        """Wait for queued work, align to the counters' steps, and open the window."""
        synchronize(self.setting.device)
        self._refused = None
        self._window = _Window(self._gauges, self.clock)
        try:
            self._window.open()
        except BoardError as error:
            self._refused, self._window = error.absence, None

    def end(self, stage: str) -> list[Reading]:
        """Wait for the stage's work, align, and close the window."""
        synchronize(self.setting.device)
        window, self._window = self._window, None
        if self._refused is not None:
            return self._refused.readings(self.quantities, SOURCE)
        if window is None:
            raise RuntimeError("the energy window was never opened")
        try:
            parts = self._close(window)
        except BoardError as error:
            return error.absence.readings(self.quantities, SOURCE)
        return self._readings(parts, window.processes_listed)

    def baseline(self, when: str) -> None:
        """Measure idle power for :attr:`idle_s` seconds; ``when`` is ``before`` or ``after`` the stages.

        The device must be idle, with the cell's context alive.
        """
        synchronize(self.setting.device)
        window = _Window(self._gauges, self.clock)
        try:
            window.open()
            time.sleep(max(self.idle_s, self.shortest_window_s))
            parts = self._close(window)
        except BoardError as error:
            self._idle_absences[when] = error.absence
            return
        self._idle_w[when] = sum(part.joules / part.seconds for part in parts)

    def finish(self) -> list[Reading]:
        """``energy_idle_w``: mean of the baselines; their difference shows drift."""
        details: dict[str, Any] = {f"{when}_w": watts for when, watts in self._idle_w.items()}
        details |= {f"{when}_missing": a.text for when, a in self._idle_absences.items()}
        values = list(self._idle_w.values())
        if not values:
            absence = next(iter(self._idle_absences.values()), Absence("not_measured", "no idle baseline was taken"))
            return absence.readings(self.cell_quantities, SOURCE)
        if len(values) == 2:
            details["drift_w"] = self._idle_w["after"] - self._idle_w["before"]
        return [reading("energy_idle_w", sum(values) / len(values), source=SOURCE, n=len(values), details=details)]

    def facts(self) -> dict[str, Any]:
        """Back end, scope, timing and cross-check of each board."""
        return {
            "boards": {gauge.board.uuid: gauge.facts() for gauge in self._gauges},
            "scope": "gpu",
            "gain_bound": GAIN_BOUND,
            "floor_s": self.floor_s,
            "epsilon": self.epsilon,
        }

    def _close(self, window: _Window) -> list[BoardEnergy]:
        parts = window.close()
        seconds = min(part.seconds for part in parts)
        if seconds < self.shortest_window_s:
            text = f"{seconds:.3f} s is shorter than the sensor's {self.shortest_window_s:.3f} s"
            raise BoardError("window_too_short", text)
        if window.foreign:
            board_j = sum(part.joules for part in parts)
            # the GPU's joules stay in the record, but cannot be attributed to this cell
            others = ", ".join(map(str, sorted(window.foreign)))
            text = f"processes {others} used the device too; the boards took {board_j:.3f} J"
            raise BoardError("shared", text)
        return parts

    def _readings(self, parts: Sequence[BoardEnergy], processes_listed: bool) -> list[Reading]:
        joules = sum(part.joules for part in parts)
        seconds = max(part.seconds for part in parts)
        quantization_j = sum(part.quantization_j for part in parts)
        quantization = quantization_j / joules if joules > 0 else 0.0
        backends = "+".join(sorted({part.backend for part in parts}))
        source = f"{SOURCE} {backends}"
        details: dict[str, Any] = {
            "backend": backends,
            "scope": "gpu",
            "window_s": seconds,
            "quantization_bound": quantization,
            "gain_bound": GAIN_BOUND,
            "meets_protocol": seconds >= max(PROTOCOL_FLOOR_S, self.minimum_window_s),
            "processes_listed": processes_listed,
            "boards": {part.uuid: {"joules": part.joules, **part.details} for part in parts},
        }
        gross = reading("energy_gross_j", joules, source=source, resolution=quantization_j / 2, details=details)
        power = reading("power_mean_w", joules / seconds, source=source, details={"window_s": seconds})
        if "before" not in self._idle_w:
            absence = self._idle_absences.get("before", Absence("not_measured", "no idle baseline was taken"))
            return [gross, power, *absence.readings(("energy_net_j",), source)]
        idle_w = self._idle_w["before"]
        net_details = {"idle_w": idle_w, "window_s": seconds}
        return [gross, power, reading("energy_net_j", joules - idle_w * seconds, source=source, details=net_details)]


class _Window:
    """One measurement over all assigned GPUs at once; detects foreign processes and counter resets."""

    def __init__(self, gauges: Sequence[Gauge], clock: Callable[[], float]) -> None:
        self.gauges = gauges
        self.clock = clock
        self.foreign: set[int] = set()
        self.processes_listed = True
        self._guard = Sampler(self._look, GUARD_PERIOD_S, name="energy-guard")
        self._last_j: dict[str, float] = {}
        self._went_back = ""

    def open(self) -> None:
        try:
            self._guard.start()
            for gauge in self.gauges:
                gauge.start()
            for gauge, edge in take_edges(self.gauges, self.clock).items():
                gauge.begin(edge)
        except BaseException:
            self._stop()
            raise

    def close(self) -> list[BoardEnergy]:
        try:
            edges = take_edges(self.gauges, self.clock)
            parts = [gauge.finish(edge) for gauge, edge in edges.items()]
        finally:
            self._stop()
        if self._guard.error is not None:
            raise self._guard.error
        if self._went_back:
            raise BoardError("failed", self._went_back)
        return parts

    def _stop(self) -> None:
        self._guard.stop()
        for gauge in self.gauges:
            gauge.stop()

    def _look(self) -> None:
        own = own_pids()
        for gauge in self.gauges:
            pids = gauge.board.compute_pids()
            if pids is None:
                self.processes_listed = False
            else:
                self.foreign |= foreign_pids(pids, own, own_context=holds_context())
            if isinstance(gauge, CounterGauge):
                now_j = gauge.board.energy_j()
                if now_j < self._last_j.get(gauge.board.uuid, 0.0):
                    self._went_back = f"the energy counter of {gauge.board.uuid} went back: the driver was reset"
                self._last_j[gauge.board.uuid] = now_j

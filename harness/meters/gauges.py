"""The three ways to read a board's energy: counter, instantaneous power, 1 s average power."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from typing import Any

from harness.meters.instrument import Clock, Sampler
from harness.meters.nvml import BoardError, GpuBoard

GAIN_BOUND = 0.05
"""Proportional error of a board's sensor, fixed per board (Yang et al., arXiv:2312.02741). It cancels in ratios on
one board; across boards, energies closer than sqrt(2) times this are ties."""

ALIGN_POLL_S = 0.001
STEADY_VARIATION = 0.02
"""Largest coefficient of variation of power that counts as a steady load."""
MOST_BLIND = 0.01
"""Largest share of a window in which a value of the sensor may have been missed."""
CALIBRATION_STEPS = 5
CALIBRATION_LIMIT_S = 2.0
AVERAGE_WINDOW_S = 1.0


@dataclass(frozen=True)
class Edge:
    """An end of a window: when, and what the counter said (None for back ends without a counter)."""

    time_s: float
    counter_j: float | None = None


@dataclass(frozen=True)
class BoardEnergy:
    """Energy of one GPU in one window.

    Attributes:
        quantization_j: bound of the error from the sensor's update period at both ends, 2 * P * T_update.
    """

    uuid: str
    backend: str
    joules: float
    seconds: float
    quantization_j: float
    details: dict[str, Any] = field(default_factory=dict)


class Gauge(ABC):
    """One board read in one way."""

    backend: str
    update_s: float

    def __init__(self, board: GpuBoard, sampler: Sampler[float] | None = None) -> None:
        self.board = board
        self.sampler = sampler
        self.rejected: dict[str, str] = {}
        self._begun = Edge(0.0)

    def minimum_s(self, epsilon: float) -> float:
        """Window length at which the quantization bound 2 * T_update / t is ``epsilon``."""
        return 2 * self.update_s / epsilon

    def start(self) -> None:
        """Begin sampling, if the back end samples; before the window opens."""
        if self.sampler is not None:
            self.sampler.start()

    def begin(self, edge: Edge) -> None:
        """The window opens at ``edge``."""
        self._begun = edge

    @abstractmethod
    def finish(self, edge: Edge) -> BoardEnergy:
        """The window closes at ``edge``.

        Raises:
            BoardError: there is no value for this window, and why.
        """

    def stop(self) -> None:
        """End sampling in every case."""
        if self.sampler is not None:
            self.sampler.stop()

    def facts(self) -> dict[str, Any]:
        """The back end in use, and why a better one is not."""
        return {"backend": self.backend, "update_s": self.update_s, "rejected": self.rejected}

    def _energy(self, edge: Edge, joules: float, details: dict[str, Any]) -> BoardEnergy:
        seconds = edge.time_s - self._begun.time_s
        quantization_j = 2 * joules / seconds * self.update_s
        return BoardEnergy(self.board.uuid, self.backend, joules, seconds, quantization_j, details)

    def _check_clock(self, edge: Edge) -> None:
        if edge.time_s <= self._begun.time_s:
            raise BoardError("failed", "the clock went back or did not move during the window")


class CounterGauge(Gauge):
    """The total-energy counter. Read at the edges only, each at a step of the counter.

    Args:
        board: the board.
        update_s: time between the counter's steps, as observed.
        check: a sampled gauge of the same board, to compare the counter with on the first steady window.
    """

    backend = "counter"

    def __init__(self, board: GpuBoard, update_s: float, check: InstantGauge | None) -> None:
        super().__init__(board)
        self.update_s = update_s
        self.check = check
        self.checked: dict[str, object] = {}

    def start(self) -> None:
        """Start the gauge to compare with, until a comparison exists."""
        if self.check is not None:
            self.check.start()

    def begin(self, edge: Edge) -> None:
        """The window opens at a step of the counter."""
        super().begin(edge)
        if self.check is not None:
            self.check.begin(edge)

    def finish(self, edge: Edge) -> BoardEnergy:
        """Difference of the counter between two of its steps."""
        self._check_clock(edge)
        assert edge.counter_j is not None
        assert self._begun.counter_j is not None
        joules = edge.counter_j - self._begun.counter_j
        if joules < 0:
            raise BoardError("failed", "the energy counter went back: the driver was reset")
        details: dict[str, object] = {"update_s": self.update_s}
        if self.check is not None:
            comparison = self._compare(self.check, edge, joules)
            details["cross_check"] = comparison
            if comparison.get("steady"):
                self.checked, self.check = comparison, None
        return self._energy(edge, joules, details)

    def stop(self) -> None:
        """Stop the gauge to compare with."""
        if self.check is not None:
            self.check.stop()

    def facts(self) -> dict[str, Any]:
        """With the comparison of the counter and sampled power, once there is one."""
        return {**super().facts(), "cross_check": self.checked or None}

    def _compare(self, check: InstantGauge, edge: Edge, joules: float) -> dict[str, object]:
        """Counter over sampled energy. They share a gain error if the same sensor feeds both (unknown)."""
        try:
            sampled = check.finish(edge)
        except BoardError as error:
            return {"missing": error.absence.text}
        finally:
            check.stop()
        if sampled.joules <= 0:
            return {"missing": "no power was sampled"}
        ratio = joules / sampled.joules
        steady = sampled.details["variation"] <= STEADY_VARIATION
        agree = abs(ratio - 1) <= GAIN_BOUND
        return {"counter_to_sampled": ratio, "steady": steady, "agree": agree, "window_s": sampled.seconds}


class InstantGauge(Gauge):
    """Instantaneous power, sampled at least at twice its update rate, integrated as a held signal.

    Where the sensor averages over less than its update period, the rest of the time is never seen: power that
    changes in step with the sensor is then measured wrongly, by any reader. ``unseen_fraction`` says how much.
    """

    backend = "instant"

    def __init__(self, board: GpuBoard, sample_period_s: float, clock: Clock) -> None:
        self.update_s = board.timing.update_s
        period_s = min(sample_period_s, self.update_s / 2)
        # never slower, however expensive a call is: the integral is only as good as the times of the changes
        self.power = Sampler(board.instant_w, period_s, name="power", longest_s=period_s, clock=clock)
        super().__init__(board, self.power)

    def finish(self, edge: Edge) -> BoardEnergy:
        """Integrate the samples over the window, shifted by the sensor's lag."""
        self._check_clock(edge)
        lag_s = self.board.timing.lag_s
        begun_s = time.monotonic()
        time.sleep(lag_s + self.power.period_s)
        self.stop()
        samples, cpu_s = self.power.samples, self.power.cpu_s
        if self.power.error is not None:
            raise self.power.error
        start_s, end_s = self._begun.time_s + lag_s, edge.time_s + lag_s
        try:
            integral: Integral = integrate_held(samples, start_s, end_s, update_s=self.update_s)
            _, spread = variation(samples, start_s, end_s)
        except ValueError as error:
            raise BoardError("failed", f"power samples cannot be integrated: {error}") from error
        if integral.blind_fraction > MOST_BLIND:
            text = f"{integral.blind_fraction:.1%} of the window is in gaps longer than the sensor's update period"
            raise BoardError("too_few", text)
        timing = self.board.timing
        wall_s = edge.time_s - self._begun.time_s + time.monotonic() - begun_s
        details = {
            "update_s": timing.update_s,
            "sensor_window_s": timing.window_s,
            "timing_assumed": timing.assumed,
            "unseen_fraction": 1 - timing.window_s / timing.update_s,
            "sample_period_s": self.power.period_s,
            "samples": integral.samples,
            "max_gap_s": integral.max_gap_s,
            "variation": spread,
            "sampler_cpu_share": cpu_s / wall_s,
        }
        return self._energy(edge, integral.joules, details)


class AverageGauge(Gauge):
    """Power averaged over 1 s. Only a steady load of some length gives a value: an average hides all else."""

    backend = "average"

    def __init__(self, board: GpuBoard, steady_s: float, clock: Clock) -> None:
        self.steady_s = steady_s
        self.update_s = board.timing.update_s
        self.power = Sampler(board.average_w, self.update_s / 2, name="power", clock=clock)
        super().__init__(board, self.power)

    def minimum_s(self, epsilon: float) -> float:
        """The length of a steady load, independent of the bound."""
        return self.steady_s

    def finish(self, edge: Edge) -> BoardEnergy:
        """Mean power times the window's length, if power was steady."""
        self._check_clock(edge)
        self.stop()
        if self.power.error is not None:
            raise self.power.error
        seconds = edge.time_s - self._begun.time_s
        if seconds < self.steady_s:
            raise BoardError("window_too_short", f"{seconds:.3f} s is shorter than {self.steady_s} s of steady load")
        # the first average still looks back at what was before the window
        start_s = self._begun.time_s + AVERAGE_WINDOW_S
        try:
            watts, spread = variation(self.power.samples, start_s, edge.time_s)
        except ValueError as error:
            raise BoardError("too_few", str(error)) from error
        if spread > STEADY_VARIATION:
            text = f"power varies by {spread:.1%}; its 1 s average gives energy on a steady load only"
            raise BoardError("not_supported", text)
        return self._energy(edge, watts * seconds, {"update_s": self.update_s, "variation": spread})


def choose_gauge(
    board: GpuBoard, *, sample_period_s: float, steady_s: float, cross_check: bool, clock: Clock = time.monotonic
) -> Gauge:
    """The best way this board can be read.

    Raises:
        BoardError: the board is partitioned, gone, or gives neither energy nor power.
    """
    if board.mig_enabled():
        raise BoardError("mig", f"{board.uuid} is partitioned (MIG): NVML has no power sensor for a part of it")

    def counter() -> Gauge:
        update_s = counter_update_s(board)
        return CounterGauge(board, update_s, _instant_or_none(board, sample_period_s, clock) if cross_check else None)

    def instant() -> Gauge:
        board.instant_w()
        return InstantGauge(board, sample_period_s, clock)

    def average() -> Gauge:
        board.average_w()
        return AverageGauge(board, steady_s, clock)

    ways: Sequence[tuple[str, Callable[[], Gauge]]] = (("counter", counter), ("instant", instant), ("average", average))
    rejected: dict[str, BoardError] = {}
    for name, way in ways:
        try:
            gauge = way()
        except BoardError as error:
            if error.absence.why not in ("not_supported", "no_permission"):
                raise
            rejected[name] = error
            continue
        gauge.rejected = {key: error.absence.text for key, error in rejected.items()}
        return gauge
    refused = any(error.absence.why == "no_permission" for error in rejected.values())
    text = "; ".join(f"{name}: {error.absence.text}" for name, error in rejected.items())
    raise BoardError("no_permission" if refused else "not_supported", text)


def take_edges(gauges: Sequence[Gauge], clock: Callable[[], float]) -> dict[Gauge, Edge]:
    """Close or open a window on all boards: each counter at its next step, all other gauges now.

    Raises:
        BoardError: a GPU fails, or its counter does not move.
    """
    counters = [gauge for gauge in gauges if isinstance(gauge, CounterGauge)]
    edges = {gauge: Edge(clock()) for gauge in gauges if gauge not in counters}
    before = {gauge: gauge.board.energy_j() for gauge in counters}
    last_s = clock()
    limit_s = max([1.0, *(10 * gauge.update_s for gauge in counters)])
    deadline_s = time.monotonic() + limit_s
    while len(edges) < len(gauges):
        time.sleep(ALIGN_POLL_S)
        for gauge in counters:
            if gauge in edges:
                continue
            now_j = gauge.board.energy_j()
            if now_j != before[gauge]:
                # the step happened between two polls
                edges[gauge] = Edge((last_s + clock()) / 2, now_j)
        last_s = clock()
        if time.monotonic() > deadline_s and len(edges) < len(gauges):
            raise BoardError("failed", f"an energy counter did not move for {limit_s:.1f} s")
    return {gauge: edges[gauge] for gauge in gauges}


def counter_update_s(board: GpuBoard) -> float:
    """Time between two steps of the counter, observed: the median of a few.

    Raises:
        BoardError: no counter, or one that does not move.
    """
    steps: list[float] = []
    last_j = board.energy_j()
    deadline_s = time.monotonic() + CALIBRATION_LIMIT_S
    while len(steps) <= CALIBRATION_STEPS and time.monotonic() < deadline_s:
        time.sleep(ALIGN_POLL_S)
        now_j = board.energy_j()
        if now_j != last_j:
            steps.append(time.monotonic())
            last_j = now_j
    if len(steps) < 3:
        raise BoardError("not_supported", "the energy counter does not move")
    return statistics.median(b - a for a, b in pairwise(steps))


def _instant_or_none(board: GpuBoard, sample_period_s: float, clock: Clock) -> InstantGauge | None:
    try:
        board.instant_w()
    except BoardError:
        return None
    return InstantGauge(board, sample_period_s, clock)


Sample = tuple[float, float]
"""Time (s) and power (W)."""


@dataclass(frozen=True)
class Integral:
    """An integrated window.

    Attributes:
        joules: energy over the window.
        samples: number of samples inside it.
        max_gap_s: longest time between neighbouring samples.
        blind_fraction: share of the window in gaps longer than the sensor's update period, where a value may
            have come and gone unseen.
    """

    joules: float
    samples: int
    max_gap_s: float
    blind_fraction: float


def integrate_held(samples: Sequence[Sample], start_s: float, end_s: float, *, update_s: float) -> Integral:
    """Integrate power over ``[start_s, end_s]``.

    Every sample counts, repeated values too: a value seen again was held in between, and dropping it would turn
    a plateau into a ramp. Between two samples that differ, the change is put in the middle, which errs by at
    most half a sample period. The window's edges cut the held value where they fall.

    Args:
        samples: in order of time.
        start_s: begin of the window, not before the first sample.
        end_s: its end, not after the last sample.
        update_s: the sensor's update period.

    Raises:
        ValueError: fewer than two samples, times that do not increase, or a window the samples do not cover.
    """
    if len(samples) < 2 or samples[0][0] > start_s or samples[-1][0] < end_s:
        raise ValueError("the samples do not cover the window")
    if start_s >= end_s or any(b[0] <= a[0] for a, b in pairwise(samples)):
        raise ValueError("the clock went back or did not move")
    joules = blind_s = max_gap_s = 0.0
    for (t0, p0), (t1, p1) in pairwise(samples):
        middle = (t0 + t1) / 2
        joules += p0 * _overlap(t0, middle, start_s, end_s) + p1 * _overlap(middle, t1, start_s, end_s)
        inside = _overlap(t0, t1, start_s, end_s)
        if inside > 0:
            max_gap_s = max(max_gap_s, t1 - t0)
        if t1 - t0 > update_s:
            blind_s += inside
    count = sum(start_s <= t <= end_s for t, _ in samples)
    return Integral(joules, count, max_gap_s, blind_s / (end_s - start_s))


def variation(samples: Sequence[Sample], start_s: float, end_s: float) -> tuple[float, float]:
    """Mean power (W) and coefficient of variation of the samples inside a window.

    Raises:
        ValueError: fewer than two samples inside.
    """
    inside = [p for t, p in samples if start_s <= t <= end_s]
    if len(inside) < 2:
        raise ValueError("fewer than two samples in the window")
    mean = sum(inside) / len(inside)
    deviation = sqrt(sum((p - mean) ** 2 for p in inside) / (len(inside) - 1))
    return mean, deviation / mean if mean > 0 else 0.0


def _overlap(a: float, b: float, start: float, end: float) -> float:
    return max(0.0, min(b, end) - max(a, start))

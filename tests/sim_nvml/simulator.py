"""Build the simulated library, write its script, know its truth, and run a child process against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Piecewise linear over time, held outside its points, repeated if it has a period. Two points at one time jump."""

    points: Points
    period: float = 0.0

    def area(self, t: float) -> float:
        """Integral from 0 to ``t``."""
        if t <= 0:
            return t * self.points[0][1]
        if self.period <= 0:
            return self._area_once(t)
        whole, rest = divmod(t, self.period)
        return whole * self._area_once(self.period) + self._area_once(rest)

    def _area_once(self, t: float) -> float:
        total = 0.0
        for (t0, y0), (t1, y1) in pairwise(self.points):
            end = min(t, t1)
            if end > t0:
                y_end = y0 + (y1 - y0) * (end - t0) / (t1 - t0)
                total += (end - t0) * (y0 + y_end) / 2
        last_t, last_y = self.points[-1]
        return total + max(0.0, t - last_t) * last_y

    def text(self) -> str:
        return " ".join(f"{t:.9f}:{y:.6f}" for t, y in self.points)


def constant(watts: float) -> Curve:
    return Curve([(0.0, watts)])


def square(low: float, high: float, period: float, duty: float = 0.5) -> Curve:
    on = duty * period
    return Curve([(0, high), (on, high), (on, low), (period, low)], period)


def ramp(start: tuple[float, float], end: tuple[float, float]) -> Curve:
    return Curve([start, end])


@dataclass(frozen=True)
class SimDevice:
    """One simulated board. Times in seconds after the script's origin; see ``nvml_sim.c`` for each line."""

    uuid: str
    power: Curve = field(default_factory=lambda: constant(100.0))
    counter: tuple[float, float] | None = (0.01, 0.0)  # step, lag
    instant: tuple[float, float] | None = (0.1, 0.025)  # update, window: H100
    average: tuple[float, float] | None = (0.1, 1.0)
    usage: int = 1
    capability: tuple[int, int] = (9, 0)
    temperature: Curve = field(default_factory=lambda: constant(50.0))
    used: Curve = field(default_factory=lambda: constant(2e9))
    extra: Sequence[str] = ()  # more lines

    def lines(self) -> list[str]:
        lines = [
            f"device {self.uuid}",
            f"capability {self.capability[0]} {self.capability[1]}",
            f"power {self.power.text()}",
            f"power_period {self.power.period}",
            f"temperature {self.temperature.text()}",
            f"used {self.used.text()}",
            f"usage {self.usage}",
        ]
        for word, pair in (("counter", self.counter), ("instant", self.instant), ("average", self.average)):
            if pair is not None:
                lines.append(f"{word} {pair[0]} {pair[1]}")
        return lines + list(self.extra)


@dataclass
class Simulator:
    """A built library and a folder for scripts."""

    library: Path
    folder: Path
    origin_s: float = field(default_factory=time.monotonic)

    def script(self, devices: Sequence[SimDevice], *further: str) -> Path:
        """Write a script whose origin is now; :mod:`tests.sim_nvml.measure` puts it at its own start."""
        self.origin_s = time.monotonic()
        path = self.folder / f"script-{time.monotonic_ns()}.txt"
        lines = [f"origin {self.origin_s:.9f}", *further]
        for device in devices:
            lines += device.lines()
        path.write_text("\n".join(lines) + "\n")
        return path

    def environment(self, script: Path) -> dict[str, str]:
        """Variables with which pynvml's own loader finds the simulated library."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.library.parent),
            "SIM_NVML_SCRIPT": str(script),
            "OMP_NUM_THREADS": "1",
        }

    def measure(self, script: Path, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run ``tests.sim_nvml.measure`` on a job; its answer."""
        answer = run_measure(job, self.environment(script))
        self.origin_s = answer.pop("origin_s")
        return answer

    def truth_j(self, power: Curve, begin_s: float, end_s: float) -> float:
        """Joules between two readings of the monotonic clock."""
        return power.area(end_s - self.origin_s) - power.area(begin_s - self.origin_s)


def build(folder: Path) -> Path:
    """Compile the library with the system's C compiler.

    Raises:
        FileNotFoundError: there is no compiler.
        subprocess.CalledProcessError: it does not compile.
    """
    library = folder / "libnvidia-ml.so.1"
    source = HERE / "nvml_sim.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-lm"], check=True)
    return library


def run_measure(job: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run the measuring child with an environment; its JSON answer."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim_nvml.measure"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(environment),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer

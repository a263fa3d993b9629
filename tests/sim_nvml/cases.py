"""Reference for the energy meter: cases of the protocol with their true values. Used by the tests and by the bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.sim_nvml.simulator import Curve, SimDevice, Simulator, constant, ramp, square

AMPERE_GA10X = (8, 6)  # 100 ms updates, averaged over all of them
HOPPER = (9, 0)  # 100 ms updates, averaged over the last 25 ms
SHORT = {"floor_s": 2.0, "steady_s": 3.0, "idle_s": 2.0}
"""Shorter limits than the protocol's, to go with counters that step every 10 ms."""


@dataclass(frozen=True)
class Outcome:
    """Result of one case.

    Attributes:
        error: measured over true energy, less 1; None where there is no value.
        reading: the reading of ``energy_gross_j``.
    """

    error: float | None
    reading: dict[str, Any]

    @property
    def disturbed(self) -> bool:
        """True if the machine was so busy that a sample of power came later than the sensor's next value."""
        boards = self.reading["details"].get("boards", {}).values()
        gaps = [board["max_gap_s"] > board["update_s"] for board in boards if "max_gap_s" in board]
        return self.reading["why_missing"] == "too_few" or any(gaps)


def panel(*uuids: str, meters: tuple[str, ...] = ("energy", "time"), **options: Any) -> dict[str, Any]:
    """A panel for the measuring child."""
    return {"uuids": list(uuids), "meters": list(meters), "options": {"energy": {**SHORT, **options}}}


def measurable() -> dict[str, SimDevice]:
    """Cases in which the protocol gives a value."""
    return {
        "counter, constant": SimDevice("GPU-0", constant(250)),
        "counter, square wave": SimDevice("GPU-1", square(80, 400, 0.37)),
        "counter, ramp, 30 ms late": SimDevice("GPU-2", ramp((0, 80), (8, 500)), counter=(0.01, 0.03)),
        "sampled, square wave": sampled("GPU-3", square(80, 400, 0.73)),
        "sampled, ramp": sampled("GPU-4", ramp((0, 80), (8, 500))),
        # a reader that drops repeated values turns the plateau before the step into a ramp
        "sampled, plateau, then a step": sampled("GPU-5", Curve([(0, 100), (4, 100), (4, 400)])),
        "sampled 25 of 100 ms, square wave": SimDevice("GPU-6", square(80, 400, 0.73), counter=None, capability=HOPPER),
        "1 s average, steady": SimDevice("GPU-7", constant(300), counter=None, instant=None),
    }


def sampled(uuid: str, power: Curve) -> SimDevice:
    """A board without a counter whose power sensor sees all of the time."""
    return SimDevice(uuid, power, counter=None, instant=(0.1, 0.1), capability=AMPERE_GA10X)


def aliased() -> SimDevice:
    """Full power in exactly the 25 of 100 ms in which the sensor looks: no reader of it can know."""
    pattern = Curve([(0, 100), (0.075, 100), (0.075, 400), (0.1, 400)], period=0.1)
    return SimDevice("GPU-0", pattern, counter=None, capability=HOPPER)


def measure_each(sim: Simulator, devices: dict[str, SimDevice], stages: dict[str, float]) -> dict[str, Any]:
    """Measure every device alone, all at the same time."""
    script = sim.script(list(devices.values()))
    panels = {name: panel(device.uuid) for name, device in devices.items()}
    return sim.measure(script, {"panels": panels, "stages": stages})


def outcomes(sim: Simulator, devices: dict[str, SimDevice], window_s: float = 5.0) -> dict[str, Outcome]:
    """Energy error of every device over one window."""
    answer = measure_each(sim, devices, {"train": window_s})
    found = {}
    for name, device in devices.items():
        stage = answer[name]["stages"]["train"]
        reading = stage["readings"]["energy_gross_j"]
        # over the window that was measured: when a busy machine came to open and close it is not the meter's error
        window_s = reading["details"].get("window_s", window_s)
        truth = sim.truth_j(device.power, stage["begun_s"], stage["begun_s"] + window_s)
        found[name] = Outcome(None if reading["value"] is None else reading["value"] / truth - 1, reading)
    return found


def undisturbed(sim: Simulator, devices: dict[str, SimDevice], *, attempts: int = 4) -> dict[str, Outcome]:
    """Like :func:`outcomes`, again for the cases in which the machine was too busy to sample, a few times."""
    found: dict[str, Outcome] = {}
    for _ in range(attempts):
        left = {name: device for name, device in devices.items() if name not in found}
        if left:
            found |= {name: outcome for name, outcome in outcomes(sim, left).items() if not outcome.disturbed}
    return found


def meters_cpu_share(sim: Simulator, window_s: float = 5.0) -> float:
    """Share of one core that all meters together use while a stage runs on a board with a counter."""
    meters = ("host-memory", "device-state", "rapl", "energy", "time")
    # the first window holds the comparison of counter and power, which is made once
    stages = {"load": 3.0, "train": window_s}
    job = {"panels": {"all": panel("GPU-0", meters=meters)}, "stages": stages}
    stage = sim.measure(sim.script([SimDevice("GPU-0", constant(250))]), job)["all"]["stages"]["train"]
    return float(stage["cpu_s"] / window_s)

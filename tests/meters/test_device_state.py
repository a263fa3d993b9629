"""The state of simulated GPUs, and who is on them."""

from __future__ import annotations

from typing import Any

import pytest

from harness.meters.nvml import foreign_pids, visible_uuids
from tests.sim_nvml.simulator import Curve, SimDevice, Simulator, ramp

OPTIONS = {"device-state": {"period_s": 0.1, "memory_period_s": 0.02}}


def job(uuids: dict[str, list[str]], seconds: float) -> dict[str, Any]:
    panels = {name: {"uuids": u, "meters": ["device-state"], "options": OPTIONS} for name, u in uuids.items()}
    return {"panels": panels, "stages": {"train": seconds}}


def test_state_of_a_stage(sim: Simulator) -> None:
    peak = Curve([(0, 2e9), (1.8, 2e9), (1.8, 7e9), (2.2, 7e9), (2.2, 3e9)])
    devices = [
        SimDevice("GPU-0", temperature=ramp((0, 40), (5, 90)), used=peak, extra=["memory 80e9 5e8"]),
        SimDevice("GPU-1", extra=["throttle 2.0 99 96", "process 2.0 2.6 4242", "process 0 99 0", "clocks 1500 2000"]),
        SimDevice("GPU-2", extra=["throttle 0 99 4", "lost_at 2.2"]),
    ]
    answer = sim.measure(
        sim.script(devices), job({"calm": ["GPU-0"], "hot": ["GPU-0", "GPU-1"], "lost": ["GPU-2"]}, 2.5)
    )
    calm = answer["calm"]["stages"]["train"]["readings"]
    stage = answer["calm"]["stages"]["train"]
    warmed_c = 10 * (stage["ended_s"] - stage["begun_s"])
    risen_c = calm["gpu_temperature_end_c"]["value"] - calm["gpu_temperature_start_c"]["value"]
    assert risen_c == pytest.approx(warmed_c, abs=4)
    assert calm["device_used_peak_bytes"]["value"] == 7e9
    assert calm["throttled_fraction"]["value"] == 0
    assert calm["foreign_processes"]["value"] == 0
    assert calm["power_limit_w"]["value"] == 700
    hot = answer["hot"]["stages"]["train"]["readings"]
    assert hot["power_limit_w"]["value"] == 1400
    assert hot["sm_clock_mhz"]["value"] == (1980 + 1500) / 2
    assert 0 < hot["throttled_fraction"]["value"] < 1
    counts = hot["throttled_fraction"]["details"]["samples_with"]
    assert set(counts) == {"sw_thermal_slowdown", "hw_thermal_slowdown"}
    assert hot["foreign_processes"]["value"] == 1
    assert hot["foreign_processes"]["details"]["pids"] == [4242]
    lost = answer["lost"]["stages"]["train"]["readings"]
    assert {r["why_missing"] for r in lost.values()} == {"device_lost"}
    board = answer["calm"]["facts"]["device-state"]["boards"][0]
    assert (board["uuid"], board["driver"], board["compute_capability"]) == ("GPU-0", "999.0 (simulated)", "9.0")
    assert (board["memory_total_bytes"], board["mig"]) == (80_000_000_000, False)


def test_power_cap_is_not_throttling_missing_sensors_typed(sim: Simulator) -> None:
    script = sim.script(
        [SimDevice("GPU-0", extra=["throttle 0 99 4"])],
        "error nvmlDeviceGetTemperature 1 3",
        "error nvmlDeviceGetClockInfo 1 4",
    )
    readings = sim.measure(script, job({"gpu": ["GPU-0"]}, 0.3))["gpu"]["stages"]["train"]["readings"]
    assert readings["throttled_fraction"]["value"] == 0
    assert "sw_power_cap" in readings["throttled_fraction"]["details"]["samples_with"]
    assert readings["gpu_temperature_start_c"]["why_missing"] == "not_supported"
    assert readings["sm_clock_mhz"]["why_missing"] == "not_supported"
    assert readings["power_limit_w"]["value"] == 700


def test_who_is_foreign() -> None:
    assert foreign_pids([10, 11, 99], {10, 11}, own_context=True) == {99}
    assert foreign_pids([], {10}, own_context=True) == set()
    # in a container NVML shows the host's numbers: one of them is taken to be this process
    assert foreign_pids([5000], {10}, own_context=True) == set()
    assert len(foreign_pids([5000, 6000], {10}, own_context=True)) == 1
    # without a context no process on the list can be this one
    assert foreign_pids([5000], {10}, own_context=False) == {5000}


def test_assigned_uuids_come_from_environment_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, MIG-b")
    assert visible_uuids() == ("GPU-a", "MIG-b")

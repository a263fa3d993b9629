"""The state of simulated GPUs, and who is on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.meters.instrument import MeterSetting
from harness.meters.nvml import foreign_pids, visible_uuids
from harness.meters.panel import Panel
from harness.meters.rapl import Rapl, unwrapped_uj
from harness.meters.thermal import cool_down, warm_up
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


RANGE_UJ = 262_143_328_850


def zone(root: Path, folder: str, name: str, energy_uj: int) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Path]:
    return {
        "package-0": zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        "core": zone(tmp_path, "intel-rapl:0:0", "core", 0),
        "dram-0": zone(tmp_path, "intel-rapl:0:1", "dram", 0),
        "package-1": zone(tmp_path, "intel-rapl:1", "package-1", RANGE_UJ - 999_999),
        "dram-1": zone(tmp_path, "intel-rapl:1:0", "dram", 0),
        "psys": zone(tmp_path, "intel-rapl:2", "psys", 0),
        "mmio copy": zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    }


def test_packages_and_dram_apart_overlaps_left_out_wraps_counted(tree: dict[str, Path], tmp_path: Path) -> None:
    panel = Panel([Rapl(MeterSetting("cpu"), root=tmp_path)])
    panel.begin("train")
    for name, value in {"package-0": 6_000_000, "package-1": 2_000_000, "dram-0": 700_000, "dram-1": 300_000}.items():
        (tree[name] / "energy_uj").write_text(str(value))
    for name in ("core", "psys", "mmio copy"):
        (tree[name] / "energy_uj").write_text("99000000")
    readings = {r.quantity: r for r in panel.end("train")}
    assert readings["cpu_package_j"].value == pytest.approx(5 + 3)  # the second package wrapped
    assert readings["dram_j"].value == pytest.approx(1.0)
    facts = panel.facts()["rapl"]
    assert len(facts["zones"]) == 4
    assert facts["period_s"] < RANGE_UJ / 1e6 / 1000


def test_a_counter_may_wrap_between_any_two_readings() -> None:
    assert unwrapped_uj([90, 95, 3, 99, 1], 99) == 5 + 8 + 96 + 2


def test_a_machine_without_dram_zones_says_so(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = Rapl(MeterSetting("cpu"), root=tmp_path)
    assert meter.available() is None
    meter.begin("train")
    readings = {r.quantity: r for r in meter.end("train")}
    assert readings["cpu_package_j"].value == 0
    assert readings["dram_j"].why_missing == "not_supported"


def test_no_zones_and_no_permission_are_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Panel([Rapl(MeterSetting("cpu"), root=tmp_path)])
    assert {r.why_missing for r in empty.absent()} == {"no_device"}
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    real = Path.read_text

    def refuse(self: Path, *args: object, **kwargs: object) -> str:
        if self == path / "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    refused = Panel([Rapl(MeterSetting("cpu"), root=tmp_path)])
    assert {r.why_missing for r in refused.absent()} == {"no_permission"}
    assert "energy_uj may not be read" in refused.absent()[0].details["why"]


class World:
    """A clock that moves during sleep and work, and a device that cools and warms with it."""

    def __init__(self, start_c: float, per_s: float, limit_c: float) -> None:
        self.now = 0.0
        self.start_c, self.per_s, self.limit_c = start_c, per_s, limit_c

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def clock(self) -> float:
        return self.now

    def read_c(self) -> float:
        value = self.start_c + self.per_s * self.now
        return max(value, self.limit_c) if self.per_s < 0 else min(value, self.limit_c)


def test_cool_down_stops_at_the_band_or_at_the_cap() -> None:
    world = World(80, -2, 30)
    settled = cool_down(world.read_c, below_c=50, cap_s=60, clock=world.clock, sleep=world.sleep)
    assert (settled.reached, settled.seconds, settled.start_c, settled.end_c) == (True, 15, 80, 50)
    world = World(80, -0.1, 30)
    settled = cool_down(world.read_c, below_c=50, cap_s=60, clock=world.clock, sleep=world.sleep)
    assert (settled.reached, settled.seconds) == (False, 60)


def test_a_device_without_a_thermometer_is_not_waited_for() -> None:
    world = World(80, 0, 80)
    settled = cool_down(lambda: None, below_c=50, cap_s=60, clock=world.clock, sleep=world.sleep)
    assert (settled.reached, settled.seconds, settled.end_c) == (False, 0, None)


def test_warm_up_goes_on_until_heat_and_step_time_are_steady() -> None:
    world = World(40, 1, 70)  # warms for 30 s
    settled = warm_up(lambda: world.sleep(0.5), world.read_c, cap_s=300, clock=world.clock)
    assert settled.reached
    assert 38 <= settled.seconds <= 42
    assert settled.steps == settled.seconds * 2


def test_warm_up_waits_for_slowing_steps_up_to_the_cap() -> None:
    world = World(70, 1, 70)
    durations = iter([0.1 * 1.05**index for index in range(200)])
    settled = warm_up(lambda: world.sleep(next(durations)), world.read_c, cap_s=50, clock=world.clock)
    assert not settled.reached
    assert settled.facts()["seconds"] >= 50

"""Energy against a simulated device whose truth is known. Many cases share one run, to cost the time of one."""

from __future__ import annotations

import os

import pytest

from harness.meters.energy import Energy
from harness.meters.gauges import integrate_held, variation
from harness.meters.instrument import MeterSetting
from tests.sim_nvml.cases import aliased, measurable, measure_each, meters_cpu_share, panel, undisturbed
from tests.sim_nvml.simulator import Curve, SimDevice, Simulator, constant, ramp, run_measure

WINDOW_S = 5.0


def test_measured_energy_agrees_with_the_truth(sim: Simulator) -> None:
    found = undisturbed(sim, measurable())
    if len(found) < len(measurable()):
        pytest.skip("this machine was too busy to sample power every 0.1 s in any of four windows")
    for name, outcome in found.items():
        assert outcome.error is not None, outcome.reading
        print(f"{name}: {outcome.error:+.2%}")
        # where a quarter of the time is seen, a single window is good to a few percent
        assert abs(outcome.error) <= (0.05 if "25 of 100" in name else 0.01), name
    details = {name: outcome.reading["details"] for name, outcome in found.items()}
    assert details["counter, square wave"]["backend"] == "counter"
    assert details["sampled, ramp"]["backend"] == "instant"
    assert details["1 s average, steady"]["backend"] == "average"
    board = details["sampled 25 of 100 ms, square wave"]["boards"]["GPU-6"]
    assert board["unseen_fraction"] == pytest.approx(0.75)
    assert 0 < board["sampler_cpu_share"] < 0.05


def test_all_meters_together_use_little_of_a_core(sim: Simulator) -> None:
    share = meters_cpu_share(sim)
    print(f"all meters: {share:.2%} of one core")
    assert share < 0.05  # the aim is 0.005; on a slow machine every wake-up is more expensive


def test_quantization_bound_and_flag_follow_update_period(sim: Simulator) -> None:
    answer = measure_each(sim, {"slow": SimDevice("GPU-0", constant(200), counter=(0.1, 0.0))}, {"train": WINDOW_S})
    details = answer["slow"]["stages"]["train"]["readings"]["energy_gross_j"]["details"]
    assert details["quantization_bound"] == pytest.approx(2 * 0.1 / details["window_s"], rel=0.1)
    assert details["gain_bound"] == 0.05
    assert details["meets_protocol"] is False  # 5 s, where 2 * 0.1 s / 1 % = 20 s


def test_load_in_step_with_partial_sensor_gives_a_warning(
    sim: Simulator,
) -> None:
    found = undisturbed(sim, {"aliased": aliased()})
    if not found:
        pytest.skip("this machine was too busy to sample power every 0.1 s in any of four windows")
    outcome = found["aliased"]
    assert outcome.error is not None
    print(f"aliased: {outcome.error:+.0%}")
    assert outcome.error > 1.0
    assert outcome.reading["details"]["boards"]["GPU-0"]["unseen_fraction"] == pytest.approx(0.75)


def test_none_with_its_reason_where_the_protocol_demands_it(sim: Simulator) -> None:
    devices = {
        "reset": SimDevice("GPU-0", extra=["counter_reset 3.0"]),
        "reset unseen at the ends": SimDevice("GPU-1", constant(1e6), extra=["counter_reset 3.0"]),
        "lost": SimDevice("GPU-2", extra=["lost_at 4.0"]),
        "lost, sampled": SimDevice("GPU-3", counter=None, extra=["lost_at 4.0"]),
        "foreign process": SimDevice("GPU-4", extra=["process 3.0 4.5 4242"]),
        "unsteady average": SimDevice("GPU-5", ramp((0, 80), (8, 500)), counter=None, instant=None),
        "own process": SimDevice("GPU-6", extra=["process 0 99 0"]),
    }
    answer = measure_each(sim, devices, {"train": WINDOW_S})
    got = {name: answer[name]["stages"]["train"]["readings"]["energy_gross_j"] for name in devices}
    reasons = {name: reading["why_missing"] for name, reading in got.items()}
    assert reasons == {
        "reset": "failed",
        "reset unseen at the ends": "failed",
        "lost": "device_lost",
        "lost, sampled": "device_lost",
        "foreign process": "shared",
        "unsteady average": "not_supported",
        "own process": None,
    }
    assert "4242" in got["foreign process"]["details"]["why"]
    # other meters of the stage survive
    assert all(answer[name]["stages"]["train"]["readings"]["stage_s"]["value"] >= WINDOW_S for name in devices)


def test_a_short_window_has_no_value(sim: Simulator) -> None:
    devices = {
        "counter": SimDevice("GPU-0"),
        "sampled": SimDevice("GPU-1", counter=None),
        "average": SimDevice("GPU-2", counter=None, instant=None),
    }
    answer = measure_each(sim, devices, {"save": 0.2})
    for name in devices:
        readings = answer[name]["stages"]["save"]["readings"]
        for quantity in ("energy_gross_j", "energy_net_j", "power_mean_w"):
            assert readings[quantity]["why_missing"] == "window_too_short", (name, quantity)


def test_unusable_boards_say_why_once(sim: Simulator) -> None:
    devices = {
        "mig": SimDevice("GPU-0", extra=["mig 1"]),
        "nothing": SimDevice("GPU-1", counter=None, instant=None, average=None, usage=-1),
    }
    script = sim.script(list(devices.values()))
    panels = {name: panel(device.uuid) for name, device in devices.items()}
    panels["mig instance"] = panel("MIG-0")
    panels["wrong uuid"] = panel("GPU-9")
    panels["none assigned"] = panel()
    answer = sim.measure(script, {"panels": panels, "stages": {"train": 0.0}})
    assert {name: answer[name]["cell"]["energy_gross_j"]["why_missing"] for name in panels} == {
        "mig": "mig",
        "nothing": "not_supported",
        "mig instance": "mig",
        "wrong uuid": "no_device",
        "none assigned": "no_device",
    }
    assert all("energy_gross_j" not in answer[name]["stages"]["train"]["readings"] for name in panels)
    assert "unavailable" in answer["mig"]["facts"]["energy"]


def test_permission_is_refused_from_the_start_and_in_mid_window(sim: Simulator) -> None:
    everything = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage")
    script = sim.script([SimDevice("GPU-0")], *(f"error {function} 1 4" for function in everything))
    answer = sim.measure(script, {"panels": {"refused": panel("GPU-0")}, "stages": {"train": 0.0}})
    assert answer["refused"]["cell"]["energy_gross_j"]["why_missing"] == "no_permission"
    script = sim.script([SimDevice("GPU-0")], "error nvmlDeviceGetTotalEnergyConsumption 0 4 1.5")
    answer = sim.measure(script, {"panels": {"later": panel("GPU-0")}, "stages": {"train": 2.5}})
    assert answer["later"]["stages"]["train"]["readings"]["energy_gross_j"]["why_missing"] == "no_permission"


def test_without_counter_the_next_back_end_is_used_and_named(sim: Simulator) -> None:
    devices = {
        # the plain power call is instantaneous up to GA100 and a 1 s average after it
        "A100 without field 186": SimDevice("GPU-0", capability=(8, 0), counter=None),
        "counter does not move": SimDevice("GPU-1", counter=(1000.0, 0.0)),
    }
    script = sim.script(list(devices.values()), "error nvmlDeviceGetFieldValues 2 3")
    panels = {name: panel(device.uuid) for name, device in devices.items()}
    answer = sim.measure(script, {"panels": panels, "stages": {"train": 0.0}})
    facts = {name: next(iter(answer[name]["facts"]["energy"]["boards"].values())) for name in devices}
    assert facts["A100 without field 186"]["backend"] == "instant"
    assert "Not Supported" in facts["A100 without field 186"]["rejected"]["counter"]
    assert facts["counter does not move"]["backend"] == "average"
    assert "not move" in facts["counter does not move"]["rejected"]["counter"]


def test_assigned_boards_are_added_up_and_others_left_out(sim: Simulator) -> None:
    devices = [SimDevice("GPU-0", constant(100)), SimDevice("GPU-1", constant(200)), SimDevice("GPU-2", constant(900))]
    answer = sim.measure(sim.script(devices), {"panels": {"two": panel("GPU-0", "GPU-1")}, "stages": {"train": 3.0}})
    stage = answer["two"]["stages"]["train"]
    gross = stage["readings"]["energy_gross_j"]
    truth = 300 * gross["details"]["window_s"]
    assert gross["value"] == pytest.approx(truth, rel=0.01)
    assert set(gross["details"]["boards"]) == {"GPU-0", "GPU-1"}
    assert stage["readings"]["power_mean_w"]["value"] == pytest.approx(300, rel=0.01)


def test_idle_baseline_net_energy_and_cross_check(sim: Simulator) -> None:
    # idle at 60 W; work at 300 W while the stage lasts; the power sensor reads 4 % too high
    device = SimDevice("GPU-0", Curve([(0, 60), (4.5, 60), (4.5, 300)]), instant=(0.1, 0.1), extra=["gain 1.04"])
    script = sim.script([device])
    job = {"panels": {"gpu": panel("GPU-0")}, "stages": {"attach": 3.0, "train": WINDOW_S}, "baseline": True}
    answer = sim.measure(script, job)["gpu"]
    train = answer["stages"]["train"]["readings"]
    window_s = train["energy_gross_j"]["details"]["window_s"]
    assert train["energy_gross_j"]["value"] == pytest.approx(300 * window_s, rel=0.01)
    assert train["energy_net_j"]["value"] == pytest.approx(240 * window_s, rel=0.01)
    idle = answer["cell"]["energy_idle_w"]
    assert idle["details"]["before_w"] == pytest.approx(60, rel=0.01)
    assert idle["details"]["drift_w"] == pytest.approx(240, rel=0.02)  # the script never goes back to idle
    check = answer["facts"]["energy"]["boards"]["GPU-0"]["cross_check"]
    if check is None:
        pytest.skip("this machine was too busy to sample power every 0.1 s in any stage")
    assert check["steady"]
    assert check["counter_to_sampled"] == pytest.approx(1 / 1.04, rel=0.01)


def test_no_nvml_library_is_no_device() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if "error" not in _library_error(environment):
        pytest.skip("this machine has NVML")
    job = {"panels": {"gpu": panel("GPU-0")}, "stages": {"train": 0.0}}
    answer = run_measure(job, environment)["gpu"]
    assert answer["cell"]["energy_gross_j"]["why_missing"] == "no_device"
    assert "Shared Library Not Found" in answer["cell"]["energy_gross_j"]["details"]["why"]
    assert answer["stages"]["train"]["readings"]["stage_s"]["value"] >= 0


def test_a_clock_that_goes_back_gives_no_energy(sim: Simulator) -> None:
    script = sim.script([SimDevice("GPU-0"), SimDevice("GPU-1", counter=None)])
    environment = sim.environment(script)
    job = {
        "panels": {name: panel(uuid) for name, uuid in (("counter", "GPU-0"), ("sampled", "GPU-1"))},
        "stages": {"train": 2.5},
        "clock_goes_back_after_s": 1.5,
    }
    answer = run_measure(job, environment)
    for name in ("counter", "sampled"):
        readings = answer[name]["stages"]["train"]["readings"]
        assert readings["energy_gross_j"]["why_missing"] == "failed", name
        assert "clock" in readings["energy_gross_j"]["details"]["why"], name
        assert readings["stage_s"]["why_missing"] == "failed", name


def test_shortest_window_keeps_quantization_below_gain_bound() -> None:
    class FastGauge:
        def minimum_s(self, epsilon: float) -> float:
            return 2 * 0.1 / epsilon

    meter = Energy(MeterSetting("cpu", ("GPU-0",)), floor_s=1.0)
    meter._gauges = [FastGauge()]  # type: ignore[list-item]
    assert meter.shortest_window_s == pytest.approx(4.0)
    assert meter.minimum_window_s == pytest.approx(20.0)


def _library_error(environment: dict[str, str]) -> str:
    import subprocess
    import sys

    program = "import pynvml\ntry:\n pynvml.nvmlInit()\nexcept pynvml.NVMLError as e:\n print('error', e)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment).stdout


def sampled(power: list[tuple[float, float]], step: float, end: float) -> list[tuple[float, float]]:
    """Samples of a step function given as (from, watts)."""
    times = [index * step for index in range(round(end / step) + 1)]
    return [(t, [watts for start, watts in power if start <= t][-1]) for t in times]


def test_plateau_before_a_step_is_kept_and_the_tail_counts() -> None:
    samples = sampled([(0, 100), (5, 400)], 0.05, 10)
    got = integrate_held(samples, 0, 10, update_s=0.1)
    # the change is between the samples at 4.95 s and 5 s, and is put in the middle of them
    assert got.joules == pytest.approx(4.975 * 100 + 5.025 * 400)
    assert got.samples == 201


def test_edges_cut_the_held_value_where_they_fall() -> None:
    samples = sampled([(0, 100), (5, 400)], 0.05, 10)
    assert integrate_held(samples, 1.23, 4.321, update_s=0.1).joules == pytest.approx(309.1)
    assert integrate_held(samples, 5.51, 5.52, update_s=0.1).joules == pytest.approx(4.0)


def test_uneven_sampling_does_not_bias_a_plateau() -> None:
    samples = [(0.0, 100.0), (0.01, 100.0), (0.02, 100.0), (3.0, 100.0), (4.0, 100.0)]
    got = integrate_held(samples, 0.005, 3.5, update_s=0.1)
    assert got.joules == pytest.approx(349.5)
    assert got.max_gap_s == pytest.approx(2.98)
    assert got.blind_fraction == pytest.approx((2.98 + 0.5) / 3.495)


@pytest.mark.parametrize(
    ("samples", "start", "end"),
    [
        ([(0.0, 1.0)], 0, 1),
        ([(0.5, 1.0), (2.0, 1.0)], 0, 1),
        ([(0.0, 1.0), (0.9, 1.0)], 0, 1),
        ([(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (3.0, 1.0)], 0, 1),
        ([(0.0, 1.0), (2.0, 1.0)], 1, 1),
    ],
)
def test_what_cannot_be_integrated_raises(samples: list[tuple[float, float]], start: float, end: float) -> None:
    with pytest.raises(ValueError):
        integrate_held(samples, start, end, update_s=0.1)


def test_variation_of_a_known_sample() -> None:
    mean, spread = variation([(0, 999), (1, 90), (2, 110), (3, 999)], 0.5, 2.5)
    assert (mean, spread) == (100, pytest.approx(0.1414, rel=1e-3))
    with pytest.raises(ValueError):
        variation([(0, 1), (1, 1)], 5, 6)

"""The meters against known quantities on a real GPU. Run with: python -m pytest tests/gpu -s."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.meters.catalog import build
from harness.meters.flops import count_flops
from harness.meters.gauges import GAIN_BOUND
from harness.meters.nvml import GpuBoard, visible_uuids
from harness.meters.panel import Panel
from harness.meters.thermal import thermometer
from harness.record import Reading
from tests.runners.conftest import Bench, bench  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]
DEVICE = "cuda:0"
ROOT = Path(__file__).parents[2]


def panel(*names: str, **energy: Any) -> Panel:
    return Panel(build(DEVICE, uuids=visible_uuids()[:1], names=names or None, options={"energy": energy}))


def measure(instruments: Panel, work: Callable[[], object], stage: str = "work") -> dict[str, Reading]:
    instruments.begin(stage)
    work()
    return {reading.quantity: reading for reading in instruments.end(stage)}


def multiply_for(seconds: float, size: int = 4096) -> int:
    """A steady load of that length; the number of multiplications."""
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    done = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()
        done += 20
    return done


def test_the_board_torch_uses_is_found_by_its_uuid() -> None:
    board = GpuBoard(visible_uuids()[0])
    assert board.name in torch.cuda.get_device_name(0) or torch.cuda.get_device_name(0) in board.name
    assert board.capability == torch.cuda.get_device_capability(0)


def test_no_meter_starts_cuda_by_being_built() -> None:
    uuid = visible_uuids()[0]
    program = (
        "import torch\nfrom harness.meters.catalog import build\nfrom harness.meters.panel import Panel\n"
        f"p = Panel(build('{DEVICE}', uuids=['{uuid}'], names=['device-state', 'energy', 'time']))\n"
        "p.begin('x'); p.end('x'); assert not torch.cuda.is_initialized(); print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "ok", done.stderr


def test_known_allocation_is_seen_by_every_memory_kind() -> None:
    torch.zeros(1, device=DEVICE)
    instruments = panel("torch-memory", "device-state")
    idle = measure(instruments, lambda: time.sleep(0.3))
    size = 2**30

    def allocate() -> None:
        block = torch.empty(size, dtype=torch.uint8, device=DEVICE)
        time.sleep(0.5)
        del block

    used = measure(instruments, allocate)
    after = measure(instruments, lambda: None)
    for name in ("cuda_allocated_peak_bytes", "cuda_reserved_peak_bytes", "device_used_peak_bytes"):
        before, now = idle[name].value, used[name].value
        assert before is not None
        assert now is not None
        print(f"{name}: rose by {now - before:.0f} of {size} B")
        assert now - before == pytest.approx(size, rel=0.01)
    assert after["cuda_reserved_peak_bytes"].value == pytest.approx(idle["cuda_reserved_peak_bytes"].value, abs=2**22)
    assert used["alloc_retries"].value == 0
    assert used["ooms"].value == 0


def test_the_timer_waits_for_the_device() -> None:
    timer = panel("time")
    cycles = 400_000_000
    measure(timer, lambda: torch.cuda._sleep(cycles))
    once = measure(timer, lambda: torch.cuda._sleep(cycles))["stage_s"].value
    thrice = measure(timer, lambda: [torch.cuda._sleep(cycles) for _ in range(3)])["stage_s"].value
    assert once is not None
    assert thrice is not None
    print(f"sleep kernel: {once:.4f} s, three of them {thrice:.4f} s")
    assert once > 0.05
    assert thrice / once == pytest.approx(3, rel=0.05)


def test_a_short_stage_has_no_energy() -> None:
    readings = measure(panel("energy", "time"), lambda: multiply_for(0.5))
    assert readings["energy_gross_j"].why_missing in ("window_too_short", "shared")


@pytest.mark.slow
def test_counter_and_sampled_power_agree_on_a_steady_load() -> None:
    multiply_for(5)  # warm
    instruments = panel("device-state", "energy", "time", idle_s=20.0)
    time.sleep(5)
    instruments.baseline("before")
    readings = measure(instruments, lambda: multiply_for(25))
    gross, net = readings["energy_gross_j"], readings["energy_net_j"]
    if gross.why_missing == "shared":
        pytest.skip("other processes use this device")
    print(gross.model_dump())
    assert gross.value is not None
    assert net.value is not None
    assert 0 < net.value < gross.value
    limit_w = readings["power_limit_w"].value
    assert limit_w is None or gross.value / gross.details["window_s"] < 1.1 * limit_w
    facts = next(iter(instruments.facts()["energy"]["boards"].values()))
    check = facts["cross_check"]
    if facts["backend"] != "counter" or check is None:
        pytest.skip("no counter, or no steady comparison on this board")
    assert abs(check["counter_to_sampled"] - 1) <= GAIN_BOUND


def test_matmul_flops_are_counted_and_below_peak() -> None:
    size = 4096
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    assert count_flops(lambda: a @ a) == 2 * size**3
    done = multiply_for(1.0, size)
    assert done * 2 * size**3 < 5e15  # no GPU of today reaches it


def test_the_hottest_assigned_gpu_is_read() -> None:
    celsius = thermometer(visible_uuids())()
    assert celsius is not None
    assert 0 < celsius < 120


def test_gpu_sweep_records_memory_state_and_energy_or_reason(bench: Bench) -> None:  # noqa: F811
    folder = bench.root / "runners" / "hardware"
    folder.mkdir(parents=True)
    (folder / "here.yaml").write_text("name: here\ndevice: cuda\npeak_tflops: {float32: 1000}\n")
    bench.write(hardware=["here"], methods=["lora"])
    done = bench("run", "sweep.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    [record] = bench.records()
    assert record["outcome"]["status"] == "ok", record["outcome"]
    metrics = record["metrics"]
    [train] = [span for span in record["spans"] if span["stage"] == "train"]
    stage = {reading["quantity"]: reading for reading in train["readings"]}
    owners = ("weights_bytes", "gradient_bytes", "optimizer_state_bytes", "activation_peak_bytes")
    assert all(metrics[name]["value"] is not None for name in owners), {name: metrics[name] for name in owners}
    assert sum(metrics[name]["value"] for name in owners) <= stage["cuda_allocated_peak_bytes"]["value"]
    assert stage["cuda_allocated_peak_bytes"]["value"] <= stage["cuda_reserved_peak_bytes"]["value"]
    assert stage["cuda_reserved_peak_bytes"]["value"] < stage["device_used_peak_bytes"]["value"]
    assert stage["gpu_temperature_start_c"]["value"] is not None
    assert (stage["energy_gross_j"]["value"] is None) == (stage["energy_gross_j"]["why_missing"] is not None)
    assert 0 < metrics["mfu"]["value"] < 1
    assert "simulated" not in record["environment"]

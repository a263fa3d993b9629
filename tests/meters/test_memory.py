"""Host memory against allocations of known size, in a separate process so that nothing else moves the peaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.meters.attribution import (
    Attribution,
    gradient_bytes,
    intruder_dimensions,
    model_bytes,
    optimizer_bytes,
    tensor_bytes,
)
from harness.meters.instrument import MeterSetting
from harness.meters.memory import HostMemory, TorchMemory, cgroup_peak_path, tree_pss_bytes

ROOT = Path(__file__).parents[2]
MIB = 2**20

PROGRAM = '''
import json, mmap, subprocess, sys, time
from harness.meters.catalog import build
from harness.meters.panel import Panel

def fill(mib):
    block = mmap.mmap(-1, mib * 2**20)
    for offset in range(0, len(block), 4096):
        block[offset] = 1
    return block

meters = build("cpu", names=["host-memory", "torch-memory"], options={"host-memory": {"pss_period_s": 0.05}})
pss = next(m for m in meters if m.name == "host-memory")._pss
panel = Panel(meters)
answer = {}

def wait_for_a_sample():
    # the sampler paces itself by what a sample costs, so how long this takes is the machine's affair;
    # two more, because the first may have been under way while the block was still being filled
    wanted, deadline = len(pss.samples) + 2, time.monotonic() + 150
    while len(pss.samples) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)

for stage, mib in (("nothing", 0), ("big", 300), ("small", 100), ("after", 0)):
    panel.begin(stage)
    if mib:
        block = fill(mib)
        if stage == "big":
            wait_for_a_sample()
        block.close()
    answer[stage] = {r.quantity: r.model_dump(mode="json") for r in panel.end(stage)}
child = """
import mmap, time
block = mmap.mmap(-1, 200 * 2**20)
for offset in range(0, len(block), 4096):
    block[offset] = 1
print(1, flush=True)
time.sleep(99)
"""
panel.begin("child")
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
process.stdout.readline()
answer["child"] = {r.quantity: r.model_dump(mode="json") for r in panel.end("child")}
process.kill()
process.wait()
answer["absent"] = {r.quantity: r.why_missing for r in panel.absent()}
print(json.dumps(answer))
'''


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_peak_rss_is_that_of_the_stage(stages: dict[str, Any]) -> None:
    base = stages["nothing"]["peak_rss_bytes"]["value"]
    for stage, mib in (("big", 300), ("small", 100)):
        grown = (stages[stage]["peak_rss_bytes"]["value"] - base) / MIB
        print(f"{stage}: {mib} MiB allocated, RSS peak rose by {grown:.1f} MiB")
        assert grown == pytest.approx(mib, rel=0.01, abs=2)
    assert stages["after"]["peak_rss_bytes"]["value"] - base < 5 * MIB  # no peak is carried over


def test_pss_counts_children_and_rss_does_not(stages: dict[str, Any]) -> None:
    base = stages["nothing"]["pss_peak_bytes"]["value"]
    assert (stages["big"]["pss_peak_bytes"]["value"] - base) / MIB == pytest.approx(300, rel=0.02)
    assert (stages["child"]["pss_peak_bytes"]["value"] - base) / MIB == pytest.approx(200, rel=0.1)
    assert stages["child"]["peak_rss_bytes"]["value"] - stages["nothing"]["peak_rss_bytes"]["value"] < 20 * MIB
    assert stages["big"]["pss_peak_bytes"]["n"] >= 2


def test_a_cpu_cell_says_that_it_has_no_cuda_allocator(stages: dict[str, Any]) -> None:
    assert set(stages["absent"]) == set(TorchMemory.quantities)
    assert set(stages["absent"].values()) == {"no_device"}


def test_an_rss_peak_that_cannot_be_reset_is_not_reported(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    process = proc / "self"
    process.mkdir(parents=True)
    (process / "status").write_text("VmHWM:\t  1000 kB\nVmRSS:\t  900 kB\n")
    (process / "cgroup").write_text("")
    meter = HostMemory(MeterSetting("cpu"), proc=proc)
    meter._pss.read = lambda: 1
    (process / "clear_refs").mkdir()  # a write to it fails
    meter.begin("x")
    readings = {r.quantity: r for r in meter.end("x")}
    assert readings["peak_rss_bytes"].why_missing == "no_permission"
    assert readings["pss_peak_bytes"].value == 1
    assert readings["cgroup_peak_bytes"].why_missing == "not_supported"


def cgroup_tree(folder: Path, line: str, file: str, peak: int) -> tuple[Path, Path]:
    proc, root = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(line + "\n")
    path = root / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{peak}\n")
    (path.parent / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return proc, root


def test_growth_is_over_what_was_there_before(stages: dict[str, Any]) -> None:
    base = stages["nothing"]["rss_before_bytes"]["value"]
    assert stages["big"]["rss_before_bytes"]["value"] == pytest.approx(base, abs=20 * MIB)
    for stage, mib in (("big", 300), ("small", 100), ("after", 0)):
        assert stages[stage]["rss_growth_bytes"]["value"] / MIB == pytest.approx(mib, rel=0.01, abs=5)


def test_a_control_group_with_other_processes_says_nothing(tmp_path: Path) -> None:
    from harness.meters.memory import CgroupPeak

    proc, root = cgroup_tree(tmp_path, "4:memory:/a", "memory/a/memory.max_usage_in_bytes", 500)
    (proc / str(os.getpid()) / "task" / "1").mkdir(parents=True)
    (proc / str(os.getpid()) / "task" / "1" / "children").write_text("4001 ")
    values = {}
    for held in ([os.getpid(), 4001], [os.getpid(), 4001, 77]):
        (root / "memory/a/cgroup.procs").write_text("\n".join(map(str, held)))
        peak = CgroupPeak.open(proc, root)
        assert peak is not None
        (root / "memory/a/memory.max_usage_in_bytes").write_text("900\n")
        reading = peak.read()
        values[len(held)] = reading.value
        (root / "memory/a/memory.max_usage_in_bytes").write_text("500\n")
    assert values == {2: 900, 3: None}
    assert "1 processes beside the cell's" in reading.details["why"]


def test_unresettable_cgroup_peak_counts_only_if_it_grew(tmp_path: Path) -> None:
    from harness.meters.memory import CgroupPeak

    proc, root = cgroup_tree(tmp_path, "4:memory:/a/b", "memory/a/b/memory.max_usage_in_bytes", 500)
    peak = CgroupPeak.open(proc, root)
    assert peak is not None
    (root / "memory/a/b/memory.max_usage_in_bytes").write_text("800\n")
    assert peak.read().value == 800
    again = CgroupPeak.open(proc, root)
    assert again is not None
    reading = again.read()
    assert (reading.value, reading.why_missing) == (None, "not_supported")
    assert "800 B" in reading.details["why"]


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/a/b", "a/b/memory.peak"),
        ("4:cpu,memory:/a/b", "memory/a/b/memory.max_usage_in_bytes"),
        ("4:memory:/not/mounted", "memory/memory.max_usage_in_bytes"),
    ],
)
def test_the_control_group_is_found_in_both_versions(tmp_path: Path, line: str, file: str) -> None:
    proc, root = cgroup_tree(tmp_path, line, file, 1)
    assert cgroup_peak_path(proc, root) == root / file


def test_no_control_group_is_none(tmp_path: Path) -> None:
    proc, root = cgroup_tree(tmp_path, "0::/elsewhere", "a/memory.peak", 1)
    assert cgroup_peak_path(proc, root) is None


def test_a_process_that_is_gone_raises_for_the_root_only() -> None:
    with pytest.raises(FileNotFoundError):
        tree_pss_bytes(Path("/proc"), 2**22 + 1)


IN, OUT = 256, 512


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, OUT, bias=False))


def test_plain_tied_viewed_and_meta_tensors() -> None:
    model = nn.Module()
    model.a = nn.Linear(IN, OUT)
    model.b = nn.Linear(IN, OUT, bias=False)
    model.b.weight = model.a.weight
    model.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
    assert model_bytes(model) == 4 * (IN * OUT + OUT) + 24
    block = torch.zeros(100)
    assert tensor_bytes(block, block[:10], block.view(10, 10)) == 400
    assert model_bytes(nn.Linear(IN, OUT, device="meta")) == 0


def test_torchao_counts_inner_tensors() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = linear()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    scales = model_bytes(model) - IN * OUT
    assert 0 < scales <= 8 * OUT
    assert tensor_bytes(model[0].weight) == model_bytes(model)


@pytest.mark.parametrize(("kind", "bits"), [("qint8", 8), ("qint4", 4)])
def test_quanto_counts_packed_data_and_scales(kind: str, bits: int) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    model = linear()
    quanto.quantize(model, weights=getattr(quanto, kind))
    quanto.freeze(model)
    packed = IN * OUT * bits // 8
    assert packed < model_bytes(model) < 1.2 * packed


def test_bitsandbytes_counts_quantization_state() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(IN, OUT, bias=False, quant_type="nf4", compress_statistics=False).to("cpu")
    # 4 bits a weight, a 4-byte scale a block of 64, the table of 16 levels
    assert model_bytes(layer) == IN * OUT // 2 + 4 * IN * OUT // 64 + 4 * 16
    eight = bnb.nn.Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False).to("cpu")
    before = model_bytes(eight)
    assert before == IN * OUT + 4 * OUT  # one scale a row
    eight(torch.randn(2, IN))
    assert model_bytes(eight) == before  # the state moved from the parameter to the layer


def test_training_memory_of_adam() -> None:
    model = linear()
    optimizer = torch.optim.AdamW(model.parameters())
    assert optimizer_bytes(optimizer) == 0
    model(torch.randn(3, IN)).sum().backward()
    optimizer.step()
    weights = 4 * IN * OUT
    taken = Attribution.take(model, optimizer)
    readings = {r.quantity: r for r in taken.readings(10 * weights)}
    assert readings["weights_bytes"].value == weights
    assert readings["gradient_bytes"].value == gradient_bytes(model) == weights
    assert readings["optimizer_state_bytes"].value == 2 * weights + 4  # two moments and a step count
    assert readings["activation_peak_bytes"].value == 6 * weights - 4
    without = {r.quantity: r for r in taken.readings(None)}
    assert without["activation_peak_bytes"].why_missing == "not_supported"
    impossible = {r.quantity: r for r in taken.readings(weights)}
    assert impossible["activation_peak_bytes"].why_missing == "not_applicable"


def test_projectors_and_nested_state_of_an_optimizer_count() -> None:
    class Projector:
        def __init__(self) -> None:
            self.matrix = torch.zeros(100)

    parameter = nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.SGD([parameter])
    optimizer.state[parameter] = {"projector": Projector(), "inner": [{"moment": torch.zeros(5)}], "step": 1}
    assert optimizer_bytes(optimizer) == 4 * 105


def test_a_new_direction_is_an_intruder_and_a_turned_one_is_not() -> None:
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(64, 64)).Q, torch.linalg.qr(torch.randn(80, 64)).Q
    base = (left[:, :40] * torch.linspace(4, 1, 40)) @ right[:, :40].T  # 24 directions of the outputs are free
    assert intruder_dimensions(base, base) == 0
    assert intruder_dimensions(base, 1.5 * base) == 0
    for number in (1, 3):
        new = left[:, 40 : 40 + number] @ right[:, 40 : 40 + number].T
        assert intruder_dimensions(base, base + 20 * new) == number  # strong, and of no direction of the base
    small = left[:, 40:41] @ right[:, 40:41].T
    assert intruder_dimensions(base, base + 0.1 * small) == 0  # not among the leading ten

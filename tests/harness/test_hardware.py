from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from harness import hardware
from harness.errors import UserError
from harness.hardware import (
    GIB,
    Gpu,
    HardwareProfile,
    Machine,
    cgroup_limits,
    device_for,
    find_gpus,
    gpus_for,
    identity,
    load_profiles,
    match,
    probe,
    visible,
)

A100 = Gpu("GPU-aaaa", "NVIDIA A100-SXM4-40GB", 40 * GIB, 8.0, "580.1", "13.0")
H100 = Gpu("GPU-bbbb", "NVIDIA H100 80GB HBM3", 80 * GIB, 9.0, "580.1", "13.0")
CPU_ONLY = Machine(4, 16 * GIB, "a CPU", why_no_gpu="no_device", why_no_gpu_detail="NVML: no GPU")
WITH_GPUS = Machine(4, 16 * GIB, "a CPU", gpus=(A100, H100))


def profile(**fields: Any) -> HardwareProfile:
    return HardwareProfile(name="p", **fields)


@pytest.mark.parametrize("device", ["mps", "rocm", "xpu"])
def test_an_untried_device_is_refused_with_the_reason(device: str) -> None:
    reason = match(profile(device=device), WITH_GPUS)
    assert reason is not None
    assert f"({device}): untested, so no cell runs there" in reason


@pytest.mark.parametrize("version", ["2.13.0+rocm6.4", "2.13.0+xpu"])
def test_a_build_for_other_gpus_runs_on_the_cpu_and_says_so(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hardware.metadata.version
    monkeypatch.setattr(hardware.metadata, "version", lambda name: version if name == "torch" else real(name))
    machine = hardware.probe()
    assert machine.gpus == ()
    assert f"torch {version} is a build for" in machine.why_no_gpu_detail
    assert hardware.device_for(profile(), machine) == "cpu"


# --- matching ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wanted", "machine", "reason"),
    [
        (profile(), CPU_ONLY, None),
        (profile(), WITH_GPUS, None),
        (profile(device="cpu"), WITH_GPUS, None),
        (profile(device="cuda"), WITH_GPUS, None),
        (profile(device="cuda", gpu="*H100*", min_memory_gib=75, min_compute_capability=9.0), WITH_GPUS, None),
        (profile(cores=4, host_memory_gib=16), CPU_ONLY, None),
        (profile(cores=5), CPU_ONLY, "p asks for 5 CPU cores, here are 4"),
        (profile(host_memory_gib=17), CPU_ONLY, "p asks for 17 GiB of memory, here are 16.0 GiB"),
        (profile(device="cuda"), CPU_ONLY, "p asks for a CUDA GPU, here is none (NVML: no GPU)"),
        (
            profile(device="cuda", gpu="*B200*"),
            WITH_GPUS,
            "p asks for a GPU named '*B200*', here is NVIDIA A100-SXM4-40GB (40.0 GiB, compute capability 8.0), "
            "NVIDIA H100 80GB HBM3 (80.0 GiB, compute capability 9.0)",
        ),
        (
            profile(device="cuda", gpu="*A100*", min_memory_gib=75),
            Machine(1, GIB, "", gpus=(A100,)),
            "p asks for a GPU named '*A100*' with at least 75 GiB, "
            "here is NVIDIA A100-SXM4-40GB (40.0 GiB, compute capability 8.0)",
        ),
        (
            profile(device="cuda", min_compute_capability=10.0),
            Machine(1, GIB, "", gpus=(H100,)),
            "p asks for a GPU of compute capability 10.0 or later, "
            "here is NVIDIA H100 80GB HBM3 (80.0 GiB, compute capability 9.0)",
        ),
    ],
)
def test_a_profile_matches_or_says_why_not(wanted: HardwareProfile, machine: Machine, reason: str | None) -> None:
    assert match(wanted, machine) == reason


def test_only_gpus_that_satisfy_a_profile_are_leased() -> None:
    assert gpus_for(profile(device="cuda", min_memory_gib=75), WITH_GPUS) == [H100]
    assert gpus_for(profile(device="cuda"), WITH_GPUS) == [A100, H100]
    assert gpus_for(profile(device="cuda"), CPU_ONLY) == []


@pytest.mark.parametrize(
    ("wanted", "machine", "device"),
    [
        (profile(), WITH_GPUS, "cuda"),
        (profile(), CPU_ONLY, "cpu"),
        (profile(min_memory_gib=100), WITH_GPUS, "cpu"),
        (profile(device="cpu"), WITH_GPUS, "cpu"),
        (profile(device="cuda"), CPU_ONLY, "cuda"),
    ],
)
def test_any_takes_a_gpu_where_there_is_one(wanted: HardwareProfile, machine: Machine, device: str) -> None:
    assert device_for(wanted, machine) == device
    assert identity(wanted, machine)["device"] == device


def test_an_identity_holds_what_is_asked_for_and_no_names() -> None:
    wanted = HardwareProfile(name="x", summary="y", device="cuda", gpu="*H100*", min_memory_gib=75)
    assert identity(wanted, WITH_GPUS) == {"device": "cuda", "gpu": "*H100*", "min_memory_gib": 75.0}


# --- profiles ------------------------------------------------------------------------------------
def test_the_built_in_profiles_are_there() -> None:
    profiles = load_profiles()
    assert profiles["any"].device == "any"
    assert profiles["cpu"].device == "cpu"
    assert match(profiles["any"], CPU_ONLY) is None
    assert match(profiles["cpu"], CPU_ONLY) is None
    assert all(p.summary for p in profiles.values())
    assert any(p.device == "cuda" for p in profiles.values())


def workspace(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / "runners" / "hardware" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return folder


def test_a_workspace_adds_profiles_and_its_own_win(tmp_path: Path) -> None:
    workspace(tmp_path, "name: mine\ndevice: cpu\ncores: 2\n")
    workspace(tmp_path, "name: cpu\ndevice: cpu\ncores: 64\n", "cpu")
    profiles = load_profiles([tmp_path])
    assert profiles["mine"].cores == 2
    assert profiles["cpu"].cores == 64
    assert "any" in profiles


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: other\n", "the profile calls itself 'other', the file 'mine'"),
        ("name: mine\ncore: 2\n", "line 2, key 'core': unknown key 'core'. Did you mean 'cores'?"),
        (
            "name: mine\ndevice: gpu\n",
            "'gpu' is not allowed here. Allowed: 'any', 'cpu', 'cuda', 'mps', 'rocm' or 'xpu'",
        ),
    ],
)
def test_a_wrong_profile_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_profiles([workspace(tmp_path, text)])
    assert said in str(caught.value)
    assert "mine.yaml" in str(caught.value)


# --- this machine --------------------------------------------------------------------------------
def test_probing_imports_no_torch_and_gives_plain_json() -> None:
    code = (
        "import sys, json; from harness.hardware import probe; m = probe()\n"
        "print(json.dumps([m.as_dict(), 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    machine, torch_is_loaded = json.loads(done.stdout)
    assert not torch_is_loaded
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > GIB // 4
    assert "cpu" in machine["device_types"]
    assert bool(machine["gpus"]) != bool(machine["why_no_gpu"])


def cgroup(folder: Path, files: dict[str, str], membership: str) -> list[int]:
    for name, text in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "self").write_text(membership)
    return cgroup_limits(folder / "fs", folder / "self")


@pytest.mark.parametrize(
    ("files", "membership", "limits"),
    [
        ({"a/b/memory.max": "2048\n", "a/memory.max": "1024\n"}, "0::/a/b\n", [2048, 1024]),
        ({"a/memory.max": "max\n"}, "0::/a\n", []),
        ({"memory.max": "512\n"}, "0::/\n", [512]),
        ({"memory/x/memory.limit_in_bytes": "4096\n"}, "4:memory:/x\n1:cpu:/y\n0::/\n", [4096]),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, "4:memory:/\n", []),
        ({}, "0::/gone\n", []),
    ],
)
def test_memory_limits_of_containers(files: dict[str, str], membership: str, limits: list[int], tmp_path: Path) -> None:
    assert cgroup(tmp_path, files, membership) == limits


def test_no_control_groups_mean_no_limit(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path, tmp_path / "absent") == []


def test_the_lower_of_memory_and_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cgroup_limits", lambda: [GIB])
    assert probe().memory_bytes == GIB


# --- GPUs as NVML shows them ---------------------------------------------------------------------
class FakeDriver:
    """Stands in for the functions of NVML; each handle is a dictionary of what the device answers."""

    def __init__(self, *devices: dict[str, Any]) -> None:
        self.devices = devices
        self.open = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in dir(self):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, getattr(self, name))

    def answer(self, handle: dict[str, Any], name: str) -> Any:
        value = handle.get(name, pynvml.NVML_ERROR_NOT_SUPPORTED)
        if isinstance(value, int) and name != "limit":
            raise pynvml.NVMLError(value)
        return value

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13010

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.devices[index]

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> Any:
        return self.answer(handle, "name")

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> Any:
        return self.answer(handle, "uuid")

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> Any:
        return SimpleNamespace(total=handle["memory"] * GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: dict[str, Any]) -> Any:
        return self.answer(handle, "capability")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: dict[str, Any]) -> Any:
        return self.answer(handle, "limit") if "limit" in handle else self.answer(handle, "absent")

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> Any:
        return (1, 1) if "instances" in handle else self.answer(handle, "mig")

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], index: int) -> Any:
        if index >= len(handle["instances"]):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle["instances"][index]


WHOLE = {"name": b"NVIDIA L4", "uuid": "GPU-1", "memory": 24, "capability": (8, 9), "limit": 72000}


def test_a_gpu_is_read_without_touching_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(WHOLE)
    driver.install(monkeypatch)
    gpus, why, detail = find_gpus()
    assert gpus == [Gpu("GPU-1", "NVIDIA L4", 24 * GIB, 8.9, "580.65.06", "13.1", power_limit_w=72.0)]
    assert (why, detail) == (None, "")
    assert driver.open == 0


def test_a_partitioned_gpu_is_listed_as_its_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{"name": "NVIDIA H100 MIG 1g.10gb", "uuid": f"MIG-{n}", "memory": 10} for n in range(2)]
    FakeDriver({**WHOLE, "capability": (9, 0), "instances": parts}).install(monkeypatch)
    gpus, _, _ = find_gpus()
    assert [(g.uuid, g.memory_bytes, g.mig, g.power_limit_w) for g in gpus] == [
        ("MIG-0", 10 * GIB, True, None),
        ("MIG-1", 10 * GIB, True, None),
    ]
    assert {g.compute_capability for g in gpus} == {9.0}


def test_power_limit_missing_from_nvml_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver({k: v for k, v in WHOLE.items() if k != "limit"}).install(monkeypatch)
    assert find_gpus()[0][0].power_limit_w is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, "device_lost"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no_permission"),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "not_supported"),
        (pynvml.NVML_ERROR_UNKNOWN, "failed"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "no_device"),
    ],
)
@pytest.mark.parametrize("at", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetName"])
def test_an_error_of_nvml_is_a_typed_reason(code: int, reason: str, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(WHOLE)
    driver.install(monkeypatch)

    def fail(*_arguments: object) -> None:
        raise pynvml.NVMLError(code)

    monkeypatch.setattr(pynvml, at, fail)
    gpus, why, detail = find_gpus()
    assert (gpus, why) == ([], reason)
    assert detail.startswith("NVML: ")


def test_no_gpu_and_no_package_are_reasons_too(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver().install(monkeypatch)
    assert find_gpus() == ([], "no_device", "NVML: no GPU")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpus()[1] == "not_supported"


def test_a_gpu_under_a_cpu_build_of_torch_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver(WHOLE).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware.metadata, "version", lambda _name: "2.13.0+cpu")
    machine = probe()
    assert (machine.gpus, machine.why_no_gpu) == ((), "not_supported")
    assert match(profile(device="cuda"), machine) == (
        "p asks for a CUDA GPU, here is none (torch 2.13.0+cpu is a CPU build)"
    )
    monkeypatch.setattr(hardware.metadata, "version", lambda _name: "2.13.0+cu130")
    assert probe().device_types == ("cpu", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert probe().why_no_gpu_detail == "CUDA_VISIBLE_DEVICES hides every GPU"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["GPU-aaaa", "GPU-bbbb"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b"}, ["GPU-bbbb"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bbbb, GPU-aaaa"}, ["GPU-bbbb", "GPU-aaaa"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-"}, []),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-c,GPU-a"}, ["GPU-bbbb"]),
        ({"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["GPU-bbbb", "GPU-aaaa"]),
        ({"CUDA_VISIBLE_DEVICES": "0,7,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["GPU-aaaa"]),
        ({"CUDA_VISIBLE_DEVICES": "0,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["GPU-aaaa"]),
    ],
)
def test_what_cuda_visible_devices_leaves(environ: dict[str, str], expected: list[str]) -> None:
    assert [gpu.uuid for gpu in visible([A100, H100], environ)] == expected


def test_ambiguous_index_among_unlike_gpus_is_refused() -> None:
    with pytest.raises(UserError, match="by UUID"):
        visible([A100, H100], {"CUDA_VISIBLE_DEVICES": "0"})
    assert visible([A100], {"CUDA_VISIBLE_DEVICES": "0"}) == [A100]


# --- a cap on the allocator ----------------------------------------------------------------------
def test_memory_cap_is_part_of_the_cell_and_needs_a_gpu() -> None:
    capped = profile(device="cuda", memory_limit_gib=60)
    assert identity(capped, WITH_GPUS) == {"device": "cuda", "gpu": "*", "memory_limit_gib": 60.0}
    assert "memory_limit_gib" not in identity(profile(device="cuda"), WITH_GPUS)
    assert gpus_for(capped, WITH_GPUS) == [H100]  # a cap of 60 GiB caps nothing on 40
    only_a100 = Machine(4, 16 * GIB, "a CPU", gpus=(A100,))
    assert match(capped, only_a100) == (
        "p asks for a GPU with at least 60 GiB, here is NVIDIA A100-SXM4-40GB (40.0 GiB, compute capability 8.0)"
    )


@pytest.mark.parametrize("device", ["any", "cpu"])
def test_memory_cap_without_allocator_is_refused_with_reason(device: str) -> None:
    with pytest.raises(ValueError, match="caps the CUDA allocator, so it needs 'device: cuda'"):
        profile(device=device, memory_limit_gib=8)


def test_the_built_in_cap_answers_whether_it_fits_24_gb() -> None:
    fits = load_profiles()["fits-24gb"]
    assert fits.memory_limit_gib == 23
    assert gpus_for(fits, WITH_GPUS) == [A100, H100]
    assert match(fits, CPU_ONLY) is not None

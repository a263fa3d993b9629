"""Properties of this machine, requirements of a hardware profile, and whether they match.

Nothing here imports torch or creates a CUDA context: GPUs are read through NVML, which leaves the devices alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, model_validator

from harness.errors import UserError
from harness.record import WhyMissing
from harness.yamlfile import FileModel, by_name, load_model

GIB = 2**30
BUILT_IN = Path(__file__).parents[1]
"""The folder with the packages: the last workspace that is searched for profiles."""

_NO_LIMIT = 2**60  # cgroup v1 writes a number close to 2**63 where there is no limit


class Thermal(FileModel):
    """Maximum temperature of the assigned GPUs when a measurement begins. Both stages end at a cap, and the record says
    so.

    Attributes:
        cool_below_c: before a cell, wait until the hottest GPU is no warmer than this, degrees Celsius.
        cool_cap_s: but no longer than this, seconds.
        warm_cap_s: before training, run forward passes until step time and temperature are steady, at most this long.
    """

    cool_below_c: float | None = None
    cool_cap_s: float = Field(default=300, gt=0)
    warm_cap_s: float | None = Field(default=None, gt=0)


class HardwareProfile(FileModel):
    """Requirements of a cell on a machine; one YAML file each, in ``runners/hardware`` or a workspace.

    Attributes:
        device: ``any`` takes a CUDA device if there is one, else the CPU.
        gpu: shell-style pattern for the GPU's name (``"*H100*"``).
        min_memory_gib: of one GPU, in GiB.
        min_compute_capability: for example 8.0.
        cores: CPU cores that must be there.
        host_memory_gib: host memory that must be there, in GiB.
        memory_limit_gib: cap on what the worker's CUDA allocator may hold, in GiB, so that a large GPU answers
            whether a cell fits a small one. What a process uses outside the allocator (the CUDA context, kernels;
            some hundred MiB) comes on top: for a 24 GiB card set 23. Torch has no such cap for the CPU.
        peak_tflops: data type to the device's peak as its maker states it, dense; model-FLOPs utilisation is
            against this. A stated constant, so no part of a cell.
        thermal: cool-down between cells and warm-up before training.
        nvml_devices: UUIDs of NVML devices whose energy and state are read although cells run on the CPU.
        meters: meter to options of its constructor (:mod:`harness.meters.catalog`), for example
            ``{energy: {idle_s: 30}}``.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    summary: str = ""
    device: Literal["any", "cpu", "cuda", "mps", "rocm", "xpu"] = "any"
    gpu: str = "*"
    min_memory_gib: float | None = Field(default=None, gt=0)
    min_compute_capability: float | None = Field(default=None, gt=0)
    cores: int | None = Field(default=None, gt=0)
    host_memory_gib: float | None = Field(default=None, gt=0)
    memory_limit_gib: float | None = Field(default=None, gt=0)
    peak_tflops: dict[str, float] | None = None
    thermal: Thermal | None = None
    nvml_devices: tuple[str, ...] | None = None
    meters: dict[str, dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _limit_has_an_allocator(self) -> HardwareProfile:
        if self.memory_limit_gib is not None and self.device != "cuda":
            raise ValueError(
                "memory_limit_gib caps the CUDA allocator, so it needs 'device: cuda'; nothing caps a CPU's memory "
                "in the same sense (host_memory_gib asks how much must be there)"
            )
        return self


UNTRIED = {"mps": "an Apple GPU", "rocm": "an AMD GPU", "xpu": "an Intel GPU"}
"""Devices that a profile may name and cells are refused on: no cell was ever run there, and no meter reads them."""


@dataclass(frozen=True)
class Gpu:
    """One CUDA device (a whole GPU, or one instance of a partitioned one) as NVML shows it.

    Attributes:
        uuid: what a lease and ``CUDA_VISIBLE_DEVICES`` name it by.
        memory_bytes: total, not free.
        compute_capability: for example 9.0.
        driver: driver version.
        cuda: highest CUDA version the driver serves.
        power_limit_w: enforced limit in watts; None where NVML gives none.
        mig: whether it is an instance of a partitioned GPU.
    """

    uuid: str
    name: str
    memory_bytes: int
    compute_capability: float
    driver: str
    cuda: str
    power_limit_w: float | None = None
    mig: bool = False


@dataclass(frozen=True)
class Machine:
    """Hardware of this machine.

    Attributes:
        gpus: CUDA devices this process may use.
        why_no_gpu: typed reason where ``gpus`` is empty.
        why_no_gpu_detail: the same in words.
        cpu_model: as the system names it.
        cores: CPU cores this process may use.
        memory_bytes: host memory, or the limit of the container if that is lower.
        most_gpus_together: GPUs of the node that has most, where these are several nodes; 0 for one machine.
    """

    cores: int
    memory_bytes: int
    cpu_model: str
    gpus: tuple[Gpu, ...] = ()
    why_no_gpu: WhyMissing | None = None
    why_no_gpu_detail: str = ""
    most_gpus_together: int = 0

    @property
    def device_types(self) -> tuple[str, ...]:
        """Device types a cell can run on here."""
        return ("cpu", "cuda") if self.gpus else ("cpu",)

    def as_dict(self) -> dict[str, object]:
        """Plain JSON."""
        return {**asdict(self), "gpus": [asdict(gpu) for gpu in self.gpus], "device_types": list(self.device_types)}


# --- probing the machine -----------------------------------------------------------------------
def probe() -> Machine:
    """This machine, as far as this process may use it.

    Raises:
        UserError: ``CUDA_VISIBLE_DEVICES`` names devices in a way that can be read in two ways.
    """
    import psutil

    gpus, why, detail = find_gpus()
    if gpus:
        gpus, why, detail = _usable(gpus)
    else:
        with contextlib.suppress(metadata.PackageNotFoundError):
            detail = _other_build(metadata.version("torch")) or detail
    limits = [psutil.virtual_memory().total, *cgroup_limits()]
    return Machine(core_count(), min(limits), cpu_model(), tuple(gpus), why, detail)


def find_gpus() -> tuple[list[Gpu], WhyMissing | None, str]:
    """All GPUs NVML shows in PCI order; if there are none, a typed reason and its wording.

    A partitioned GPU is listed as its instances. No error of NVML gets out of here.
    """
    try:
        import pynvml
    except ImportError as error:
        return [], "not_supported", f"the package nvidia-ml-py is not installed ({error})"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], nvml_reason(error), f"NVML: {error}"
    try:
        found = [
            gpu
            for index in range(pynvml.nvmlDeviceGetCount())
            for gpu in _devices(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        ]
    except pynvml.NVMLError as error:
        return [], nvml_reason(error), f"NVML: {error}"
    finally:
        pynvml.nvmlShutdown()
    return (found, None, "") if found else ([], "no_device", "NVML: no GPU")


def nvml_reason(error: Exception) -> WhyMissing:
    """The typed reason for an error of NVML."""
    import pynvml

    reasons: dict[int, WhyMissing] = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no_device",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "no_device",
        pynvml.NVML_ERROR_NOT_FOUND: "no_device",
        pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
        pynvml.NVML_ERROR_NOT_SUPPORTED: "not_supported",
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "not_supported",
        pynvml.NVML_ERROR_GPU_IS_LOST: "device_lost",
        pynvml.NVML_ERROR_RESET_REQUIRED: "device_lost",
    }
    return reasons.get(getattr(error, "value", -1), "failed")


def _devices(nvml: ModuleType, handle: object) -> list[Gpu]:
    """One GPU, or the instances it is partitioned into."""
    instances = _instances(nvml, handle)
    name = _text(nvml.nvmlDeviceGetName(handle))
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    cuda = nvml.nvmlSystemGetCudaDriverVersion()
    common: dict[str, Any] = {
        "compute_capability": float(f"{major}.{minor}"),
        "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
    }
    if not instances:
        common["power_limit_w"] = _power_limit_w(nvml, handle)  # an instance has no power limit
    return [
        Gpu(
            uuid=_text(nvml.nvmlDeviceGetUUID(device)),
            name=_text(nvml.nvmlDeviceGetName(device)) if instances else name,
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(device).total),
            mig=bool(instances),
            **common,
        )
        for device in instances or [handle]
    ]


def _instances(nvml: ModuleType, handle: object) -> list[object]:
    try:
        mode, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # a GPU that cannot be partitioned
        return []
    if not mode:
        return []
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except nvml.NVMLError:  # an empty slot
            continue
    return found


def _power_limit_w(nvml: ModuleType, handle: object) -> float | None:
    try:
        return float(nvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _usable(gpus: list[Gpu]) -> tuple[list[Gpu], WhyMissing | None, str]:
    """The GPUs a cell can really use: those left visible, and none under a CPU build of torch."""
    try:
        torch_version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return [], "not_supported", "torch is not installed"
    if torch_version.endswith("+cpu"):
        return [], "not_supported", f"torch {torch_version} is a CPU build"
    if (other := _other_build(torch_version)) is not None:
        return [], "not_supported", other
    seen = visible(gpus, os.environ)
    return (seen, None, "") if seen else ([], "no_device", "CUDA_VISIBLE_DEVICES hides every GPU")


def _other_build(torch_version: str) -> str | None:
    """Reason why a build of torch for AMD or Intel GPUs uses none here; None for other builds."""
    kind = next((kind for kind in ("rocm", "xpu") if f"+{kind}" in torch_version), None)
    if kind is None:
        return None
    return f"torch {torch_version} is a build for {UNTRIED[kind]} ({kind}), which is untested: cells run on the CPU"


def visible(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, in its order. As CUDA does, stop at the first unknown one.

    Raises:
        UserError: indices on a machine with unlike GPUs, which CUDA and NVML count in different orders.
    """
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return list(gpus)
    chosen: list[Gpu] = []
    for token in (part.strip() for part in setting.split(",")):
        if token.isdigit():
            if len({gpu.name for gpu in gpus}) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
                raise UserError(
                    "the GPUs of this machine differ, so an index does not say which one is meant",
                    where=f"CUDA_VISIBLE_DEVICES={setting}",
                    fix="Name GPUs by UUID (nvidia-smi -L), or set CUDA_DEVICE_ORDER=PCI_BUS_ID.",
                )
            found = list(gpus[int(token) : int(token) + 1])
        else:
            found = [gpu for gpu in gpus if token and gpu.uuid.startswith(token)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen += found
    return chosen


def core_count() -> int:
    """CPU cores this process may use; all of them if the system does not report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, "unknown" if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or "unknown"


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Memory limits in bytes of the control groups (v1 and v2) this process is in, and of their parents."""
    try:
        groups = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    limits = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, name = (root, "memory.max") if controllers == "" else (root / "memory", "memory.limit_in_bytes")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            limits.append(_limit(folder / name))
            if folder == top:
                break
    return [limit for limit in limits if limit is not None and limit < _NO_LIMIT]


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:  # not there, or the limit of a parent that a container does not see
        return None
    return int(text) if text.isdigit() else None


# --- matching ------------------------------------------------------------------------------------
def match(profile: HardwareProfile, machine: Machine) -> str | None:
    """Reason why cells of this profile cannot run on this machine, or None if they can."""
    if profile.device in UNTRIED:
        return (
            f"{profile.name} asks for {UNTRIED[profile.device]} ({profile.device}): untested, so no cell runs there; "
            "nothing here reads its memory or energy"
        )
    if profile.cores is not None and machine.cores < profile.cores:
        return f"{profile.name} asks for {profile.cores} CPU cores, here are {machine.cores}"
    if profile.host_memory_gib is not None and machine.memory_bytes < profile.host_memory_gib * GIB:
        return (
            f"{profile.name} asks for {profile.host_memory_gib:g} GiB of memory, "
            f"here are {machine.memory_bytes / GIB:.1f} GiB"
        )
    if device_for(profile, machine) == "cpu":
        return None
    if not machine.gpus:
        return f"{profile.name} asks for a CUDA GPU, here is none ({machine.why_no_gpu_detail or machine.why_no_gpu})"
    if not gpus_for(profile, machine):
        here = ", ".join(
            f"{gpu.name} ({gpu.memory_bytes / GIB:.1f} GiB, compute capability {gpu.compute_capability})"
            for gpu in machine.gpus
        )
        return f"{profile.name} asks for {_wanted(profile)}, here is {here}"
    return None


def too_few(profile: HardwareProfile, machine: Machine, *, ranks: int, threads: int) -> str | None:
    """Reason why a cell of so many ranks has too few devices here, or None.

    Args:
        threads: CPU cores of a rank where the cell runs on the CPU.
    """
    if ranks == 1:
        return None
    if device_for(profile, machine) == "cpu":
        if machine.cores >= ranks * threads:
            return None
        return f"{ranks} ranks of {threads} threads need {ranks * threads} CPU cores, here are {machine.cores}"
    here = min(len(gpus_for(profile, machine)), machine.most_gpus_together or len(machine.gpus))
    return None if here >= ranks else f"{ranks} ranks need as many GPUs in one machine, here are {here}"


def gpus_for(profile: HardwareProfile, machine: Machine) -> list[Gpu]:
    """The GPUs that satisfy a profile: those a scheduler may lease to its cells."""
    return [
        gpu
        for gpu in machine.gpus
        if fnmatchcase(gpu.name, profile.gpu)
        and gpu.memory_bytes >= _least_gib(profile) * GIB
        and gpu.compute_capability >= (profile.min_compute_capability or 0)
    ]


def device_for(profile: HardwareProfile, machine: Machine) -> str:
    """Device for a cell of this profile: ``any`` takes a GPU that satisfies the profile, else the CPU."""
    if profile.device != "any":
        return profile.device
    return "cuda" if gpus_for(profile, machine) else "cpu"


def identity(profile: HardwareProfile, machine: Machine) -> dict[str, object]:
    """The parts of a profile that can change a number, as plain JSON for the cell; ``any`` is resolved to a device."""
    return {
        **profile.model_dump(mode="json", exclude={"name", "summary", "peak_tflops"}, exclude_none=True),
        "device": device_for(profile, machine),
    }


def _least_gib(profile: HardwareProfile) -> float:
    """Memory a GPU must have: a cap above what is there would cap nothing."""
    return max(profile.min_memory_gib or 0.0, profile.memory_limit_gib or 0.0)


def _wanted(profile: HardwareProfile) -> str:
    parts = [f"a GPU named {profile.gpu!r}" if profile.gpu != "*" else "a GPU"]
    if _least_gib(profile):
        parts.append(f"with at least {_least_gib(profile):g} GiB")
    if profile.min_compute_capability is not None:
        parts.append(f"of compute capability {profile.min_compute_capability} or later")
    return " ".join(parts)


def load_profiles(workspaces: Iterable[Path] = ()) -> dict[str, HardwareProfile]:
    """Profiles by name: ``runners/hardware/*.yaml`` of each workspace, then the built-in ones; the first wins.

    Raises:
        UserError: a file is not a profile, or its name is not that of the file.
    """
    profiles: dict[str, HardwareProfile] = {}
    for name, path in by_name(workspace / "runners" / "hardware" for workspace in (*workspaces, BUILT_IN)).items():
        profile, _lines = load_model(path, HardwareProfile)
        if profile.name != name:
            raise UserError(
                f"the profile calls itself {profile.name!r}, the file {name!r}",
                where=str(path),
                fix="Give both the same name.",
            )
        profiles[name] = profile
    return profiles

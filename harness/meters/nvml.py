"""GPUs as NVML shows them, by UUID only, every error with its typed reason.

Semantics that differ between boards, from NVIDIA's ``nvml.h``: ``nvmlDeviceGetPowerUsage`` is a 1 s average on
Ampere (GA100 excepted) and newer, and instantaneous before; field 185 is the 1 s average, field 186 the
instantaneous power; the total-energy counter (mJ since the driver was loaded) exists from Volta on.
Sensor timing from Yang, Adamek and Armour 2023 (arXiv:2312.02741). NVML creates no CUDA context.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.meters.instrument import Absence
from harness.record import WhyMissing

FIELD_POWER_AVERAGE = 185
FIELD_POWER_INSTANT = 186

THROTTLE_REASONS = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
"""Reasons that mark a cell. A software power cap is the normal state of a board at full load, so it is only noted."""


@dataclass(frozen=True)
class SensorTiming:
    """Behaviour of a power sensor: a new value each ``update_s``, averaged over the ``window_s`` before it."""

    update_s: float
    window_s: float
    assumed: bool = False

    @property
    def lag_s(self) -> float:
        """Delay of a sensor value behind the power it reports, middle to middle, seconds."""
        return (self.update_s + self.window_s) / 2


# by compute capability; Yang et al., table of update period and averaging window
_TIMINGS = {
    (6, 0): SensorTiming(0.020, 0.010),
    (6, 1): SensorTiming(0.020, 0.010),
    (7, 0): SensorTiming(0.020, 0.010),
    (7, 5): SensorTiming(0.100, 0.100),
    (8, 0): SensorTiming(0.100, 0.025),
    (8, 6): SensorTiming(0.100, 0.100),
    (9, 0): SensorTiming(0.100, 0.025),
}
_UNKNOWN_TIMING = SensorTiming(0.100, 0.100, assumed=True)


class BoardError(Exception):
    """NVML refused or failed; :attr:`absence` has the typed reason."""

    def __init__(self, why: WhyMissing, text: str) -> None:
        self.absence = Absence(why, text)
        super().__init__(text)


class GpuBoard:
    """One GPU, opened by its UUID. Methods raise :class:`BoardError`; none of them changes a setting.

    Args:
        uuid: as ``nvidia-smi -L`` shows it (``GPU-...``). An index is not accepted: indices differ between
            NVML and CUDA, and the wrong board would be measured.
    """

    def __init__(self, uuid: str) -> None:
        if uuid.startswith("MIG-"):
            raise BoardError("mig", f"{uuid} is a MIG instance: NVML has no power sensor for a part of a board")
        self.uuid = uuid
        self._opened = False
        self._call("nvmlInit")
        self._handle = self._call("nvmlDeviceGetHandleByUUID", uuid)
        self._opened = True
        self.name: str = self.query("nvmlDeviceGetName")
        major, minor = self.query("nvmlDeviceGetCudaComputeCapability")
        self.capability: tuple[int, int] = (major, minor)
        self.timing = _TIMINGS.get(self.capability, _UNKNOWN_TIMING)

    def query(self, function: str, *arguments: object) -> Any:
        """Call a ``nvmlDevice...`` function of pynvml on this board."""
        return self._call(function, self._handle, *arguments)

    def optional(self, function: str, *arguments: object) -> Any:
        """Like :meth:`query`, but None where the board or the system does not give this value."""
        try:
            return self.query(function, *arguments)
        except BoardError as error:
            if error.absence.why in ("not_supported", "no_permission"):
                return None
            raise

    def energy_j(self) -> float:
        """Energy since the driver was loaded, joules."""
        return float(self.query("nvmlDeviceGetTotalEnergyConsumption")) / 1e3

    def instant_w(self) -> float:
        """Instantaneous power, watts: field 186, or on GA100 and older boards the plain power call."""
        try:
            return self._power_field(FIELD_POWER_INSTANT)
        except BoardError as error:
            if error.absence.why != "not_supported" or self.capability > (8, 0):
                raise
        return float(self.query("nvmlDeviceGetPowerUsage")) / 1e3

    def average_w(self) -> float:
        """Power averaged over 1 s, watts: field 185, or on boards newer than GA100 the plain power call."""
        try:
            return self._power_field(FIELD_POWER_AVERAGE)
        except BoardError as error:
            if error.absence.why != "not_supported" or self.capability <= (8, 0):
                raise
        return float(self.query("nvmlDeviceGetPowerUsage")) / 1e3

    def mig_enabled(self) -> bool:
        """True if the GPU is partitioned."""
        mode = self.optional("nvmlDeviceGetMigMode")
        return bool(mode and mode[0])

    def used_bytes(self) -> int:
        """Memory in use by all contexts, bytes; what the driver reserves for itself is not in it."""
        import pynvml

        return int(self.query("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2).used)

    def temperature_c(self) -> int | None:
        """Temperature of the GPU, degrees Celsius."""
        import pynvml

        value: int | None = self.optional("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)
        return value

    def clock_mhz(self, domain: str) -> int | None:
        """Current clock of ``SM`` or ``MEM``, MHz."""
        import pynvml

        value: int | None = self.optional("nvmlDeviceGetClockInfo", getattr(pynvml, f"NVML_CLOCK_{domain}"))
        return value

    def driver(self) -> str:
        """Version of the driver."""
        return str(self._call("nvmlSystemGetDriverVersion"))

    def power_limit_w(self) -> float | None:
        """Enforced power limit, watts."""
        limit = self.optional("nvmlDeviceGetEnforcedPowerLimit")
        return None if limit is None else limit / 1e3

    def throttle_bits(self) -> int | None:
        """Reasons for lowered clocks right now: a mask, see :data:`THROTTLE_REASONS`."""
        bits: int | None = self.optional("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before the functions were renamed
            bits = self.optional("nvmlDeviceGetCurrentClocksThrottleReasons")
        return bits

    def compute_pids(self) -> list[int] | None:
        """Processes that hold a compute context on the board."""
        processes = self.optional("nvmlDeviceGetComputeRunningProcesses_v3")
        return None if processes is None else [process.pid for process in processes]

    def facts(self) -> dict[str, Any]:
        """Name and settings of the GPU, for the record."""
        import pynvml

        memory = self.optional("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
        return {
            "uuid": self.uuid,
            "name": self.name,
            "compute_capability": f"{self.capability[0]}.{self.capability[1]}",
            "driver": self.driver(),
            "cuda_driver": self._call("nvmlSystemGetCudaDriverVersion_v2"),
            "power_limit_w": self.power_limit_w(),
            "sm_clock_mhz": self.clock_mhz("SM"),
            "memory_clock_mhz": self.clock_mhz("MEM"),
            "memory_total_bytes": None if memory is None else int(memory.total),
            "memory_reserved_bytes": None if memory is None else int(memory.reserved),
            "mig": self.mig_enabled(),
        }

    def _power_field(self, field: int) -> float:
        import pynvml

        value = self.query("nvmlDeviceGetFieldValues", [(field, pynvml.NVML_POWER_SCOPE_GPU)])[0]
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            raise self._error(f"field {field}", pynvml.NVMLError(value.nvmlReturn))
        return float(value.value.uiVal) / 1e3

    def _call(self, function: str, *arguments: object) -> object:
        import pynvml

        try:
            return getattr(pynvml, function)(*arguments)
        except pynvml.NVMLError as error:
            raise self._error(function, error) from error

    def _error(self, function: str, error: Any) -> BoardError:
        return BoardError(_reason(error.value, self._opened), f"{function}: {error}")


def open_boards(uuids: Iterable[str]) -> list[GpuBoard]:
    """The assigned boards.

    Raises:
        BoardError: no board is assigned, or one of them cannot be opened.
    """
    boards = [GpuBoard(uuid) for uuid in uuids]
    if not boards:
        raise BoardError("no_device", "no GPU is assigned to the cell")
    return boards


def visible_uuids() -> tuple[str, ...]:
    """UUIDs of the GPUs this process was given. Only for a worker: where ``CUDA_VISIBLE_DEVICES`` holds no UUIDs,
    torch is asked, which starts CUDA.
    """
    entries = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    if entries and all(entry.startswith(("GPU-", "MIG-")) for entry in entries):
        return tuple(entries)

    import torch

    if not torch.cuda.is_available():
        return ()
    count = torch.cuda.device_count()
    return tuple(f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count))


def foreign_pids(pids: Iterable[int], own: set[int], *, own_context: bool) -> set[int]:
    """Foreign compute processes on a GPU.

    Args:
        pids: processes NVML lists.
        own: this process and its descendants.
        own_context: whether this process certainly holds a CUDA context. If so and it is not listed, NVML
            shows the host's process numbers (a container): then one of the entries is taken to be this
            process, and the others are foreign.
    """
    listed = sorted(set(pids))
    if own_context and listed and not own & set(listed):
        listed = listed[:-1]
    return set(listed) - own


def own_pids(proc: Path = Path("/proc")) -> set[int]:
    """This process and all its descendants."""
    found: set[int] = set()
    pending = [os.getpid()]
    while pending:
        pid = pending.pop()
        found.add(pid)
        try:
            for task in (proc / str(pid) / "task").iterdir():
                pending += map(int, (task / "children").read_text().split())
        except OSError:  # ended meanwhile
            continue
    return found


def holds_context() -> bool:
    """True if this process has started CUDA through torch."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _reason(code: int, opened: bool) -> WhyMissing:
    """The typed reason for an NVML error code; what is an absence before opening is a loss afterwards."""
    import pynvml as nv

    if code in (nv.NVML_ERROR_NOT_SUPPORTED, nv.NVML_ERROR_FUNCTION_NOT_FOUND, nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
        return "not_supported"
    if code == nv.NVML_ERROR_NO_PERMISSION:
        return "no_permission"
    gone = (nv.NVML_ERROR_DRIVER_NOT_LOADED, nv.NVML_ERROR_NOT_FOUND, nv.NVML_ERROR_GPU_NOT_FOUND)
    if code == nv.NVML_ERROR_LIBRARY_NOT_FOUND or (code in gone and not opened):
        return "no_device"
    lost = (
        nv.NVML_ERROR_GPU_IS_LOST,
        nv.NVML_ERROR_RESET_REQUIRED,
        nv.NVML_ERROR_UNINITIALIZED,
        nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        nv.NVML_ERROR_UNKNOWN,
    )
    if opened and code in (*gone, *lost):
        return "device_lost"
    return "device_lost" if code == nv.NVML_ERROR_GPU_IS_LOST else "failed"

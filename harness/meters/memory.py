"""Memory of a stage, by kind: resident set, proportional set, control group, CUDA caching allocator.

The kinds answer different questions and never share a ranked column (protocol 4). What a device reports for
itself (``device_used_peak_bytes``) is read by :mod:`harness.meters.device_state`.
"""

from __future__ import annotations

import gc
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from harness.meters.instrument import MeterSetting, Sampler
from harness.metrics import missing, reading
from harness.record import Reading, WhyMissing

KIB = 1024
RSS_SOURCE = "/proc/self/status VmHWM"
RSS_BEFORE_SOURCE = "/proc/self/status VmRSS"
PSS_SOURCE = "smaps_rollup of the process tree, sampled"
CGROUP_SOURCE = "cgroup memory controller"
TORCH_SOURCE = "torch.cuda.memory_stats"


class HostMemory:
    """``peak_rss_bytes``, ``rss_before_bytes``, ``rss_growth_bytes``, ``pss_peak_bytes``, ``cgroup_peak_bytes``.

    A worker is forked from a process that has the libraries loaded, so its resident set starts high: the first stage's
    ``rss_before_bytes`` is what that process brought, and growth is what a stage added. What is done between two stages
    (a pass that counts FLOPs) belongs to the later one: it leaves memory behind that the later one uses again.

    Args:
        setting: unused; every cell has host memory.
        pss_period_s: sampling period of the proportional set size, longer where the tree is large.
        proc: mount point of proc.
        cgroup_root: mount point of the control groups.
    """

    name = "host-memory"
    quantities = ("peak_rss_bytes", "rss_before_bytes", "rss_growth_bytes", "pss_peak_bytes", "cgroup_peak_bytes")

    def __init__(
        self,
        setting: MeterSetting,
        *,
        pss_period_s: float = 0.25,
        proc: Path = Path("/proc"),
        cgroup_root: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self.proc = proc
        self.cgroup_root = cgroup_root
        self._pss = Sampler(lambda: tree_pss_bytes(proc, os.getpid()), pss_period_s, name="pss")
        self._begun_s = 0.0
        self._cgroup: CgroupPeak | None = None
        self._rss_before_bytes = 0
        self._rss_reset_error = ""

    def available(self) -> str | None:
        """Linux only."""
        return None if (self.proc / "self" / "status").exists() else "host memory is read from proc, which is Linux"

    def begin(self, stage: str) -> None:
        """Reset the peak of the resident set, note the control group's, and start sampling."""
        self._cgroup = CgroupPeak.open(self.proc, self.cgroup_root)
        self._pss.start()
        self._begun_s = time.monotonic()
        self._rss_reset_error = ""
        try:
            # value 5 resets the peak resident set (proc(5)); last, so that the meter's own work is not in the peak
            (self.proc / "self" / "clear_refs").write_text("5")
        except OSError as error:
            self._rss_reset_error = str(error)
        if not self._rss_before_bytes:
            self._rss_before_bytes = self._rss_bytes()

    def end(self, stage: str) -> list[Reading]:
        """The peaks since :meth:`begin`."""
        pss = self._pss_reading()
        cgroup = missing("cgroup_peak_bytes", "not_supported", source=CGROUP_SOURCE)
        found = [*self._rss_readings(), pss, self._cgroup.read() if self._cgroup else cgroup]
        self._rss_before_bytes = self._rss_bytes()
        return found

    def facts(self) -> dict[str, Any]:
        """Sampling period and the control group."""
        return {"pss_period_s": self._pss.period_s, "cgroup": str(self._cgroup.path) if self._cgroup else None}

    def _rss_bytes(self) -> int:
        return _kib_field(self.proc / "self" / "status", "VmRSS:")

    def _rss_readings(self) -> list[Reading]:
        page = os.sysconf("SC_PAGE_SIZE")
        start = reading("rss_before_bytes", self._rss_before_bytes, source=RSS_BEFORE_SOURCE, resolution=page)
        if self._rss_reset_error:
            # without the reset it would be the peak of all stages so far
            details = {"why": self._rss_reset_error}
            peaks = ("peak_rss_bytes", "rss_growth_bytes")
            return [start, *(missing(name, "no_permission", source=RSS_SOURCE, details=details) for name in peaks)]
        peak = peak_rss_bytes(self.proc)
        growth = max(peak - self._rss_before_bytes, 0)
        return [
            start,
            reading("peak_rss_bytes", peak, source=RSS_SOURCE, resolution=page),
            reading("rss_growth_bytes", growth, source=f"{RSS_SOURCE} less VmRSS before the stage", resolution=page),
        ]

    def _pss_reading(self) -> Reading:
        samples = self._pss.stop()
        if self._pss.error is not None:
            details = {"error": repr(self._pss.error)}
            return missing("pss_peak_bytes", "failed", source=PSS_SOURCE, details=details)
        seconds = max(time.monotonic() - self._begun_s, 1e-9)
        return reading(
            "pss_peak_bytes",
            max(value for _, value in samples),
            source=PSS_SOURCE,
            resolution=KIB,
            n=len(samples),
            details={
                "mean_period_s": seconds / max(len(samples) - 1, 1),
                "sampler_cpu_share": self._pss.cpu_s / seconds,
            },
        )


class CgroupPeak:
    """Peak memory of this process's control group since it was opened, if the kernel reports it.

    Version 2 from Linux 6.12 resets the peak for one open file. Elsewhere the peak is the group's whole
    history, and it belongs to this stage only if it grew during it. A group that holds processes beside the worker and
    its children (a container with other jobs) says nothing of the cell, and gives no value.
    """

    def __init__(self, proc: Path, path: Path, stream: BinaryIO, resettable: bool, begun_bytes: int) -> None:
        self.proc = proc
        self.path = path
        self.stream = stream
        self.resettable = resettable
        self.begun_bytes = begun_bytes

    @classmethod
    def open(cls, proc: Path, root: Path) -> CgroupPeak | None:
        """The peak file of the own group, reset if that is possible; None where there is no such file."""
        path = cgroup_peak_path(proc, root)
        if path is None:
            return None
        resettable = False
        stream: BinaryIO | None = None
        if path.name == "memory.peak":
            with suppress(OSError):
                stream = path.open("r+b", buffering=0)
                stream.write(b"reset\n")
                resettable = True
        # version 1's peak is one for all readers: resetting it would disturb others, so it is only read
        stream = stream or path.open("rb", buffering=0)
        peak = cls(proc, path, stream, resettable, 0)
        peak.begun_bytes = peak.current_bytes()
        return peak

    def current_bytes(self) -> int:
        """Current content of the file."""
        self.stream.seek(0)
        return int(self.stream.read(64))

    def read(self) -> Reading:
        """``cgroup_peak_bytes`` since :meth:`open`; closes the file."""
        now = self.current_bytes()
        self.stream.close()
        details: dict[str, Any] = {"file": self.path.name, "reset": self.resettable}
        others = self._others()
        if others is None or others > 0:
            details["why"] = (
                "the processes of the control group cannot be listed"
                if others is None
                else f"the control group holds {others} processes beside the cell's, so its peak is not the cell's"
            )
            return missing("cgroup_peak_bytes", "not_supported", source=CGROUP_SOURCE, details=details)
        if not self.resettable and now <= self.begun_bytes:
            details["why"] = f"the group's earlier peak of {self.begun_bytes} B was not exceeded and cannot be reset"
            return missing("cgroup_peak_bytes", "not_supported", source=CGROUP_SOURCE, details=details)
        return reading("cgroup_peak_bytes", now, source=CGROUP_SOURCE, details=details)

    def _others(self) -> int | None:
        """Processes of the group beside this one and its descendants; None where they cannot be listed."""
        try:
            held = set(map(int, (self.path.parent / "cgroup.procs").read_text().split()))
        except (OSError, ValueError):
            return None
        return len(held - {os.getpid(), *descendants(self.proc, os.getpid())})


class TorchMemory:
    """The CUDA caching allocator's peaks, retries and OOMs of a stage.

    ``cuda_allocated_peak_bytes``, ``cuda_reserved_peak_bytes``, ``inactive_split_peak_bytes``,
    ``alloc_retries``, ``ooms``. The cache is emptied before a stage, so that a peak of reserved memory
    carries nothing over from the stage before.
    """

    name = "torch-memory"
    quantities = (
        "cuda_allocated_peak_bytes",
        "cuda_reserved_peak_bytes",
        "inactive_split_peak_bytes",
        "alloc_retries",
        "ooms",
    )
    why_unavailable: WhyMissing = "no_device"

    def __init__(self, setting: MeterSetting) -> None:
        self.device = setting.device
        self._begun: dict[str, int] = {}

    def available(self) -> str | None:
        """Only for a cell on a CUDA device, with a build of torch that has CUDA."""
        if not self.device.startswith("cuda"):
            return f"the cell runs on {self.device}"

        import torch

        return None if torch.cuda.is_available() else "torch sees no CUDA device"

    def begin(self, stage: str) -> None:
        """Drop what the last stage left in the cache, and reset the peaks."""
        import torch

        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        stats = torch.cuda.memory_stats(self.device)
        self._begun = {name: stats.get(name, 0) for name in ("num_alloc_retries", "num_ooms")}

    def end(self, stage: str) -> list[Reading]:
        """The allocator's statistics since :meth:`begin`."""
        import torch

        torch.cuda.synchronize(self.device)
        stats = torch.cuda.memory_stats(self.device)
        values = (
            torch.cuda.max_memory_allocated(self.device),
            torch.cuda.max_memory_reserved(self.device),
            stats.get("inactive_split_bytes.all.peak", 0),
            stats.get("num_alloc_retries", 0) - self._begun["num_alloc_retries"],
            stats.get("num_ooms", 0) - self._begun["num_ooms"],
        )
        readings = zip(self.quantities, values, strict=True)
        return [reading(name, value, source=TORCH_SOURCE, resolution=1) for name, value in readings]

    def facts(self) -> dict[str, Any]:
        """The allocator and how it was set; ``cudaMallocAsync`` gives reserved peaks that are upper bounds."""
        import torch

        variables = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
        backend = torch.cuda.get_allocator_backend() if torch.cuda.is_available() else None
        return {"allocator": backend, **{name: os.environ.get(name) for name in variables}}


def peak_rss_bytes(proc: Path = Path("/proc")) -> int:
    """Peak resident set of this process since start or the last reset, bytes."""
    return _kib_field(proc / "self" / "status", "VmHWM:")


def tree_pss_bytes(proc: Path, root_pid: int) -> int:
    """Proportional set size of a process and all its descendants, bytes. Processes that end meanwhile are left out."""
    total = _kib_field(proc / str(root_pid) / "smaps_rollup", "Pss:")
    for pid in descendants(proc, root_pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += _kib_field(proc / str(pid) / "smaps_rollup", "Pss:")
    return total


def descendants(proc: Path, root_pid: int) -> list[int]:
    """All processes below one, those that end meanwhile left out."""
    found: list[int] = []
    pending = [root_pid]
    while pending:
        pid = pending.pop()
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in (proc / str(pid) / "task").iterdir():
                children = list(map(int, (task / "children").read_text().split()))
                found += children
                pending += children
    return found


def cgroup_peak_path(proc: Path, root: Path) -> Path | None:
    """The file with the peak memory of this process's control group (version 2 or 1), or None."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        group = group.lstrip("/")
        if controllers == "":
            candidates = [root / group / "memory.peak", root / "unified" / group / "memory.peak"]
        elif "memory" in controllers.split(","):
            # inside a container the group's path on the host may not be mounted: then the mount's root is the group
            candidates = [root / "memory" / g / "memory.max_usage_in_bytes" for g in (group, "")]
        else:
            continue
        for path in candidates:
            if path.is_file():
                return path
    return None


def _kib_field(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * KIB
    raise ValueError(f"{path} has no field {field}")
